"""What is computed once in place of several times: each beside its literal counterpart, in turn, in both orders.

- An evaluation by every kind of prompt, with clicks and sensitivity, encodes each image once; the counterpart is a
  call for each kind and measurement, whose results are compared.
- A training sample of a photograph of 1.5 megapixels (JPEG) is opened once and leaves the loader as bytes; in the
  counterpart the image is opened a second time, and pixels and labels leave as transformers' processors return them.
- Constants of the encoder (places of relative positions, frequency bands, one-hots) are kept between the steps of a
  training; the counterpart makes them in each. The attention is the one of GPUs on every device. Operations are
  counted, too.

    python benchmarks/saved_work.py
    python benchmarks/saved_work.py --model vit_b --images 2 --clicks 5 --rounds 1
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from results import publish, table
from step_cost import build_sam
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_overhead import draw_folder

from hf_sam_adapt import SamAdapterConfig, SamAdaptProcessor, load_tiny_sam
from hf_sam_adapt.data.images import read_image
from hf_sam_adapt.data.sources import load_segmentation_dataset
from hf_sam_adapt.evaluation.clicks import Clicks, evaluate_clicks
from hf_sam_adapt.evaluation.evaluate import evaluate
from hf_sam_adapt.evaluation.sensitivity import Sensitivity, prompt_sensitivity
from hf_sam_adapt.inference.forward import encode
from hf_sam_adapt.inference.variants import variants_of
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.sam.attention import fast, use_fast_attention
from hf_sam_adapt.sam.attention.folded import folded_attention
from hf_sam_adapt.sam.constants import forget_constants
from hf_sam_adapt.training.batches import TrainingSamples


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Pair = tuple[Callable[[], Any], Callable[[], Any]]
KINDS = ("none", "box", "point", "mask")


class Operations(TorchDispatchMode):
    """Counts what is computed within."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def build(name: str) -> tuple[nn.Module, SamAdaptProcessor]:
    """A SAM with a SAM-Adapter of random weights."""
    sam, processor = (build_sam(name), SamAdaptProcessor()) if name != "tiny" else load_tiny_sam()
    torch.manual_seed(0)
    model = get_peft_model(sam, SamAdapterConfig(init_weights=False)).to(DEVICE)
    use_fast_attention(model)
    return model, processor


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def in_turn(once: Callable[[], Any], again: Callable[[], Any], rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of both over the rounds, after one of each that is not counted; equal results are demanded."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(-1, rounds):
        results = {}
        for place in (0, 1) if number % 2 else (1, 0):
            spent, results[place] = seconds((once, again)[place])
            if number >= 0:
                found[place].append(spent)
        assert results[0] == results[1], "the two differ"
    return found


def evaluations(model: nn.Module, processor: SamAdaptProcessor, images: int, clicks: int) -> Pair:
    _, drawn = load_segmentation_dataset("synthetic:polyp").measured
    split: Any = [drawn[number] for number in range(images)]  # read once: the encoding alone is compared
    how: dict[str, Any] = {"zero_shot": False, "batch_size": 2, "progress": False}

    def once() -> list[Any]:
        variants = variants_of(model, adapted=True, zero_shot=False, zero_shot_model=None)
        measurements = [Clicks(processor, variants, clicks), Sensitivity(processor, variants, "box")]
        result = evaluate(model, processor, split, KINDS, also=measurements, **how)
        return [result.test, *(one.result() for one in measurements)]

    def again() -> list[Any]:
        test: dict[str, Any] = {}
        for kind in KINDS:
            test |= evaluate(model, processor, split, (kind,), **how).test
        found = evaluate_clicks(model, processor, split, clicks, **how)
        return [test, found, prompt_sensitivity(model, processor, split, "box", **how)]

    return once, again


def training_samples(processor: SamAdaptProcessor, folder: Path) -> Pair:
    split = load_segmentation_dataset(str(draw_folder(folder))).train
    samples = TrainingSamples(split, processor, ["none"], [], seed=0)

    def once() -> list[int]:
        return [int(samples[0, index]["labels"].sum()) for index in range(len(split))]

    def again() -> list[int]:
        sums = []
        for index in range(len(split)):
            sample = split[index]
            assert sample.path is not None
            image = read_image(sample.path)
            inputs = processor([image], masks=[sample.mask], prompts=[Prompt("none")], mask_values="index")
            sums.append(int(inputs["labels"].sum()))
        return sums

    return once, again


def training_steps(model: nn.Module, processor: SamAdaptProcessor, batch: int) -> Pair:
    side = processor.image_size
    images = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0)).to(DEVICE)

    def step() -> float:
        loss = encode(model, images).maps.square().mean()
        loss.backward()
        model.zero_grad()
        return loss.item()

    def forgetful() -> float:
        forget_constants()
        return step()

    return step, forgetful


def operations(run: Callable[[], Any]) -> int:
    with Operations() as counted:
        run()
    return counted.count


def row(title: str, found: tuple[list[float], list[float]], counts: tuple[int, int] | None = None) -> list[str]:
    once, again = (statistics.median(part) for part in found)
    shown = "-" if counts is None else f"{counts[0]} / {counts[1]}"
    return [title, f"{once:.3f}", f"{again:.3f}", f"{once / again:.2f}", shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("tiny", "vit_b"), default="tiny")
    parser.add_argument("--images", type=int, default=16, help="of an evaluation (default: 16)")
    parser.add_argument("--clicks", type=int, default=10, help="on each object (default: 10)")
    parser.add_argument("--batch", type=int, default=4, help="images of a training step (default: 4)")
    parser.add_argument("--rounds", type=int, default=4, help="measurements of each (default: 4)")
    args = parser.parse_args()
    model, processor = build(args.model)
    with tempfile.TemporaryDirectory() as folder:
        sampled = in_turn(*training_samples(processor, Path(folder)), args.rounds)
    model.eval()
    evaluated = in_turn(*evaluations(model, processor, args.images, args.clicks), args.rounds)
    model.train()
    fast.kernel_for = lambda *_: folded_attention
    step, forgetful = training_steps(model, processor, args.batch)
    trained = in_turn(step, forgetful, 5 * args.rounds)
    counts = operations(step), operations(forgetful)
    rows = [
        row("training samples, 8 photographs: opened once, as bytes", sampled),
        row(f"evaluation, {args.images} images, {args.clicks} clicks: one encoding of an image", evaluated),
        row(f"encoder's training step, batch {args.batch}: constants kept", trained, counts),
    ]
    header = [args.model, "once, s", "each time, s", "once /", "operations, once / each time"]
    body = f"{table(header, rows)}\n\nMedians. Both give equal scores and losses. {torch.get_num_threads()} threads."
    publish(f"Work that is done once: {args.model}", body)


if __name__ == "__main__":
    main()
