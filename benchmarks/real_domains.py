"""SAM-Adapter, decoder, LoRA and full fine-tuning on real domains: promptless IoU over seeds, and what it costs.

Each run is `accelerate launch recipes/train.py` on a committed recipe, in a folder of its own under --out. Finished
runs are not repeated and broken ones are resumed, so the table can be filled over several calls.

    python benchmarks/real_domains.py --data ../shared/data --out runs/real
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from results import publish, table


ROOT = Path(__file__).parents[1]
# The recipes of the domains differ in data and output folder, which the command line gives.
COMMON_RECIPE = ROOT / "recipes" / "polyp_sam_adapter.yaml"
METHODS = ("sam_adapter", "decoder", "lora", "full")
DOMAINS = ("polyp", "camouflage", "shadow")


def run(
    domain: str,
    name: str,
    seed: int,
    args: argparse.Namespace,
    method: str | None = None,
    method_args: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Trains unless it is done; returns metrics.json, or None if the training failed.

    Args:
        name: of the run, and of the method unless `method` names that.
    """
    folder, method = args.out / f"{domain}-{name}-{seed}", method or name
    if not (folder / "metrics.json").exists() and not args.table:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
        command += ["--num_cpu_threads_per_process", os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))]
        recipe = ROOT / f"recipes/{domain}_sam_adapter.yaml"
        command += ["recipes/train.py", "--config", str(recipe if recipe.exists() else COMMON_RECIPE)]
        command += ["--dataset", str(args.data / domain), "--method", method, "--seed", str(seed)]
        command += ["--output_dir", str(folder), *shlex.split(args.extra)]
        if method != "sam_adapter":
            command += ["--method_args", json.dumps(method_args or {})]
        if (folder / "recipe.yaml").exists():
            command += ["--resume_from_checkpoint", "latest"]
        print(shlex.join(command), flush=True)
        subprocess.run(command, cwd=ROOT, check=False)
    path = folder / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def row(domain: str, method: str, runs: list[dict[str, Any]]) -> list[str]:
    """Mean ± standard deviation over the seeds; costs as medians."""
    scores = [one["test"]["none"] for one in runs]
    cost = [one["train"] for one in runs]
    speeds = [one["images_per_second"] for one in cost if one["images_per_second"] is not None]
    return [
        domain,
        method,
        spread([one["adapted"]["iou"] for one in scores]),
        spread([one["adapted"]["dice"] for one in scores]),
        f"{scores[0]['zero_shot']['iou']:.3f}",
        f"{statistics.mean(one['constant']['iou'] for one in scores):.3f}",
        str(len(runs)),
        f"{statistics.median(speeds):.1f}" if speeds else "-",
        f"{statistics.median(one['peak_memory_bytes'] for one in cost) / 2**20:.0f}",
        f"{cost[0]['trainable_parameters']:,}",
        f"{cost[0]['adapter_bytes']:,}",
    ]


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each domain")
    parser.add_argument("--out", type=Path, default=Path("runs/real"), help="folder of the runs")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--domains", nargs="+", default=DOMAINS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--extra", default="", help='flags for every training, such as "--max_steps 300"')
    parser.add_argument("--table", action="store_true", help="train nothing, only make the table of what there is")
    args = parser.parse_args()
    args.data, args.out = args.data.resolve(), args.out.resolve()
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    missing = []
    # Seed by seed, so that an interrupted series still compares all methods.
    for seed in args.seeds:
        for domain in args.domains:
            for method in args.methods:
                metrics = run(domain, method, seed, args)
                if metrics is None:
                    missing.append(f"{domain}-{method}-{seed}")
                else:
                    found[domain, method].append(metrics)
    if not found:
        sys.exit("no run has finished")
    rows = [row(domain, m, found[domain, m]) for domain in args.domains for m in args.methods if found[domain, m]]
    header = ["domain", "method", "adapted IoU", "adapted Dice", "zero-shot IoU", "constant IoU", "seeds"]
    header += ["images/s", "peak memory, MiB", "trainable parameters", "adapter bytes"]
    note = "Promptless, on the test images at original size; mean ± standard deviation over the seeds."
    note += f" Missing: {', '.join(missing)}." if missing else ""
    publish("Real domains", f"{table(header, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
