"""What a training step takes beside the model: loader, device, losses, clipping's and logging's part of its time.

ViT-B with random weights, or tiny, on drawn photographs of 1.5 megapixels (JPEG). Steps of the training loop and bare
steps of the same model on one batch that lies ready (forward, a mean for a loss, backward, clipping, optimizer) run in
turn, in both orders. The parts are those of the loop's steps as the host waits for them.

    python benchmarks/training_overhead.py --model vit_b --rounds 2
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from PIL import Image
from results import publish, table
from step_cost import build_sam
from tqdm import tqdm

from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.sam.processing import SamAdaptProcessor
from hf_sam_adapt.training import loop as training_loop
from hf_sam_adapt.training.loop import TrainingLoop
from hf_sam_adapt.training.resolve import load_model
from hf_sam_adapt.training.run import build_accelerator, load_data
from hf_sam_adapt.training.run_folder import RunFolder


SIZE = (1500, 1000)  # of the photographs


def draw_folder(root: Path) -> Path:
    for split, number in (("train", 8), ("val", 1), ("test", 1)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(number):
            image, mask = (Image.fromarray(array) for array in draw_sample("polyp", split, index))
            image.resize(SIZE).save(root / split / "images" / f"{index:03}.jpg", quality=92)
            mask.resize(SIZE, Image.Resampling.NEAREST).save(root / split / "masks" / f"{index:03}.png")
    return root


def save_base(model: str, folder: Path) -> str:
    if model == "tiny":
        return model
    build_sam(model).save_pretrained(folder)
    SamAdaptProcessor(image_size=1024, patch_size=16).save_pretrained(folder)
    return str(folder)


def build_loop(args: argparse.Namespace, root: Path) -> TrainingLoop:
    recipe = Recipe(
        model=save_base(args.model, root / "base"),
        method=args.method,
        dataset=str(draw_folder(root / "data")),
        batch_size=args.batch,
        max_steps=1000,
        precision=args.precision,
        num_workers=args.num_workers,
        output_dir=str(root / "run"),
    )
    set_seed(recipe.seed)
    data = load_data(recipe)
    recipe, model, processor = load_model(recipe, data)
    folder = RunFolder(recipe)
    accelerator = build_accelerator(recipe, model, folder)
    return TrainingLoop(recipe, accelerator, model, processor, data, folder.checkpoints)


class Parts:
    """Seconds of the host in the parts of the loop's steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def of(self, name: str, function: Callable) -> Callable:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - begin

        return timed


def loop_steps(loop: TrainingLoop, batches: Iterator[dict[str, Any]], bar: tqdm, report: Callable, count: int) -> None:
    unread: list[tuple[int, float, torch.Tensor]] = []
    for _ in range(count):
        step = loop.state.step
        rate = loop._set_learning_rate(step)
        unread.append((step + 1, rate, loop._optimizer_step(step, batches)))
        loop.state.step += 1
        loop.state.images_per_second = 1.0
        if len(unread) > 1:
            number, rate, figures = unread.pop(0)
            report(bar, number, rate, *figures.tolist())
    for number, rate, figures in unread:
        report(bar, number, rate, *figures.tolist())


def bare_steps(loop: TrainingLoop, batch: dict[str, Any], count: int) -> None:
    loop.wrapped.train()
    for _ in range(count):
        logits, own_loss, _ = loop.wrapped(batch["pixel_values"], batch["prompts"])
        total = sum(one.float().mean() for one in logits)
        loop.accelerator.backward(total if own_loss is None else total + own_loss)
        loop.accelerator.clip_grad_norm_(loop.trained, loop.recipe.max_grad_norm)
        loop.optimizer.step()
        loop.optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "vit_b"), default="vit_b")
    parser.add_argument("--method", default="sam_adapter")
    parser.add_argument("--batch", type=int, default=1, help="images of a step (default: 1)")
    parser.add_argument("--steps", type=int, default=2, help="steps of a measurement (default: 2)")
    parser.add_argument("--rounds", type=int, default=2, help="measurements of each, in both orders (default: 2)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--num_workers", type=int, help="as the recipe's key (default: by device and cores)")
    args = parser.parse_args()
    parts = Parts()
    with tempfile.TemporaryDirectory() as folder:
        loop = build_loop(args, Path(folder))
        device = loop.accelerator.device
        ready = training_loop.to_device(next(iter(loop._loader())), loop.processor, device)
        training_loop.to_device = parts.of("to the device", training_loop.to_device)
        training_loop.batch_loss = parts.of("losses", training_loop.batch_loss)
        report = parts.of("logging", loop._report)
        source = iter(loop._loader())
        waiting = parts.of("loader", lambda: next(source))
        batches, bar = iter(waiting, None), tqdm(disable=True)
        runs: dict[str, Callable[[int], None]] = {
            "loop": lambda count: loop_steps(loop, batches, bar, report, count),
            "bare": lambda count: bare_steps(loop, ready, count),
        }
        found: dict[str, list[float]] = {name: [] for name in runs}
        for number in range(-1, args.rounds):  # the first allocates and chooses kernels
            for name in list(runs)[:: 1 if number % 2 else -1]:
                begin = time.perf_counter()
                runs[name](args.steps)
                if device.type == "cuda":
                    torch.cuda.synchronize()
                if number >= 0:
                    found[name].append((time.perf_counter() - begin) / args.steps)
            if number < 0:
                parts.seconds.clear()
    median = {name: statistics.median(seconds) for name, seconds in found.items()}
    titles = {"loop": "step of the training loop", "bare": "bare step of the model"}
    rows = [[title, f"{median[name]:.4f}"] for name, title in titles.items()]
    steps = args.rounds * args.steps
    rows += [[f"{name}, as the host waits", f"{seconds / steps:.4f}"] for name, seconds in parts.seconds.items()]
    ratios = [one / other for one, other in zip(found["loop"], found["bare"])]
    spread = f"({min(ratios):.3f} to {max(ratios):.3f})"
    outside = sum(parts.seconds.values()) / steps / median["loop"]
    publish(
        f"A training step beside its model: {args.model}, {args.method}",
        f"{args.batch} image(s) a step, precision {args.precision}, num_workers {args.num_workers}.\n\n"
        + table(["", "seconds"], rows)
        + f"\n\nLoop to bare step: {statistics.median(ratios):.3f} {spread}; the parts are {outside:.1%} of a step.",
    )


if __name__ == "__main__":
    main()
