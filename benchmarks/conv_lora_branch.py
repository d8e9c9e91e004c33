"""Conv-LoRA's expert branch, forward and backward, against the published computation: time, kernels, synchronisations.

The reference (tests/reference_conv_lora.py) upsamples, convolves and downsamples in a loop over the experts that are
hit, as the official code does, without that code's detour through logarithms. Both get the same z and the same experts
in every round, each expert equally often over the rounds, as a training draws them; they alternate in both orders.
r = 3, eight experts, fp32.

    python benchmarks/conv_lora_branch.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from results import publish, table
from torch.utils._python_dispatch import TorchDispatchMode

from hf_sam_adapt.tuners.conv_lora.convolution import expert_convolution


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import reference_conv_lora as reference


SCALES = tuple(float(scale) for scale in range(1, 9))
SETTINGS = {
    "windows 25 x 14^2": (25, 14),
    "windows 100 x 14^2": (100, 14),
    "global 64^2": (1, 64),
    "4 x global 64^2": (4, 64),
}
NAMES = ("published", "fast")


class OperationCount(TorchDispatchMode):
    """Counts dispatched operations that are more than a view, and those that make a GPU wait for the host."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero")

    def __init__(self):
        super().__init__()
        self.kernels = self.waits = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.waits += name in self.WAITS
        self.kernels += not (
            func.is_view or name in ("empty", "empty_like", "empty_strided", "_unsafe_view", "detach")
        )
        return func(*args, **(kwargs or {}))


def published(z, index, weight, bias):
    return reference.mixture(z, index, weight, bias)


def fast(z, index, weight, bias):
    return expert_convolution(z, index, weight, bias, SCALES)


def inputs(samples: int, side: int, device: str) -> tuple[list[torch.Tensor], torch.Tensor]:
    """z, weight and bias with gradients, and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((samples, side, side, 3), (8, 3, 3, 3, 3), (8, 3))
    tensors = [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    return tensors, torch.randn(shapes[0], generator=generator).to(device)


def step(function: Callable, tensors: list[torch.Tensor], upstream: torch.Tensor, index: torch.Tensor) -> float:
    """Seconds of a forward and backward."""
    if upstream.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function(tensors[0], index, *tensors[1:]).backward(upstream)
    if upstream.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(samples: int, side: int, rounds: int, device: str) -> list[str]:
    """Cells of a row: mean milliseconds of both, the ratio of all rounds together and of each, operations of both."""
    tensors, upstream = inputs(samples, side, device)
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    generator = torch.Generator().manual_seed(1)
    order = torch.cat([torch.randperm(8, generator=generator) for _ in range((rounds + 8) * samples // 8 + 1)])
    for number, index in enumerate(order[: (rounds + 8) * samples].view(-1, samples)):
        index = index.to(device)
        for name in NAMES if number % 2 else NAMES[::-1]:
            seconds[name].append(step(globals()[name], tensors, upstream, index))
    # The first eight rounds warm up every expert.
    totals = {name: sum(values[8:]) for name, values in seconds.items()}
    counts = {}
    for name in NAMES:
        with OperationCount() as count:
            step(globals()[name], tensors, upstream, torch.arange(samples, device=device) % 8)
        counts[name] = f"{count.kernels} / {count.waits}"
    ratios = [slow / quick for slow, quick in zip(seconds["published"][8:], seconds["fast"][8:])]
    low, middle, high = statistics.quantiles(ratios)
    return [
        *(f"{1000 * totals[name] / rounds:.2f}" for name in NAMES),
        f"{totals['published'] / totals['fast']:.1f}",
        f"{middle:.1f} ({low:.1f} to {high:.1f})",
        *(counts[name] for name in NAMES),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=80, help="measured rounds, a multiple of 8 (default: 80)")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [[name, *compare(samples, side, args.rounds, device)] for name, (samples, side) in SETTINGS.items()]
    header = ["input", "published, ms", "fast, ms", "published / fast, all rounds", "of a round (quartiles)"]
    header += ["published: kernels / waits", "fast: kernels / waits"]
    note = (
        f"{torch.get_num_threads()} threads. Mean of {args.rounds} rounds, each expert equally often. Kernels: "
        "operations that are more than a view, forward and backward; waits: those for which a GPU waits for the host."
    )
    publish("Conv-LoRA's branch against the published computation", f"{table(header, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
