"""An epoch of decoder-only training with and without cached embeddings: tiny, 64 images, batch 4, promptless.

The images are drawn once and stored as JPEG files, as photographs are. Both trainings run in one process and alternate
in both orders; no epoch includes the build of the cache, a validation or a checkpoint. Prints, writes nothing else.

    python benchmarks/cached_epoch.py --epochs 4
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from PIL import Image
from results import machine, table, versions

from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.training.loop import TrainingLoop
from hf_sam_adapt.training.resolve import load_model
from hf_sam_adapt.training.run import build_accelerator, embed, load_data
from hf_sam_adapt.training.run_folder import RunFolder


IMAGES = 64
NAMES = {False: "images", True: "cached embeddings"}


def draw_folder(root: Path, domain: str, scale: float) -> None:
    """64 training images and one each for validation and test, `scale` times as large as they are drawn."""
    for split, number in (("train", IMAGES), ("val", 1), ("test", 1)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(number):
            image, mask = (Image.fromarray(array) for array in draw_sample(domain, split, index))
            size = [round(side * scale) for side in image.size]
            image.resize(size).save(root / split / "images" / f"{index:03}.jpg", quality=92)
            mask.resize(size, Image.Resampling.NEAREST).save(root / split / "masks" / f"{index:03}.png")


def build_loop(dataset: Path, output_dir: Path, cached: bool, args: argparse.Namespace) -> TrainingLoop:
    recipe = Recipe(
        method="decoder",
        dataset=str(dataset),
        augment=["none"],
        epochs=args.epochs + 1,
        precision=args.precision,
        cache_embeddings=cached,
        output_dir=str(output_dir),
    )
    set_seed(recipe.seed)
    data = load_data(recipe)
    recipe, model, processor = load_model(recipe, data)
    folder = RunFolder(recipe)
    accelerator = build_accelerator(recipe, model, folder)
    loop = TrainingLoop(recipe, accelerator, model, processor, data, folder.checkpoints)
    if cached:
        begin = time.perf_counter()
        embed(loop)
        print(f"building the cache: {time.perf_counter() - begin:.2f} s")
    return loop


def run_epoch(loop: TrainingLoop, epoch: int, batches: Iterator[dict[str, Any]]) -> tuple[float, float, list[float]]:
    """Seconds of an epoch, those of them that wait for batches, and the losses."""
    waited = 0.0

    def timed() -> Iterator[dict[str, Any]]:
        nonlocal waited
        while True:
            start = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - start
            yield batch

    steps = IMAGES // loop.schedule.images_per_step
    source, begin = timed(), time.perf_counter()
    losses = [loop._optimizer_step(epoch * steps + step, source)[0].item() for step in range(steps)]
    return time.perf_counter() - begin, waited, losses


def compare(args: argparse.Namespace, root: Path) -> None:
    draw_folder(root / "data", args.domain, args.scale)
    loops = {cached: build_loop(root / "data", root / NAMES[cached], cached, args) for cached in (False, True)}
    batches = {cached: iter(loop._loader()) for cached, loop in loops.items()}
    found: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    # The first epoch allocates and chooses kernels.
    for epoch in range(args.epochs + 1):
        losses = {}
        for cached in (False, True) if epoch % 2 else (True, False):
            seconds, waited, losses[cached] = run_epoch(loops[cached], epoch, batches[cached])
            if epoch:
                found[cached].append((seconds, waited))
        worst = max(abs(a - b) / abs(b) for a, b in zip(losses[True], losses[False], strict=True))
        assert worst <= 1e-6, f"losses differ by {worst:.1e}"
    median = {cached: [statistics.median(column) for column in zip(*rows)] for cached, rows in found.items()}
    rows = [[NAMES[c], *(f"{v:.3f}" for v in median[c]), f"{IMAGES / median[c][0]:.1f}"] for c in (False, True)]
    print(table(["input", "s / epoch", "of it for batches, s", "images/s"], rows))
    ratios = [one[0] / two[0] for one, two in zip(found[False], found[True], strict=True)]
    print(f"\nRatio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}). Losses within 1e-6.")
    # What images cost before the decoder is all that a cache can save.
    decoder = median[True][0] - median[True][1]
    images, embeddings = (median[cached][0] - decoder for cached in (False, True))
    print(f"Before the decoder {images:.3f} s / epoch against {embeddings:.3f}: ratio {images / embeddings:.0f}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4, help="measured epochs of each (default: 4)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="autocast (default: no)")
    parser.add_argument("--domain", default="polyp", help="what is drawn (default: polyp)")
    parser.add_argument("--scale", type=float, default=2.0, help="1 = 256 pixels on the longest side (default: 2)")
    args = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads. {versions()}.")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HF_SAM_ADAPT_CACHE"] = str(Path(folder) / "cache")
        compare(args, Path(folder))


if __name__ == "__main__":
    main()
