"""One attention layer of SAM's encoder, each kind: forward, forward and backward, peak memory, and error.

Layers of ViT-B and on a GPU of ViT-H too (heads of 80), global and windowed. On a CPU `folded` has two kernels,
`tiles` and `longer` queries and keys, of which `kernel_for` takes one by dtype and processor; both are measured. The
error is that of the output against a literal computation in fp64 (tests/reference_sam.py), relative, on a map of
24 x 24 tokens. Within a layer the kinds alternate in both orders.

    python benchmarks/attention.py
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from pathlib import Path

import torch
from results import publish, table
from step_cost import memory_peak
from torch import nn
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from hf_sam_adapt.sam.attention import fast


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference_sam import attention_with_relative_positions


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = {"tiles": fast.tiled_attention, "longer": fast.folded_attention}
KINDS = ("eager", "sdpa", *(["longer"] if DEVICE.type == "cuda" else KERNELS))
# Width, heads, side of the map, maps.
LAYERS = {
    "ViT-B, global 64²": (768, 12, 64, 1),
    "ViT-B, 25 windows of 14²": (768, 12, 14, 25),
    "ViT-B, global 32²": (768, 12, 32, 1),
}
GPU_LAYERS = {
    "ViT-B, 4 x global 64²": (768, 12, 64, 4),
    "ViT-B, 100 windows of 14²": (768, 12, 14, 100),
    "ViT-H, 4 x global 64²": (1280, 16, 64, 4),
    "ViT-H, 100 windows of 14²": (1280, 16, 14, 100),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def build(width: int, heads: int, side: int) -> SamVisionEncoder:
    """An encoder of one block, whose attention over all of the map has random weights, also of the positions."""
    config = SamVisionConfig(
        hidden_size=width,
        num_attention_heads=heads,
        image_size=16 * side,
        patch_size=16,
        num_hidden_layers=1,
        global_attn_indexes=[0],
        attn_implementation="sdpa",
    )
    encoder = SamVisionEncoder(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in encoder.layers[0].attn.parameters():
        nn.init.normal_(parameter, std=0.05, generator=generator)
    return encoder.to(DEVICE).requires_grad_(False)


def choose(encoder: nn.Module, kind: str) -> None:
    """Let the encoder compute its attention in a way of `KINDS`."""
    if kind in KERNELS:
        fast.kernel_for = lambda device, dtype: KERNELS[kind]
    fast.use_fast_attention(encoder, "folded" if kind in KERNELS else kind)


def measure(attention: nn.Module, maps: torch.Tensor, backward: bool) -> tuple[float, int]:
    """Seconds of a forward, or of a forward and backward, and the bytes at its peak beyond what was there."""
    if DEVICE.type == "cpu" and sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # what is freed but kept would hide what is taken
    before = memory_peak(DEVICE, reset=True)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
    start = time.perf_counter()
    with torch.set_grad_enabled(backward):
        output = attention(maps.requires_grad_(backward))[0]
        if backward:
            output.backward(output.detach())
            maps.grad = None
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, memory_peak(DEVICE) - before


def compare(name: str, precision: str, rounds: int) -> list[list[str]]:
    """Rows of a layer."""
    width, heads, side, count = (LAYERS | GPU_LAYERS)[name]
    encoder = build(width, heads, side).to(DTYPES[precision])
    attention = encoder.layers[0].attn
    maps = torch.randn(count, side, side, width, device=DEVICE, dtype=DTYPES[precision])
    times: dict[tuple[str, bool], list[float]] = {(kind, back): [] for kind in KINDS for back in (False, True)}
    peaks: dict[tuple[str, bool], int] = dict.fromkeys(times, 0)
    for number in range(rounds + 1):
        for kind in KINDS if number % 2 else KINDS[::-1]:
            choose(encoder, kind)
            for backward in (False, True):
                seconds, peak = measure(attention, maps, backward)
                if number:
                    times[kind, backward].append(seconds)
                    peaks[kind, backward] = max(peaks[kind, backward], peak)
    rows = []
    for kind in KINDS:
        cells = [f"{name}, {precision}", kind]
        for backward in (False, True):
            middle, theirs = (statistics.median(times[which, backward]) for which in (kind, "sdpa"))
            cells += [f"{1000 * middle:.1f}", f"{middle / theirs:.2f}", f"{peaks[kind, backward] / 2**20:.0f}"]
        rows.append([*cells, f"{error(width, heads, kind, precision):.1e}"])
    return rows


@torch.no_grad()
def error(width: int, heads: int, kind: str, precision: str) -> float:
    """Norm of the output's error divided by the output's norm."""
    encoder, tokens = build(width, heads, 24), torch.randn(24, 24, width, device=DEVICE)
    attention = encoder.to(DTYPES[precision]).layers[0].attn
    rounded = tokens.to(DTYPES[precision])
    choose(encoder, kind)
    found = attention(rounded[None])[0][0].double().cpu()
    exact = attention_with_relative_positions(attention.double().cpu(), rounded.double().cpu())
    return ((found - exact).norm() / exact.norm()).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="measured rounds (default: 3, on a GPU 20)")
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS | GPU_LAYERS))
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    args = parser.parse_args()
    cuda = DEVICE.type == "cuda"
    names = args.layers or (LAYERS | GPU_LAYERS if cuda else LAYERS)
    rows = []
    for precision in args.precisions:
        for name in names:
            rows += compare(name, precision, args.rounds or (20 if cuda else 3))
            print(*rows[-len(KINDS) :], sep="\n", file=sys.stderr, flush=True)
    header = [
        "layer",
        "kind",
        "forward, ms",
        "/ sdpa",
        "peak, MiB",
        "with backward, ms",
        "/ sdpa",
        "peak, MiB",
        "error",
    ]
    note = (
        f"{torch.get_num_threads()} threads. Medians; the layer's projections included, its input wants a gradient, "
    )
    note += "its weights none. Peak: beyond what was in use before."
    publish("Attention of SAM's encoder", f"{table(header, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
