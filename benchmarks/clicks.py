"""What correction rounds in training bring: a simulated user's clicks, and whether an adapter listens to its prompt.

Takes the adapters of `mixed_prompts.py` from the same `--out` (and trains them if they are not there), and adds one
with two correction rounds. Finished runs and tests are not repeated, broken runs are resumed.

    python benchmarks/clicks.py --data ../shared/data --domains polyp --extra "--max_steps 80 --precision bf16"
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import defaultdict
from typing import Any

import torch
from mixed_prompts import ADAPTERS, KINDS
from results import publish, table
from series import model_of, run, series_arguments, spread

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.evaluation.clicks import evaluate_clicks
from hf_sam_adapt.evaluation.sensitivity import prompt_sensitivity
from hf_sam_adapt.files import write_json


TESTED = {
    "only none": ADAPTERS["only none"],
    "mixed": ADAPTERS["mixed"],
    "mixed, 2 corrections": {"prompts": list(KINDS), "correction_rounds": 2},
}
MAX_OBJECTS = 4  # of an image that are clicked on
COLUMNS = {
    "IoU, 1 click": ("clicks", "iou", "1"),
    "3 clicks": ("clicks", "iou", "3"),
    "5 clicks": ("clicks", "iou", "5"),
    "NoC@0.8": ("clicks", "noc", "0.8"),
    "own box": ("sensitivity", "iou", "own"),
    "another's box": ("sensitivity", "iou", "moved"),
    "no prompt": ("sensitivity", "iou", "removed"),
    "change, box moved": ("sensitivity", "change", "moved"),
    "change, no prompt": ("sensitivity", "change", "removed"),
}


def tested(name: str, domain: str, seed: int, args: Namespace) -> dict[str, Any]:
    """Clicks and sensitivity of one run, or with the name `zero-shot` of SAM itself; kept in a file."""
    path = args.out / f"{domain}-{name}-{seed}.clicks.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    model, processor, variant, how = model_of(name, domain, seed, args)
    test = load_segmentation_dataset(str(args.data / domain)).test
    how |= {"precision": args.test_precision, "progress": False}
    clicks = evaluate_clicks(model, processor, test, args.clicks, max_objects=MAX_OBJECTS, **how)
    scores = {"clicks": clicks[variant], "sensitivity": prompt_sensitivity(model, processor, test, **how)[variant]}
    write_json(path, scores)
    return scores


def row(domain: str, name: str, runs: list[dict[str, Any]]) -> list[str]:
    cells = [spread([one[part][kind][key] for one in runs]) for part, kind, key in COLUMNS.values()]
    return [domain, name, *cells, str(len(runs))]


def main() -> None:
    parser = series_arguments(__doc__, "runs/mixed", ("nuclei", "polyp"))
    parser.add_argument("--method", default="sam_adapter")
    parser.add_argument("--clicks", type=int, default=20, help="most clicks on an object")
    parser.add_argument("--test_precision", default="no", help="of the tests: no or bf16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for seed in args.seeds:
        for domain in args.domains:
            for name, keys in TESTED.items():
                slug = name.replace(", ", "-").replace(" ", "-")
                if run(domain, slug, seed, args, method=args.method, keys=keys) is not None:
                    found[domain, name].append(tested(slug, domain, seed, args))
    if not found:
        sys.exit("no run has finished")
    rows = []
    for domain in args.domains:
        rows.append(row(domain, "zero-shot", [tested("zero-shot", domain, 0, args)]))
        rows += [row(domain, name, found[domain, name]) for name in TESTED if (domain, name) in found]
    parts = [
        table(["domain", "adapter", *COLUMNS, "seeds"], rows),
        f"Single objects of the test images at original size. Clicks on the largest error, at most {args.clicks}, of "
        f"the {MAX_OBJECTS} largest objects of an image; NoC is the mean number until the IoU is 0.8. Boxes of the 8 "
        "largest: IoU with the object under its own box, under that of another object, and without; change is 1 - IoU "
        "against the mask of its own box. Mean ± standard deviation over the seeds.",
    ]
    publish("Clicks, and whether the adapter listens", "\n\n".join(parts))


if __name__ == "__main__":
    main()
