"""SAM-Adapter, decoder, LoRA and full fine-tuning on real domains: promptless IoU over seeds, and what it costs.

Then each method beside SAM-Adapter image by image, which tells more than two means do.

Finished runs are not repeated and broken ones are resumed, so the table can be filled over several calls.

    python benchmarks/real_domains.py --data ../shared/data --out runs/real
"""

from __future__ import annotations

import csv
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from results import publish, table
from series import COST, cost, run, series_arguments, spread


METHODS = ("sam_adapter", "decoder", "lora", "full")
DOMAINS = ("polyp", "camouflage", "shadow")


def row(domain: str, method: str, runs: list[dict[str, Any]]) -> list[str]:
    """Mean ± standard deviation over the seeds, and the cost."""
    scores = [one["test"]["none"] for one in runs]
    return [
        domain,
        method,
        spread([one["adapted"]["iou"] for one in scores]),
        spread([one["adapted"]["dice"] for one in scores]),
        f"{scores[0]['zero_shot']['iou']:.3f}",
        f"{statistics.mean(one['constant']['iou'] for one in scores):.3f}",
        str(len(runs)),
        *cost(runs),
    ]


def scores_of(folder: Path) -> dict[str, float]:
    """Test image -> IoU of a run."""
    with open(folder / "logs/per_image.csv", newline="") as file:
        return {line["file"]: float(line["iou"]) for line in csv.DictReader(file) if line["prompt"] == "none"}


def differences(domain: str, method: str, seeds: list[int], out: Path) -> list[str]:
    """What a method has over SAM-Adapter: mean over images of the mean over seeds, standard error, share of images."""
    pairs = [[scores_of(out / f"{domain}-{name}-{seed}") for name in (method, METHODS[0])] for seed in seeds]
    over = [statistics.mean(own[file] - base[file] for own, base in pairs) for file in pairs[0][0]]
    error = statistics.stdev(over) / len(over) ** 0.5
    share = statistics.mean(one > 0 for one in over)
    return [domain, method, f"{statistics.mean(over):+.3f} ± {error:.3f}", f"{share:.2f}", str(len(over))]


def main() -> None:
    parser = series_arguments(__doc__, "runs/real", DOMAINS)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    args = parser.parse_args()
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
    header = ["domain", "method", "adapted IoU", "adapted Dice", "zero-shot IoU", "constant IoU", "seeds", *COST]
    note = "Promptless, on the test images at original size; mean ± standard deviation over the seeds."
    note += f" Missing: {', '.join(missing)}." if missing else ""
    whole = {pair for pair, runs in found.items() if len(runs) == len(args.seeds)}
    compared = [
        differences(domain, method, args.seeds, args.out)
        for domain in args.domains
        for method in args.methods
        if method != METHODS[0] and {(domain, method), (domain, METHODS[0])} <= whole
    ]
    paired = table(["domain", "method", "IoU above sam_adapter's", "share of images", "images"], compared)
    explained = "The same test images under both methods: mean over seeds and images ± standard error over images."
    publish("Real domains", "\n\n".join([table(header, rows), note, paired, explained]))


if __name__ == "__main__":
    main()
