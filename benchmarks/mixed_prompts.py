"""One adapter for every prompt against one adapter a prompt, and what an adaptation costs outside its domain.

Each adapter takes the same number of steps; all are tested with every prompt kind, and with boxes on street scenes
(camvid: building, road and car, each as a binary task) that none was trained on. Finished runs and tests are not
repeated, broken runs are resumed.

    python benchmarks/mixed_prompts.py --data ../shared/data --extra "--max_steps 300 --precision bf16"
"""

from __future__ import annotations

import json
import statistics
import sys
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from results import publish, table
from series import model_of, run, series_arguments, spread

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.evaluation import evaluate
from hf_sam_adapt.files import write_json


DOMAINS = ("nuclei", "polyp")
KINDS = ("none", "box", "point", "mask")
ADAPTERS: dict[str, dict[str, Any]] = {
    **{f"only {kind}": {"prompts": [kind]} for kind in KINDS},
    "mixed": {"prompts": list(KINDS)},
}
STREET = {"building": 2, "road": 4, "car": 9}  # values in camvid's masks, 0 = unlabelled
Scores = dict[str, float]  # what was measured -> score


def street(data: Path, value: int) -> Any:
    """Every second test image of camvid (they are frames of films) with one class as the foreground."""
    label_map = {label: int(label == value) for label in range(1, 12)} | {0: 255}
    test = load_segmentation_dataset(str(data / "camvid"), mask_values="index", label_map=label_map).test
    return test.select(range(0, len(test), 2))


def tested(name: str, domain: str, seed: int, args: Namespace, metrics: dict[str, Any] | None = None) -> Scores:
    """The scores of one run, or with the name `zero-shot` of SAM itself; from their file where that is written."""
    path = args.out / f"{domain}-{name}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    model, processor, variant, how = model_of(name, domain, seed, args)
    how |= {"precision": args.test_precision, "seed": seed}
    # The run itself has been tested with the prompts that it was trained with.
    scores = {kind: one["adapted"]["iou"] for kind, one in (metrics["test"] if metrics else {}).items()}
    kinds = [kind for kind in KINDS if kind not in scores]
    if kinds:
        test = load_segmentation_dataset(str(args.data / domain)).test
        found = evaluate(model, processor, test, kinds, **how).test
        scores |= {kind: found[kind][variant]["iou"] for kind in kinds}
    for one, value in STREET.items():
        scores[one] = evaluate(model, processor, street(args.data, value), ["box"], **how).test["box"][variant]["iou"]
    scores["street"] = statistics.mean(scores[one] for one in STREET)
    write_json(path, scores)
    return scores


def rows_of(found: dict[tuple[str, str], list[Scores]], domain: str, zero_shot: Scores) -> list[list[str]]:
    """A row for zero-shot SAM and for each adapter."""
    columns = [*KINDS, "street"]
    rows = [[domain, "zero-shot", *(f"{zero_shot[column]:.3f}" for column in columns), "-"]]
    for name in ADAPTERS:
        if scores := found.get((domain, name)):
            cells = [spread([one[column] for one in scores]) for column in columns]
            rows.append([domain, name, *cells, str(len(scores))])
    return rows


def main() -> None:
    parser = series_arguments(__doc__, "runs/mixed", DOMAINS)
    parser.add_argument("--method", default="sam_adapter")
    parser.add_argument("--test_precision", default="no", help="of the tests: no or bf16")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[Scores]] = defaultdict(list)
    # Seed by seed, so that an interrupted series still compares all adapters.
    for seed in args.seeds:
        for domain in args.domains:
            for name, keys in ADAPTERS.items():
                slug = name.replace(" ", "-")
                metrics = run(domain, slug, seed, args, method=args.method, keys=keys)
                if metrics is not None:
                    found[domain, name].append(tested(slug, domain, seed, args, metrics))
    if not found:
        sys.exit("no run has finished")
    header = ["domain", "adapter", *KINDS, "box, street scenes", "seeds"]
    rows = []
    for domain in args.domains:
        rows += rows_of(found, domain, tested("zero-shot", domain, 0, args))
    parts = [
        table(header, rows),
        "Mean IoU of the test images at original size by prompt kind, an image's objects merged; of boxes around "
        "buildings, roads and cars of camvid, which no adapter has seen. Mean ± standard deviation over the seeds.",
    ]
    publish("One adapter for every prompt", "\n\n".join(parts))


if __name__ == "__main__":
    main()
