"""Why a method stays low on a domain: its IoU on the training images beside that on the test images, over the budget.

A model that cannot represent the domain is low on both; one that does not generalise is high on the training images
alone. Promptless, without augmentation while measuring.

    python benchmarks/train_and_test.py --data ../shared/data --domain camouflage --steps 200 1000
"""

from __future__ import annotations

import argparse
from pathlib import Path

from results import publish, table
from series import run

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.evaluation import evaluate
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.metrics import constant_mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each domain")
    parser.add_argument("--out", type=Path, default=Path("runs/train_and_test"), help="folder of the runs")
    parser.add_argument("--domain", default="camouflage")
    parser.add_argument("--methods", nargs="+", default=["sam_adapter"])
    parser.add_argument("--steps", nargs="+", type=int, default=[200, 1000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--extra", default="", help="flags for every training")
    args = parser.parse_args()
    args.data, out, extra, args.table = args.data.resolve(), args.out.resolve(), args.extra, False
    data = load_segmentation_dataset(str(args.data / args.domain), seed=args.seed)
    constant = constant_mask(data.train)
    rows = []
    for method in args.methods:
        for steps in args.steps:
            args.out, args.extra = out / str(steps), f"{extra} --max_steps {steps}"
            if run(args.domain, method, args.seed, args) is None:
                continue
            loaded = load_adapted(str(args.out / f"{args.domain}-{method}-{args.seed}"))
            scores = {}
            for name in ("train", "val", "test"):
                split = getattr(data, name)
                found = evaluate(loaded.model, loaded.processor, split, ["none"], zero_shot=False, constant=constant)
                scores[name] = found.test["none"]
            cells = [f"{scores[name]['adapted']['iou']:.3f}" for name in scores]
            rows.append([method, str(steps), *cells, f"{scores['test']['constant']['iou']:.3f}"])
    header = ["method", "steps", "IoU, training images", "IoU, validation", "IoU, test", "constant, test"]
    publish(f"Training and test images of {args.domain}", table(header, rows))


if __name__ == "__main__":
    main()
