"""The training step of our methods against peft LoRA (r=8, alpha 16, on qkv) on the same SAM: time and peak memory.

All train the same decoder parts, promptless, with AdamW. Each measurement is a process of its own; the methods
alternate in both orders, so that a machine that grows slower or faster favours neither. Random weights, no download.

    python benchmarks/step_cost.py --repeats 3
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from results import publish, table
from torch import nn
from torch.nn import functional as F
from transformers import SamConfig, SamModel

from hf_sam_adapt.inference.forward import segment
from hf_sam_adapt.inference.loading import build_model, load_base
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.tuners.conv_lora import balance_loss


METHODS = ("sam_adapter", "conv_lora", "lora")
SETTINGS = {"tiny": {"batch": 4, "steps": 12}, "vit_b": {"batch": 1, "steps": 3}}


def build_sam(name: str) -> SamModel:
    """`tiny`, or ViT-B at 1024 x 1024 with random weights."""
    if name == "tiny":
        return load_base("tiny")[0]
    sam = SamModel(SamConfig())
    # transformers initialises with a deviation of 1e-10: denormal products would distort the times on a CPU.
    generator = torch.Generator().manual_seed(0)
    for parameter in sam.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return sam


def measure(name: str, method: str, precision: str) -> dict[str, Any]:
    """Trains a few steps and returns `seconds` (a step each) and `peak_bytes` above what was there before training.

    On CUDA `peak_bytes` is the whole allocated peak, weights included.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model = build_model(method, {}, build_sam(name)).to(device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    batch, size = SETTINGS[name]["batch"], model.config.vision_config.image_size
    images = torch.randn(batch, 3, size, size, device=device)
    masks = (torch.rand(batch, 1, size // 4, size // 4, device=device) > 0.5).float()
    start = memory_peak(device, reset=True)
    seconds = []
    for _ in range(SETTINGS[name]["steps"] + 2):
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = torch.stack(segment(model, images, [Prompt("none")] * batch))  # (B, 1, h, w)
        loss, own_loss = F.binary_cross_entropy_with_logits(logits.float(), masks), balance_loss(model)
        (loss if own_loss is None else loss + own_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    # The first steps allocate and choose kernels.
    return {"seconds": seconds[2:], "peak_bytes": memory_peak(device) - start}


def memory_peak(device: torch.device, reset: bool = False) -> int:
    """Peak memory in bytes; with `reset` it starts anew from what is in use, which is returned (0 on CUDA)."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return 0 if reset else torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():  # no Linux: the peak of the whole life of the process
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(kilobytes) * 1024


def run(name: str, method: str, precision: str) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--measure", method, "--models", name, "--precision", precision]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def compare(name: str, methods: list[str], precision: str, repeats: int) -> list[list[str]]:
    """Rows of the table for one model: medians, and the ratios of neighbouring runs (median, smallest to largest)."""
    seconds: dict[str, list[float]] = {method: [] for method in methods}
    memory: dict[str, list[float]] = {method: [] for method in methods}
    for repeat in range(repeats):
        for method in methods if repeat % 2 == 0 else reversed(methods):
            found = run(name, method, precision)
            print(name, method, found, file=sys.stderr, flush=True)
            seconds[method].append(statistics.median(found["seconds"]))
            memory[method].append(found["peak_bytes"])
    settings = f"{name}, batch {SETTINGS[name]['batch']}, {'fp32' if precision == 'no' else precision}"
    return [
        [
            settings,
            method,
            f"{statistics.median(seconds[method]):.4f}",
            f"{statistics.median(memory[method]) / 2**20:.0f}",
            ratio(seconds[method], seconds["lora"]),
            ratio(memory[method], memory["lora"]),
        ]
        for method in methods
    ]


def ratio(values: list[float], references: list[float]) -> str:
    ratios = [value / reference for value, reference in zip(values, references)]
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="autocast (default: no)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="lora is always measured too")
    parser.add_argument("--repeats", type=int, default=4, help="processes for each method (default: 4)")
    parser.add_argument("--measure", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.models[0], args.measure, args.precision)))
        return
    methods = [*(method for method in args.methods if method != "lora"), "lora"]
    rows = [row for name in args.models for row in compare(name, methods, args.precision, args.repeats)]
    header = ["model", "method", "s / step (median)", "peak memory, MiB", "time / lora", "memory / lora"]
    note = "Ratios of neighbouring processes: median (smallest to largest). Peak memory: on a CPU above what was "
    note += "resident before the first step, on a GPU all that is allocated."
    publish(f"Training step of {' and '.join(args.models)} against LoRA", f"{table(header, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
