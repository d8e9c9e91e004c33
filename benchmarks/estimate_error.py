"""How far `hf-sam-adapt estimate` is from the peak memory that a training then reports: twelve recipes.

python benchmarks/estimate_error.py
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from results import publish, table
from series import ROOT


RECIPES = {
    "sam_adapter": "--method sam_adapter",
    "sam_adapter, batch 8": "--method sam_adapter --batch_size 8",
    "sam_adapter, bf16": "--method sam_adapter --precision bf16",
    "sam_adapter, checkpointed": "--method sam_adapter --batch_size 8 --gradient_checkpointing",
    "conv_lora": "--method conv_lora",
    "conv_lora, batch 2 x 2": "--method conv_lora --batch_size 2 --gradient_accumulation_steps 2",
    "cwsam, 4 classes": "--method cwsam --dataset synthetic:landcover",
    "lora, batch 8": "--method lora --batch_size 8",
    "decoder, cached": "--method decoder --cache_embeddings --augment none --batch_size 8",
    "hq, boxes": "--method decoder --method_args.decoder hq --prompts box",
    "full": "--method full",
    "sam_adapter, 512 pixels": "--method sam_adapter --image_size 512 --batch_size 2",
}


def command(name: str, arguments: str) -> list[str]:
    dataset = [] if "--dataset" in arguments else ["--dataset", "synthetic:polyp"]
    return [sys.executable, "-m", "hf_sam_adapt.cli", name, *dataset, *shlex.split(arguments)]


def row(name: str, arguments: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        file, run = Path(folder) / "estimate.json", Path(folder) / "run"
        subprocess.run([*command("estimate", arguments), "--json", str(file)], cwd=ROOT, check=True)
        subprocess.run(
            [*command("train", arguments), "--max_steps", "10", "--eval_every", "5", "--output_dir", str(run)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        estimated = json.loads(file.read_text())["peak_memory_bytes"]
        measured = json.loads((run / "metrics.json").read_text())["train"]["peak_memory_bytes"]
    cells = [name, f"{estimated / 1e6:.0f}", f"{measured / 1e6:.0f}", f"{estimated / measured - 1:+.1%}"]
    print(cells, flush=True)
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args()
    rows = [row(name, RECIPES[name]) for name in args.recipes]
    note = "tiny, MB of 1e6 bytes beside the model; the training of 10 steps with two validations."
    publish("Estimated and measured memory", f"{table(['recipe', 'estimate', 'measured', 'error'], rows)}\n\n{note}")


if __name__ == "__main__":
    main()
