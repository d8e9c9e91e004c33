"""`tiny` beside `tiny2`, a SAM 2 of its size pre-trained alike: both adapted to real domains, with learning curves.

`tiny2` is not shipped: `recipes/pretrain_tiny.py --architecture tiny2` makes it. Finished runs are not repeated and
broken ones are resumed.

    python benchmarks/tiny2.py --data ../shared/data --tiny2 runs/tiny2/model --extra "--max_steps 300 --num_workers 0"
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from results import publish, table
from series import COST, cost, run, series_arguments, spread


DOMAINS = ("polyp", "shadow")
METHODS = ("sam_adapter", "lora")
Runs = dict[tuple[str, str, str], list[dict[str, Any]]]  # by domain, model and method


def row(place: tuple[str, str, str], runs: list[dict[str, Any]]) -> list[str]:
    """Scores on the test images as means over the seeds, and the cost."""
    scores = [one["test"]["none"] for one in runs]
    adapted = spread([one["adapted"]["iou"] for one in scores])
    plain = (statistics.mean(one[kind]["iou"] for one in scores) for kind in ("zero_shot", "constant"))
    return [*place, adapted, *(f"{value:.3f}" for value in plain), str(len(runs)), *cost(runs)]


def curves(found: Runs) -> str:
    """A table of the validation images' IoU by steps, means over the seeds."""
    means: dict[tuple[str, str, str], dict[int, str]] = {}
    for place, runs in found.items():
        values: dict[int, list[float]] = defaultdict(list)
        for one in runs:
            for validation in one["history"]["validation"]:
                values[validation["step"]].append(validation["val_iou"])
        means[place] = {step: f"{statistics.mean(ious):.3f}" for step, ious in values.items()}
    steps = sorted({step for by_step in means.values() for step in by_step})
    rows = [[*place, *(by_step.get(step, "-") for step in steps)] for place, by_step in means.items()]
    return table(["domain", "model", "method", *(f"step {step}" for step in steps)], rows)


def main() -> None:
    parser = series_arguments(__doc__, "runs/tiny2_adapted", DOMAINS)
    parser.add_argument("--tiny2", required=True, type=Path, help="model folder of the recipe")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--eval_every", type=int, default=50, help="steps between two points of a curve (default: 50)")
    args = parser.parse_args()
    found: Runs = defaultdict(list)
    missing = []
    for seed in args.seeds:
        for domain in args.domains:
            for method in args.methods:
                for name, model in (("tiny", "tiny"), ("tiny2", str(args.tiny2.resolve()))):
                    keys = {"model": model, "eval_every": args.eval_every}
                    metrics = run(domain, f"{name}_{method}", seed, args, method, keys=keys)
                    if metrics is None:
                        missing.append(f"{domain}-{name}_{method}-{seed}")
                    else:
                        found[domain, name, method].append(metrics)
    if not found:
        sys.exit("no run has finished")
    header = ["domain", "model", "method", "adapted IoU", "zero-shot IoU", "constant IoU", "seeds", *COST]
    note = "Promptless. First the test images at original size, mean ± standard deviation over the seeds; then the "
    note += "validation images while the adapter trains, means."
    note += f" Missing: {', '.join(missing)}." if missing else ""
    found = dict(sorted(found.items()))
    body = [table(header, [row(place, runs) for place, runs in found.items()]), curves(found), note]
    publish("tiny and tiny2, adapted", "\n\n".join(body))


if __name__ == "__main__":
    main()
