"""Conv-LoRA, its routers and controls on real domains, beside LoRA and the decoder alone: promptless IoU over seeds.

Every training has the same budget. `uniform` and `soft` are no trainings: they evaluate what `faithful` and the
default have learned with all experts averaged, or weighted. `1x1` mixes channels only, without neighbours and
resampling. Finished runs are not repeated, broken ones are resumed.

    python benchmarks/conv_lora_domains.py --data ../shared/data --out runs/real --extra "--max_steps 200"
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from results import publish, table
from series import ROOT, run, series_arguments, spread

from hf_sam_adapt.tuners.conv_lora.routing import normalised_entropy


DOMAINS = ("polyp", "camouflage", "road_aerial", "magnetic_tile")
METHODS = {
    "decoder": ("decoder", {}),
    "lora": ("lora", {}),
    "conv_lora": ("conv_lora", {}),
    "conv_lora_faithful": ("conv_lora", {"router": "faithful"}),
    "conv_lora_1x1": ("conv_lora", {"conv_kernel_size": 1, "expert_scales": [1] * 8}),
}
EVALUATIONS = {
    "conv_lora_faithful, uniform eval": ("conv_lora_faithful", "uniform"),
    "conv_lora, soft eval": ("conv_lora", "soft"),
}


def evaluate_as(trained: Path, routing: str, data: Path, args: argparse.Namespace) -> dict | None:
    """metrics.json of a trained run whose experts are combined as `routing` says."""
    folder = trained.with_name(f"{trained.name}-{routing}")
    scores = folder / "scores" / "metrics.json"
    if not scores.exists() and (trained / "metrics.json").exists() and not args.table:
        folder.mkdir(exist_ok=True)
        config = json.loads((trained / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"eval_routing": routing}))
        for name in ("adapter_model.safetensors", "preprocessor_config.json"):
            (folder / name).write_bytes((trained / name).read_bytes())
        command = [sys.executable, "-m", "hf_sam_adapt.cli", "evaluate", "--adapter", str(folder)]
        command += ["--dataset", str(data), "--output_dir", str(scores.parent)]
        print(shlex.join(command), flush=True)
        subprocess.run(command, cwd=ROOT, check=False)
    return json.loads(scores.read_text()) if scores.exists() else None


def gate_entropy(folder: Path) -> tuple[float, float] | None:
    """Normalised entropy of the experts' use over the last fifth of a run, mean over layers: taken, argmax."""
    states = sorted(
        folder.glob("checkpoints/step_*/state.json"), key=lambda path: json.loads(path.read_text())["step"]
    )
    rows = json.loads(states[-1].read_text())["experts"] if states else []
    if not rows:
        return None
    late = rows[-max(1, len(rows) // 5) :]
    found = []
    for kind in ("noisy", "clean"):
        layers = torch.tensor([row[kind] for row in late]).sum(0)
        found.append(statistics.mean(normalised_entropy(layer) for layer in layers))
    return found[0], found[1]


def main() -> None:
    args = series_arguments(__doc__, "runs/real", DOMAINS).parse_args()
    found: dict[tuple[str, str], list[float]] = {}
    constants: dict[str, float] = {}
    entropies: dict[str, list[tuple[float, float]]] = {}
    for seed in args.seeds:
        for domain in args.domains:
            for name, (method, fields) in METHODS.items():
                metrics = run(domain, name, seed, args, method=method, method_args=fields)
                if metrics is not None:
                    found.setdefault((domain, name), []).append(metrics["test"]["none"]["adapted"]["iou"])
                    constants[domain] = metrics["test"]["none"]["constant"]["iou"]
                    entropy = gate_entropy(args.out / f"{domain}-{name}-{seed}")
                    if entropy is not None:
                        entropies.setdefault(name, []).append(entropy)
            for name, (trained, routing) in EVALUATIONS.items():
                metrics = evaluate_as(args.out / f"{domain}-{trained}-{seed}", routing, args.data / domain, args)
                if metrics is not None:
                    found.setdefault((domain, name), []).append(metrics["test"]["none"]["adapted"]["iou"])
    if not found:
        sys.exit("no run has finished")
    rows = [["constant mask", *(f"{constants[d]:.3f}" if d in constants else "-" for d in args.domains), "-", "-"]]
    for name in (*METHODS, *EVALUATIONS):
        cells = [spread(found[d, name]) if (d, name) in found else "-" for d in args.domains]
        pairs = entropies.get(name)
        shown = [f"{statistics.mean(values):.2f}" for values in zip(*pairs)] if pairs else ["-", "-"]
        rows.append([name, *cells, *shown])
    header = ["method", *args.domains, "entropy, as taken", "entropy, argmax"]
    seeds = max(len(values) for values in found.values())
    note = "Promptless IoU on the test images at original size; mean ± standard deviation over the seeds (at most "
    note += (
        f"{seeds}). Entropy of the experts' use in the last fifth of the training, mean over layers and runs; 1 = all "
    )
    note += "alike."
    publish("Conv-LoRA on real domains", f"{table(header, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
