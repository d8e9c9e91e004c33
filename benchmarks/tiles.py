"""Small objects with and without tiles: two real domains, and a drawn one of 2048 pixels with objects of 10 to 20.

Promptless IoU of SAM-Adapter over seeds. Finished runs are not repeated and broken ones are resumed.

    python benchmarks/tiles.py --data ../shared/data --out runs/tiles --extra "--max_steps 200"
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from results import publish, table
from series import COST, cost, run, series_arguments, spread


DRAWN = "small_objects"
DOMAINS = ("magnetic_tile", "road_aerial", DRAWN)
TILE = 256  # the input of tiny: pixels are kept
# What is compared is the tiles alone; an evaluation after each epoch would take longer than the training.
COMMON: dict[str, Any] = {"augment": ["flip", "vflip", "rotate", "colour"], "eval_every": 100}
WAYS: dict[str, dict[str, Any]] = {"whole": COMMON, "tiles": COMMON | {"tile": TILE}}
SIDE, OBJECTS, COUNTS = 2048, 40, {"train": 12, "val": 3, "test": 8}


def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rings of 10 to 20 pixels on noise of two scales, uint8 (H, W, 3), and their mask; full discs are not meant."""
    coarse = Image.fromarray(rng.integers(60, 180, (SIDE // 64, SIDE // 64), dtype=np.uint8))
    ground = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(np.float32)
    picture, mask = ground + rng.normal(0, 12, (SIDE, SIDE)), np.zeros((SIDE, SIDE), np.uint8)
    for number in range(2 * OBJECTS):
        radius = rng.uniform(5, 10)
        top, left = rng.integers(12, SIDE - 36, 2)
        rows, columns = np.mgrid[:24, :24] - 12
        distance = np.hypot(rows, columns)
        ring = number < OBJECTS
        inside = distance <= radius
        drawn = inside & (distance > 0.5 * radius) if ring else inside
        picture[top : top + 24, left : left + 24][drawn] += 55
        if ring:
            mask[top : top + 24, left : left + 24][inside] = 1
    return np.repeat(picture.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2), mask


def write_drawn(folder: Path) -> Path:
    """The drawn data set, unless it is there."""
    for place, (split, count) in enumerate(COUNTS.items()):
        for number in range(count):
            if not (folder / split / "masks" / f"{number}.png").exists():
                image, mask = draw(np.random.default_rng([place, number]))
                for kind, values in (("images", image), ("masks", mask)):
                    (folder / split / kind).mkdir(parents=True, exist_ok=True)
                    Image.fromarray(values).save(folder / split / kind / f"{number}.png")
    return folder


def main() -> None:
    args = series_arguments(__doc__, "runs/tiles", DOMAINS).parse_args()
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    # Seed by seed, so that an interrupted series still compares both ways.
    for seed in args.seeds:
        for domain in args.domains:
            for way, keys in WAYS.items():
                if domain == DRAWN:
                    keys = keys | {"dataset": str(write_drawn(args.out / DRAWN))}
                metrics = run(domain, way, seed, args, method="sam_adapter", keys=keys)
                if metrics is not None:
                    found[domain, way].append(metrics)
    if not found:
        sys.exit("no run has finished")
    rows = []
    for (domain, way), runs in found.items():
        scores = [one["test"]["none"] for one in runs]
        constant = statistics.mean(one["constant"]["iou"] for one in scores)
        means = [spread([one["adapted"][key] for one in scores]) for key in ("iou", "dice")]
        rows.append([domain, way, *means, f"{constant:.3f}", str(len(runs)), *cost(runs)])
    header = ["domain", "images", "adapted IoU", "adapted Dice", "constant IoU", "seeds", *COST]
    note = f"Tiles of {TILE} pixels, the input of tiny; whole images are resized to it. Promptless, test images at "
    note += "original size; mean ± standard deviation over the seeds."
    publish("Small objects, with and without tiles", f"{table(header, sorted(rows))}\n\n{note}")


if __name__ == "__main__":
    main()
