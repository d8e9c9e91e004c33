"""Series of trainings that are compared: each is `accelerate launch recipes/train.py` in a folder of its own.

Finished runs are not repeated and broken ones are resumed, so a series can be filled over several calls.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_sam_adapt.inference.loading import load_adapted, load_base


ROOT = Path(__file__).parents[1]
# The recipes of the domains differ in data and output folder, which the command line gives.
COMMON_RECIPE = ROOT / "recipes" / "polyp_sam_adapter.yaml"


def series_arguments(description: str | None, out: str, domains: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The arguments of every series; those of real data where `domains` names its folders."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if domains:
        parser.add_argument("--data", type=_resolved, required=True, help="folder with a folder for each domain")
        parser.add_argument("--domains", nargs="+", default=domains)
    parser.add_argument("--out", type=_resolved, default=_resolved(out), help="folder of the runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--extra", default="", help='flags for every training, such as "--max_steps 300"')
    parser.add_argument("--table", action="store_true", help="train nothing, only make the table of what there is")
    return parser


def run(
    domain: str,
    name: str,
    seed: int,
    args: argparse.Namespace,
    method: str | None = None,
    method_args: dict[str, Any] | None = None,
    keys: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Trains unless it is done; returns metrics.json, or None if the training failed.

    Args:
        name: of the run, and of the method unless `method` names that.
        keys: other keys of the recipe; `dataset` in place of the domain's folder.
    """
    folder, method = args.out / f"{domain}-{name}-{seed}", method or name
    if not (folder / "metrics.json").exists() and not args.table:
        command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"]
        command += ["--num_cpu_threads_per_process", os.environ.get("OMP_NUM_THREADS", str(os.cpu_count()))]
        recipe = ROOT / f"recipes/{domain}_sam_adapter.yaml"
        command += ["recipes/train.py", "--config", str(recipe if recipe.exists() else COMMON_RECIPE)]
        if "dataset" not in (keys := keys or {}):
            command += ["--dataset", str(args.data / domain)]
        for key, value in keys.items():
            texts = value if isinstance(value, list) else [value]
            command += [f"--{key}", *(text if isinstance(text, str) else json.dumps(text) for text in texts)]
        command += ["--method", method, "--seed", str(seed)]
        command += ["--output_dir", str(folder), *shlex.split(args.extra)]
        if method != "sam_adapter" and "method_args" not in keys:
            command += ["--method_args", json.dumps(method_args or {})]
        if (folder / "recipe.yaml").exists():
            command += ["--resume_from_checkpoint", "latest"]
        print(shlex.join(command), flush=True)
        subprocess.run(command, cwd=ROOT, check=False)
    path = folder / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def model_of(name: str, domain: str, seed: int, args: argparse.Namespace) -> tuple[Any, Any, str, dict[str, Any]]:
    """Model and processor of a run, or of `zero-shot` SAM; the variant that its scores stand under, and the keyword of
    the evaluations that leaves the other one out."""
    if name == "zero-shot":
        return *load_base("tiny"), "zero_shot", {"adapted": False}
    loaded = load_adapted(str(args.out / f"{domain}-{name}-{seed}"))
    return loaded.model, loaded.processor, "adapted", {"zero_shot": False}


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


COST = ["images/s", "peak memory, MiB", "trainable parameters", "adapter bytes"]


def cost(runs: Sequence[dict[str, Any]]) -> list[str]:
    """What the trainings of one method cost, as `COST` names it: medians, `-` where no run says it."""
    found = [one["train"] for one in runs]
    speeds = [one["images_per_second"] for one in found if one["images_per_second"] is not None]
    return [
        f"{statistics.median(speeds):.1f}" if speeds else "-",
        f"{statistics.median(one['peak_memory_bytes'] for one in found) / 2**20:.0f}",
        f"{found[0]['trainable_parameters']:,}",
        f"{found[0]['adapter_bytes']:,}",
    ]


def _resolved(path: str) -> Path:
    # The trainings run in the repository.
    return Path(path).resolve()
