"""What `train_iou_head` brings: how well SAM's estimate of a mask's IoU fits, before and after an adaptation.

Single objects of the test images by a point or a box. Finished runs are not repeated.

    python benchmarks/iou_estimate.py --data ../shared/data --extra "--max_steps 200 --precision bf16"
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from results import publish, table
from series import model_of, run, series_arguments, spread

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.images import IGNORE
from hf_sam_adapt.inference.forward import segment_scored
from hf_sam_adapt.inference.variants import inference
from hf_sam_adapt.prompts import derive_prompts


KINDS = ("point", "box")
MAX_OBJECTS = 8
TESTED: dict[str, dict[str, Any]] = {
    "adapted": {},
    "adapted, IoU head trained": {"method_args": {"train_iou_head": True}},
}
Figures = dict[str, float]


@torch.no_grad()
def figures(name: str, domain: str, kind: str, seed: int, args: Namespace) -> Figures:
    """Mean IoU and estimate, their mean absolute difference and rank correlation, over the objects of all images."""
    model, processor, *_ = model_of(name, domain, seed, args)
    ious, estimates = [], []
    with inference([model], "no"):
        for sample in load_segmentation_dataset(str(args.data / domain)).test:
            prompt = derive_prompts(sample.mask, kind, max_objects=MAX_OBJECTS)
            if not len(prompt):
                continue
            inputs, known = processor([sample.image], prompts=[prompt]), sample.mask != IGNORE
            ((logits, scores),) = segment_scored(model, inputs["pixel_values"], inputs["prompts"])
            (masks,) = processor.post_process_masks([logits], inputs["original_sizes"], inputs["reshaped_input_sizes"])
            for mask, target in zip((masks > 0).numpy(), np.asarray(prompt.targets) == 1):
                ious.append((mask & target & known).sum() / max(1, ((mask | target) & known).sum()))
            estimates += scores.tolist()
    ious, estimates = np.array(ious), np.array(estimates)
    ranks = [np.argsort(np.argsort(values)) for values in (ious, estimates)]
    return {
        "objects": len(ious),
        "IoU": ious.mean(),
        "estimate": estimates.mean(),
        "absolute error": np.abs(estimates - ious).mean(),
        "rank correlation": np.corrcoef(ranks)[0, 1],
    }


def row(domain: str, kind: str, name: str, found: list[Figures]) -> list[str]:
    keys = [key for key in found[0] if key != "objects"]
    return [domain, kind, name, str(found[0]["objects"]), *(spread([one[key] for one in found]) for key in keys)]


def main() -> None:
    parser = series_arguments(__doc__, "runs/iou_estimate", ("nuclei", "polyp"))
    parser.add_argument("--method", default="decoder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, str, str], list[Figures]] = defaultdict(list)
    for domain in args.domains:
        for kind in KINDS:
            found[domain, kind, "zero-shot"].append(figures("zero-shot", domain, kind, 0, args))
        for name, keys in TESTED.items():
            slug = name.replace(", ", "-").replace(" ", "-")
            for seed in args.seeds:
                if run(domain, slug, seed, args, method=args.method, keys={"prompts": list(KINDS), **keys}):
                    for kind in KINDS:
                        found[domain, kind, name].append(figures(slug, domain, kind, seed, args))
    if not found:
        sys.exit("no run has finished")
    header = ["domain", "prompt", "model", "objects", "IoU", "estimate", "absolute error", "rank correlation", "seeds"]
    rows = [[*row(*key, values), str(len(values))] for key, values in sorted(found.items())]
    note = f"The {MAX_OBJECTS} largest objects of each test image, one at a time, at original size. "
    note += "Mean ± standard deviation over the seeds."
    publish("SAM's estimate of a mask's IoU", f"{table(header, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
