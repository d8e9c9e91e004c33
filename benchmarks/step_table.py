"""A training step of each method beside transformers' SDPA with peft's LoRA: forward, step and peak memory in one run.

"transformers + peft" is a SAM as transformers builds it, with peft's LoRA (r=8, alpha 16, on qkv). Hiera is SAM 2's
encoder. All others run as this package trains them: `use_fast_attention`, and under bf16 frozen matrices in bf16.
Every variant trains the same decoder parts, promptless, with fused AdamW; random weights, no download. On a CPU each
case is a process of its own; on a GPU, cases begin until the time is over.

    python benchmarks/step_table.py
    python benchmarks/step_table.py --models vit_b --sizes 1024 --batches 1 --precisions bf16
    python benchmarks/step_table.py --models hiera_t hiera_s hiera_b+ hiera_l vit_b --title "Training step of SAM 2"

With `--add_to FILE` a table is filled over several calls.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from hiera import HIERAS, build_hiera, hiera_operations
from results import publish, table
from step_cost import memory_peak
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, SamConfig, SamModel

from hf_sam_adapt.inference.forward import encode, segment
from hf_sam_adapt.inference.loading import build_model
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.sam.attention import use_fast_attention
from hf_sam_adapt.sam.families import find_vision_encoder
from hf_sam_adapt.sam.gradient_checkpointing import enable_checkpointing
from hf_sam_adapt.sam.tiny import load_tiny_sam
from hf_sam_adapt.training.frozen_weights import cast_frozen_matrices
from hf_sam_adapt.tuners.conv_lora import balance_loss


BASELINE = "transformers + peft"
# Method and its arguments; all with the same trained decoder.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    BASELINE: ("lora", {}),
    "lora": ("lora", {}),
    "lora, selective": ("lora", {}),
    "lora, checkpointed": ("lora", {}),
    "conv_lora": ("conv_lora", {}),
    "sam_adapter": ("sam_adapter", {}),
    "cwsam": ("cwsam", {"decoder": "full"}),
}
CHECKPOINTING: dict[str, Literal[True, "selective"]] = {"lora, selective": "selective", "lora, checkpointed": True}
# Width, layers, heads, global layers.
BACKBONES = {
    "vit_b": (768, 12, 12, [2, 5, 8, 11]),
    "vit_l": (1024, 24, 16, [5, 11, 17, 23]),
    "vit_h": (1280, 32, 16, [7, 15, 23, 31]),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TITLE = "Training step beside transformers and peft"


@dataclass(frozen=True)
class Case:
    """One row: a variant on a backbone at an input size."""

    model: str
    size: int
    batch: int
    precision: str
    variant: str

    @property
    def setting(self) -> str:
        return f"{self.model} {self.size}², batch {self.batch}, {self.precision}"


def build_sam(name: str, size: int) -> PreTrainedModel:
    """`tiny`, or a SAM with random weights of one of the published shapes."""
    if name == "tiny":
        return load_tiny_sam()[0]
    sam = build_hiera(name, size) if name in HIERAS else build_vit(name, size)
    # transformers initialises with a deviation of 1e-10: denormal products would distort the times on a CPU.
    generator = torch.Generator().manual_seed(0)
    for parameter in sam.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return sam


def build_vit(name: str, size: int) -> SamModel:
    """One of `BACKBONES`."""
    width, layers, heads, global_layers = BACKBONES[name]
    vision = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": heads, "image_size": size}
    prompts = {"image_size": size, "image_embedding_size": size // 16}
    config = SamConfig(
        vision_config={**vision, "mlp_dim": 4 * width, "global_attn_indexes": global_layers},
        prompt_encoder_config=prompts,
    )
    return SamModel(config)


def build(case: Case) -> nn.Module:
    """The adapted model of a case on the device."""
    torch.manual_seed(0)
    method, method_args = VARIANTS[case.variant]
    sam = build_sam(case.model, case.size)
    if case.variant != BASELINE:
        use_fast_attention(sam)
    model = build_model(method, dict(method_args), sam)
    if case.variant != BASELINE and case.precision == "bf16":
        cast_frozen_matrices(find_vision_encoder(model), torch.bfloat16)
    if case.variant in CHECKPOINTING:
        enable_checkpointing(model, CHECKPOINTING[case.variant])
    return model.to(DEVICE)


def autocast(case: Case) -> AbstractContextManager:
    return torch.autocast(DEVICE.type, torch.bfloat16, enabled=case.precision == "bf16")


def timed(function: Callable[[], Any], runs: int) -> list[float]:
    """Seconds of each run after one that is not counted."""
    seconds = []
    for _ in range(runs + 1):
        begin = time.perf_counter()
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


def measure(case: Case, runs: int) -> dict[str, Any]:
    """Seconds of the encoder's forward without gradients and of a step, and both peaks in bytes.

    On a CPU peaks are what is resident beyond what was before, on CUDA all that is allocated.
    """
    model = build(case)
    pixels = torch.randn(case.batch, 3, case.size, case.size, device=DEVICE)
    side = case.size // 4
    masks = (torch.rand(case.batch, 1, side, side, device=DEVICE) > 0.5).float()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def forward() -> None:
        with torch.no_grad(), autocast(case):
            encode(model, pixels)

    def step() -> None:
        with autocast(case):
            logits = torch.stack(segment(model, pixels, [Prompt("none")] * case.batch))  # (B, 1, h, w)
        loss, own_loss = F.binary_cross_entropy_with_logits(logits.float(), masks), balance_loss(model)
        (loss if own_loss is None else loss + own_loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    found = {}
    for name, function in (("forward", forward), ("step", step)):
        model.train(name == "step")
        gc.collect()
        before = memory_peak(DEVICE, reset=True)
        found[name] = timed(function, runs)
        found[f"{name}_bytes"] = memory_peak(DEVICE) - before
    if case.variant == "lora":
        found["profile"] = shares(forward)
    return found


def shares(function: Callable[[], Any]) -> dict[str, float]:
    """Where the time of the forward goes: share of each of the six costliest operations."""
    from torch.profiler import ProfilerActivity, profile

    cuda = DEVICE.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        function()
        if cuda:
            torch.cuda.synchronize()
    own = {e.key: e.self_device_time_total if cuda else e.self_cpu_time_total for e in profiler.key_averages()}
    total = sum(own.values())
    costly = sorted(own, key=own.__getitem__, reverse=True)[:6]
    return {name[:60]: own[name] / total for name in costly}


def operations(model: str, size: int) -> tuple[float, float]:
    """Operations of an image's forward through the encoder's blocks: of the linear layers, and of the attention."""
    if model in HIERAS:
        with torch.device("meta"):
            return hiera_operations(build_hiera(model, size))
    if model == "tiny":
        vision = load_tiny_sam()[0].config.vision_config
        width, layers, hidden = vision.hidden_size, vision.num_hidden_layers, vision.mlp_dim
        global_layers, window = vision.global_attn_indexes, vision.window_size
    else:
        width, layers, _, global_layers = BACKBONES[model]
        hidden, window = 4 * width, 14
    grid, linear, attention = size // 16, 0.0, 0.0
    for layer in range(layers):
        side = grid if layer in global_layers else window
        tokens = (-(-grid // side) * side) ** 2  # with padding
        linear += 2 * tokens * 4 * width**2 + 2 * grid**2 * 2 * width * hidden
        attention += 4 * tokens * side**2 * width
    return linear, attention


def matrix_rate(precision: str) -> float:
    """Operations a second of the product (16384, 1024) x (1024, 4096)."""
    a = torch.randn(16384 if DEVICE.type == "cuda" else 4096, 1024, device=DEVICE, dtype=DTYPES[precision])
    b = torch.randn(1024, 4096, device=DEVICE, dtype=DTYPES[precision])

    def products() -> None:
        for _ in range(10):
            a @ b

    return 10 * 2 * a.shape[0] * 1024 * 4096 / min(timed(products, 3))


def run(case: Case, runs: int) -> dict[str, Any] | None:
    """`measure`, on a CPU in a fresh process; None where the memory does not suffice."""
    if DEVICE.type == "cuda":
        try:
            return measure(case, runs)
        except torch.OutOfMemoryError:
            return None
        finally:
            gc.collect()
            torch.cuda.empty_cache()
    command = [sys.executable, __file__, "--runs", str(runs), "--measure", json.dumps(vars(case))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def merged(repeats: list[dict[str, Any]]) -> dict[str, Any]:
    """Median times and largest peaks of several measurements of a case."""
    return {
        **repeats[-1],
        **{name: statistics.median(s for r in repeats for s in r[name]) for name in ("forward", "step")},
        **{name: max(r[name] for r in repeats) for name in ("forward_bytes", "step_bytes")},
    }


def compare(settings: list[tuple[str, int, int, str]], variants: list[str], args: argparse.Namespace):
    """Measurements by case; the order of the variants alternates, so that a drifting machine favours none."""
    end = time.monotonic() + 60 * args.minutes
    found: dict[Case, list[dict[str, Any]]] = {}
    if args.add_to is not None and args.add_to.exists():
        for line in args.add_to.read_text(encoding="utf-8").splitlines():
            case, result = json.loads(line)
            found.setdefault(Case(**case), []).append(result)
    for setting in settings:
        for repeat in range(args.repeats):
            for variant in variants if repeat % 2 == 0 else variants[::-1]:
                if time.monotonic() > end:
                    print(f"time is over before {setting} {variant}", file=sys.stderr)
                    continue
                case = Case(*setting, variant)
                result = run(case, args.runs)
                print(case, result, file=sys.stderr, flush=True)
                if result is None:
                    continue
                found.setdefault(case, []).append(result)
                if args.add_to is not None:
                    with args.add_to.open("a", encoding="utf-8") as file:
                        file.write(json.dumps([vars(case), result]) + "\n")
    return {case: merged(repeats) for case, repeats in found.items()}


def rows(found: dict[Case, dict[str, Any]]) -> Iterator[list[str]]:
    """Cells of the table."""
    for case, own in found.items():
        cells = [case.setting, case.variant, f"{own['forward']:.3f}", f"{own['step']:.3f}"]
        cells += [f"{case.batch / own['step']:.3g}", f"{own['step_bytes'] / 2**20:.0f}"]
        baseline = found.get(Case(**{**vars(case), "variant": BASELINE}))
        for name in ("forward", "step", "forward_bytes", "step_bytes"):
            cells.append("-" if baseline is None else f"{own[name] / (baseline[name] or 1):.2f}")
        lora = found.get(Case(**{**vars(case), "variant": "lora"}))
        cells.append("-" if lora is None else f"{own['step'] / lora['step']:.2f}")
        yield cells


def floors(found: dict[Case, dict[str, Any]]) -> Iterator[list[str]]:
    """How far the LoRA of this package is from what its operations take at the measured rate of matrix products."""
    rates = {precision: matrix_rate(precision) for precision in {case.precision for case in found}}
    for case, own in found.items():
        if case.variant != "lora":
            continue
        linear, attention = operations(case.model, case.size)
        rate = rates[case.precision]
        # Backward: the frozen linear layers once more for their inputs, attention twice.
        forward, step = case.batch * (linear + attention) / rate, case.batch * (2 * linear + 3 * attention) / rate
        profile = ", ".join(f"{name} {share:.0%}" for name, share in own["profile"].items())
        shares = [f"{forward:.3f}", f"{forward / own['forward']:.0%}", f"{step:.3f}", f"{step / own['step']:.0%}"]
        yield [case.setting, f"{rate / 1e12:.3g}", *shares, profile]


def plot(found: dict[Case, dict[str, Any]], path: Path) -> None:
    """Bars of step time and peak memory as shares of the baseline's; nothing where matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed: no plot", file=sys.stderr)
        return
    pairs = [(case, found.get(Case(**{**vars(case), "variant": BASELINE}))) for case in found]
    pairs = [(case, base) for case, base in pairs if base is not None and case.variant != BASELINE]
    if not pairs:
        return
    figure = Figure(figsize=(10, 1 + 0.3 * len(pairs)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    names = [f"{case.setting}: {case.variant}" for case, _ in pairs]
    for axes, key, title in ((left, "step", "step time"), (right, "step_bytes", "peak memory")):
        axes.barh(names, [found[case][key] / (base[key] or 1) for case, base in pairs])
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xlabel(f"{title} / {BASELINE}")
        axes.invert_yaxis()
    right.invert_yaxis()
    figure.savefig(path, dpi=120)


def settings_of(args: argparse.Namespace) -> list[tuple[str, int, int, str]]:
    """Model, size, batch and precision of every comparison that was asked for, or that suits the device."""
    if args.models or args.sizes or args.batches or args.precisions:
        return [
            (model, 256 if model == "tiny" else size, batch, precision)
            for model in args.models or ["vit_b"]
            for size in ([256] if model == "tiny" else args.sizes or [1024])
            for batch in args.batches or [1]
            for precision in args.precisions or ["bf16"]
        ]
    if DEVICE.type == "cpu":
        return [("tiny", 256, 4, "fp32"), ("vit_b", 1024, 1, "bf16"), ("vit_b", 1024, 1, "fp32")]
    first = [("vit_b", 1024, 4, "bf16"), ("vit_h", 1024, 1, "bf16"), ("tiny", 256, 4, "bf16")]
    more = [("vit_b", 1024, 8, "bf16"), ("vit_b", 1024, 1, "bf16"), ("vit_b", 512, 8, "bf16")]
    last = [
        ("vit_h", 1024, 4, "bf16"),
        ("vit_l", 1024, 4, "bf16"),
        ("vit_h", 512, 4, "bf16"),
        ("vit_l", 512, 8, "bf16"),
    ]
    return first + more + last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["tiny", *BACKBONES, *HIERAS])
    parser.add_argument("--sizes", nargs="+", type=int, help="side of the input (default: 1024)")
    parser.add_argument("--batches", nargs="+", type=int)
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES))
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--runs", type=int, help="timed steps of a measurement (default: 2, on a GPU 10)")
    parser.add_argument("--repeats", type=int, default=1, help="measurements of each case, in alternating order")
    parser.add_argument("--minutes", type=float, default=60, help="no measurement begins later (default: 60)")
    parser.add_argument("--add_to", type=Path, help="file that keeps measurements; those in it are in the table, too")
    parser.add_argument("--title", default=TITLE, help=f"of the section in RESULTS.md (default: {TITLE})")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.runs = args.runs or (10 if DEVICE.type == "cuda" else 2)
    if args.measure:
        print(json.dumps(measure(Case(**json.loads(args.measure)), args.runs)))
        return
    found = compare(settings_of(args), args.variants, args)
    if args.title == TITLE:
        plot(found, Path(__file__).with_name("step_table.png"))
    header = ["setting", "variant", "forward, s", "step, s", "images/s", "peak, MiB"]
    header += ["forward /", "step /", "forward memory /", "step memory /", "step / lora"]
    note = f"{torch.get_num_threads()} threads. Medians. Forward: the encoder without gradients. `/`: divided by "
    note += f'"{BASELINE}". Peak: on a CPU what was resident beyond what was before the first step, on a GPU all that '
    note += "is allocated."
    floor = table(
        [
            "setting",
            "measured 10¹² op/s",
            "floor, forward, s",
            "reached",
            "floor, step, s",
            "reached",
            "forward goes to",
        ],
        list(floors(found)),
    )
    publish(args.title, f"{table(header, list(rows(found)))}\n\n{note}\n\n{floor}")


if __name__ == "__main__":
    main()
