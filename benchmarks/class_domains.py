"""The class-wise decoder on real domains of several classes: CWSAM, SAM-Adapter, Conv-LoRA and the decoder alone.

Mean IoU and the IoU of each class over seeds, beside the most frequent class of each place. The run folders hold
`samples.png` and `confusion.png` of each. Finished runs are not repeated, broken ones are resumed.

    python benchmarks/class_domains.py --data ../shared/data --out runs/classes --extra "--max_steps 200"
"""

from __future__ import annotations

import statistics
import sys
from collections import defaultdict
from typing import Any

from results import publish, table
from series import COST, cost, run, series_arguments, spread


METHODS = ("cwsam", "sam_adapter", "conv_lora", "decoder")
NAMES = {
    "em_neuron": ["background", "membrane", "mitochondrion", "synapse", "glia/extracellular"],
    "camvid": "sky building pole road pavement tree sign fence car pedestrian bicyclist".split(),
}
KEYS: dict[str, dict[str, Any]] = {
    domain: {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "mask_values": "index",
        "class_weights": "inverse_sqrt",
    }
    for domain, names in NAMES.items()
}
KEYS["camvid"]["label_map"] = {0: 255} | {label + 1: label for label in range(11)}  # 0 = unlabelled
Runs = dict[tuple[str, str], list[dict[str, Any]]]  # (domain, method) -> metrics.json of each seed


def means(found: Runs, domains: list[str]) -> str:
    """A row for each method: scores over all pixels, and what the training cost."""
    rows = []
    for domain in domains:
        for method in METHODS:
            if runs := found.get((domain, method)):
                scores = [one["test"]["none"] for one in runs]
                cells = [spread([one["adapted"][key] for one in scores]) for key in ("miou", "oa", "fwiou")]
                constant = statistics.mean(one["constant"]["miou"] for one in scores)
                rows.append([domain, method, *cells, f"{constant:.3f}", str(len(runs)), *cost(runs)])
    header = ["domain", "method", "mIoU", "OA", "FWIoU", "constant mIoU", "seeds", *COST]
    return table(header, rows)


def classes(found: Runs, domain: str) -> str:
    """A row for each class of a domain: its share of the labelled test pixels, and the IoU of each method."""
    methods = [method for method in METHODS if (domain, method) in found]
    scores = {method: [one["test"]["none"] for one in found[domain, method]] for method in methods}
    # All methods of a seed have the same constant map.
    most = max(scores.values(), key=len)
    pixels = {label: one["pixels"] for label, one in most[0]["adapted"]["per_class"].items()}
    rows = []
    for label, name in enumerate(NAMES[domain]):
        constant = statistics.mean(one["constant"]["per_class"][str(label)]["iou"] or 0.0 for one in most)
        cells = [f"{pixels[str(label)] / sum(pixels.values()):.3f}", f"{constant:.3f}"]
        for method in methods:
            cells.append(spread([one["adapted"]["per_class"][str(label)]["iou"] or 0.0 for one in scores[method]]))
        rows.append([name, *cells])
    return table([f"{domain}, IoU", "share of pixels", "constant", *methods], rows)


def main() -> None:
    args = series_arguments(__doc__, "runs/classes", tuple(NAMES)).parse_args()
    found: Runs = defaultdict(list)
    # Seed by seed, so that an interrupted series still compares all methods.
    for seed in args.seeds:
        for domain in args.domains:
            for method in METHODS:
                fields = {"decoder": "class_wise"} if method != "sam_adapter" else None
                metrics = run(domain, method, seed, args, method_args=fields, keys=KEYS[domain])
                if metrics is not None:
                    found[domain, method].append(metrics)
    if not found:
        sys.exit("no run has finished")
    parts = [means(found, args.domains)]
    parts += [classes(found, domain) for domain in args.domains if any(key[0] == domain for key in found)]
    parts.append("Test images at original size; mean ± standard deviation over the seeds.")
    publish("Classes on real domains", "\n\n".join(parts))


if __name__ == "__main__":
    main()
