"""`hf-sam-adapt predict`: results of image files, at the size of the images."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from ..data.folder import IMAGE_SUFFIXES
from ..data.inputs import find_images, output_names
from ..data.walk import files_below
from ..reporting.results.run import predict
from .arguments import PredictArguments


__all__ = ["PredictArguments", "find_images", "output_names", "predict", "predict_command"]


def predict_command(args: PredictArguments) -> int:
    """`predict`, then a line for each image that could not be read, and those that say where the results are.

    Returns:
        Exit status: 1 if an image could not be read, else 0.
    """
    for folder in filter(Path.is_dir, map(Path, args.inputs)):
        below = [path for path in files_below(folder, IMAGE_SUFFIXES) if path.parent != folder]
        if below:
            patterns = " ".join(f"'{folder}/**/*{suffix}'" for suffix in sorted({path.suffix for path in below}))
            print(f"{folder}: {len(below)} images in its sub-folders are not read; name those, or {patterns}")
    records = predict(**vars(args))
    failed = [record for record in records if "error" in record]
    for note in [record["note"] for record in records if "note" in record]:
        print(note)
    for record in failed:
        print(f"error: {record['error']}", file=sys.stderr)
    usual = next(([key] for key in ("geotiff", "nifti") if any(key in record for record in records)), ["png"])
    masks, formats = len(records) - len(failed), args.format or usual
    what = "their overlays" if formats == ["png"] else f"as {', '.join(dict.fromkeys(formats))},"
    print(f"{masks} masks, {what} and predictions.json are in {args.output_dir}")
    if skipped := sum("skipped" in record for record in records):
        print(f"{skipped} of them were there and are kept")
    if domains := Counter(record["domain"] for record in records if "domain" in record):
        print(f"domains: {', '.join(f'{count} {name}' for name, count in domains.most_common())}")
    if args.instances:
        parts = [part for record in records for part in record.get("slices", [record])]
        count = sum(part.get("instances", 0) for part in parts)
        print(f"{count} instances are in {Path(args.output_dir) / 'instances.json'} (COCO, run lengths)")
    if failed:
        print(f"{len(failed)} of {len(records)} images could not be read and have no mask", file=sys.stderr)
    return int(bool(failed))
