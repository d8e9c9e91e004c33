"""Where SAM-Adapter's prompts have to be: before all blocks of the encoder, its upper half, the last one, or none.

Blocks below the first prompt keep no activations, so a higher place costs less memory and time. `tiny` has six blocks.
Finished runs are not repeated and broken ones are resumed.

    python benchmarks/placement.py --data ../shared/data --extra '--max_steps 200 --precision bf16 --num_workers 0'
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from typing import Any

from results import publish, table
from series import COST, cost, run, series_arguments, spread


DOMAINS = ("polyp", "shadow")
PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "all blocks": ("sam_adapter", {}),
    "upper half": ("sam_adapter", {"layers_to_transform": [3, 4, 5]}),
    "last block": ("sam_adapter", {"layers_to_transform": [5]}),
    "none (decoder)": ("decoder", {}),
}


def main() -> None:
    args = series_arguments(__doc__, "runs/placement", DOMAINS).parse_args()
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    missing = []
    for seed in args.seeds:
        for domain in args.domains:
            for place, (method, fields) in PLACES.items():
                name = place.split(" (")[0].replace(" ", "_")
                metrics = run(domain, name, seed, args, method, keys={"method_args": fields})
                if metrics is None:
                    missing.append(f"{domain}-{name}-{seed}")
                else:
                    found[domain, place].append(metrics)
    if not found:
        sys.exit("no run has finished")
    rows = []
    for (domain, place), runs in found.items():
        scores = [one["test"]["none"] for one in runs]
        constant = statistics.mean(one["constant"]["iou"] for one in scores)
        iou = spread([one["adapted"]["iou"] for one in scores])
        rows.append([domain, place, iou, f"{constant:.3f}", str(len(runs)), *cost(runs)])
    note = "tiny, promptless, on the test images at original size; mean ± standard deviation over the seeds."
    note += f" Missing: {', '.join(missing)}." if missing else ""
    body = table(["domain", "prompts before", "adapted IoU", "constant IoU", "seeds", *COST], sorted(rows))
    publish("Placement of SAM-Adapter's prompts", f"{body}\n\n{note}")


if __name__ == "__main__":
    main()
