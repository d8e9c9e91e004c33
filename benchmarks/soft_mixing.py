"""What mixing the masks of several domains saves where the router is in doubt, against its single choice.

Reads the pool of a finished continual run with `protocol: moda`. For each test image `hard` is the mask of the domain
with the highest score, `soft` the mean of all domains' mask probabilities weighted by the scores (those below --least
left out), `oracle` the mask of the true domain, `rejecting` the router's choice with plain SAM for unknown images.

    python benchmarks/soft_mixing.py --run runs/continual/moda-hq-0 --names camouflage shadow
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from results import publish, table

from hf_sam_adapt.config.arguments import from_values, read_yaml
from hf_sam_adapt.config.continual_recipe import ContinualRecipe
from hf_sam_adapt.inference.forward import encode, segment
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.inference.variants import inference
from hf_sam_adapt.metrics import OverlapMetric
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.training.run import load_data


WAYS = ("hard", "soft", "rejecting", "oracle")


@torch.no_grad()
def image_masks(pool, processor, image, least: float, true: str) -> dict[str, torch.Tensor]:
    """The bool mask (H, W) of one image by each way."""
    inputs = processor([image])
    pixels = inputs["pixel_values"]
    routing = pool.route(pixels)
    scores = dict(zip(pool.domains, routing.scores[0].tolist()))

    def probability(name: str) -> torch.Tensor:
        with pool.using(name):
            logits = segment(pool, None, [Prompt("none")], image_embeddings=encode(pool, pixels))[0]
        sizes = inputs["original_sizes"], inputs["reshaped_input_sizes"]
        return processor.post_process_masks([logits], *sizes)[0][0].sigmoid()

    weights = {name: score for name, score in scores.items() if score >= least}
    found = {name: probability(name) for name in {*weights, true, routing.domains[0]}}
    mixed = sum(weight * found[name] for name, weight in weights.items()) / sum(weights.values())
    probabilities = {
        "hard": found[max(scores, key=scores.get)],
        "soft": mixed,
        "rejecting": found[routing.domains[0]],
        "oracle": found[true],
    }
    return {way: probability > 0.5 for way, probability in probabilities.items()}


def compare(run: Path, name: str, least: float, precision: str) -> list[str]:
    """Cells of a row: mean IoU of each way on the test images of one domain."""
    recipe = from_values(ContinualRecipe, read_yaml(run / "recipe.yaml"), "recipe.yaml")
    domain = next(one for one in recipe.read_domains() if one.name == name)
    split = load_data(recipe.task(domain, run)).test
    loaded = load_adapted(str(run / "pool"))
    meters = {way: OverlapMetric() for way in WAYS}
    with inference([loaded.model], precision):
        for sample in split:
            masks = image_masks(loaded.model, loaded.processor, sample.image, least, name)
            for way, mask in masks.items():
                meters[way].update(mask.cpu().numpy(), sample.mask)
    return [name, str(len(split)), *(f"{meters[way].compute()['iou']:.3f}" for way in WAYS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder of a continual run with protocol moda")
    parser.add_argument("--names", nargs="+", required=True, help="domains whose test images are scored")
    parser.add_argument("--least", type=float, default=0.05, help="least score of a domain that is mixed in")
    parser.add_argument("--precision", default="bf16", help="as the run's (default: bf16)")
    args = parser.parse_args()
    rows = [compare(args.run, name, args.least, args.precision) for name in args.names]
    body = table(["test images of", "images", *WAYS], rows)
    publish(f"Soft mixing of domains, {args.run.name}", f"{body}\n\nMean IoU, promptless, at original size.")


if __name__ == "__main__":
    main()
