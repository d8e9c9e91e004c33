"""Does the low frequency help against speckle? CWSAM's prompts from low, high and no frequencies on drawn land cover.

The scenes are the same at every level; fewer looks are stronger multiplicative noise. The embedding of the patches
prompts in all three. Finished runs are not repeated, broken ones are resumed.

    python benchmarks/speckle_sweep.py --out runs/speckle --extra "--max_steps 200"
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from typing import Any

from results import publish, table
from series import run, series_arguments, spread


FEATURES = {"low": ["embedding", "low"], "high": ["embedding", "high"], "none": ["embedding"]}


def difference(found: dict[tuple[float, str], dict[int, float]], looks: float, other: str) -> str:
    """What low-pass gains over the other features, run against run of the same seed."""
    low, rest = found[looks, "low"], found[looks, other]
    paired = [low[seed] - rest[seed] for seed in low if seed in rest]
    return spread(paired) if paired else "-"


def main() -> None:
    parser = series_arguments(__doc__, "runs/speckle")
    parser.add_argument("--looks", nargs="+", type=float, default=[10, 1, 0.3], help="of the speckle")
    args = parser.parse_args()
    found: dict[tuple[float, str], dict[int, float]] = defaultdict(dict)
    constants: dict[float, dict[int, float]] = defaultdict(dict)
    for seed in args.seeds:
        for looks in args.looks:
            for name, features in FEATURES.items():
                keys: dict[str, Any] = {"dataset": f"synthetic:landcover@looks={looks:g}"}
                fields = {"features": features}
                metrics = run(f"looks{looks:g}", name, seed, args, method="cwsam", method_args=fields, keys=keys)
                if metrics is not None:
                    found[looks, name][seed] = metrics["test"]["none"]["adapted"]["miou"]
                    constants[looks][seed] = metrics["test"]["none"]["constant"]["miou"]
    if not found:
        sys.exit("no run has finished")
    rows = []
    for looks in args.looks:
        cells = [spread(list(found[looks, name].values())) if found[looks, name] else "-" for name in FEATURES]
        cells += [difference(found, looks, other) for other in ("high", "none")]
        shown = f"{statistics.mean(constants[looks].values()):.3f}" if constants[looks] else "-"
        rows.append([f"{looks:g}", *cells, shown])
    header = ["looks", *(f"mIoU, {name}" for name in FEATURES), "low - high", "low - none", "constant"]
    note = "Mean IoU on the test images; mean ± standard deviation over the seeds, differences run against run. "
    note += (
        f"Runs at each level: {', '.join(str(max(len(found[looks, n]) for n in FEATURES)) for looks in args.looks)}."
    )
    publish("Frequencies against speckle", f"{table(header, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
