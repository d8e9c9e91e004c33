"""Whether the images of which a model is least sure are those on which it is wrong: `predict --rank uncertain`.

Half of a domain's training images adapt `tiny`, the other half is predicted, ranked by each measure, and compared with
the truth. No test image is read.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from results import publish, table
from scipy.stats import spearmanr

from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.reporting.results.run import predict
from hf_sam_adapt.training import train


QUARTERS = ("least sure", "second", "third", "surest")


def scores(data: Path, domain: str, steps: int, work: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """IoU (n,) of the predicted images, and each measure (n,)."""
    images = sorted((data / domain / "train/images").iterdir())
    for part, chosen in (("labelled", images[::2]), ("pool", images[1::2])):
        for kind in ("images", "masks"):
            (work / part / kind).mkdir(parents=True)
        for image in chosen:
            shutil.copy(image, work / part / "images")
            shutil.copy(image.parents[1] / "masks" / f"{image.stem}.png", work / part / "masks")
    recipe = Recipe(dataset=str(work / "labelled"), max_steps=steps, output_dir=str(work / "run"))
    train(recipe)
    records = predict([str(work / "pool/images")], str(work / "run"), output_dir=work / "out", rank="uncertain")
    found = []
    for record in records:
        mask = np.asarray(Image.open(work / "out" / record["mask"])) > 0
        truth = np.asarray(Image.open(work / "pool/masks" / f"{Path(record['file']).stem}.png")) > 0
        found.append((mask & truth).sum() / max(1, (mask | truth).sum()))
    measures = {key: np.array([record["uncertainty"][key] for record in records]) for key in records[0]["uncertainty"]}
    return np.array(found), measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the real domains")
    parser.add_argument("--domain", default="polyp")
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        iou, measures = scores(args.data, args.domain, args.steps, Path(work))
    rows = []
    for name, values in measures.items():
        parts = np.array_split(iou[np.argsort(-values, kind="stable")], len(QUARTERS))
        rows.append([name, *(f"{part.mean():.3f}" for part in parts), f"{spearmanr(values, iou)[0]:.2f}"])
    body = table(["ranked by", *QUARTERS, "rank correlation with IoU"], rows)
    said = f"Mean IoU of a quarter of {len(iou)} images that were not trained on, after {args.steps} steps."
    publish(f"Least sure images, {args.domain}", f"{said}\n\n{body}")


if __name__ == "__main__":
    main()
