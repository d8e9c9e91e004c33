"""`hf-sam-adapt doctor`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..data.dataset import SegmentationSplit
from ..data.reading import READ_KEYS
from ..data.tiles import resolve_tiles
from ..doctor.examine import Diagnosis, examine_dataset
from ..doctor.findings import ERROR, WARNING
from ..doctor.model_input import model_input
from ..errors import UserError
from ..files import write_json
from ..names import check_image_size, class_names
from .arguments import DoctorArguments


KEPT = 20  # findings of a cause in the JSON
SHOWN = ("severity", "code", "file", "value", "fix")  # of each


def doctor_command(args: DoctorArguments) -> int:
    """Examines, prints a line for each cause, and writes what was asked for.

    Returns:
        Exit status: 1 if a finding is an error, else 0.

    Raises:
        UserError: no data set named, no such data set, or keys that contradict each other or it.
    """
    if args.dataset is None:
        raise UserError("doctor needs a data set, as in: hf-sam-adapt doctor my_polyps")
    for name in ("limit", "processes"):
        if (getattr(args, name) or 0) < 0:
            raise UserError(f"{getattr(args, name)} is below 0", key=name)
    for file in (args.json, args.contact_sheet):
        if file is not None and not Path(file).absolute().parent.is_dir():
            raise UserError("its folder does not exist", where=file, fix="create it")
    of_model = model_input(args.model)
    image_size = args.image_size or of_model.image_size
    check_image_size(image_size, of_model.size_step, of_model.title)
    tiles, notes = resolve_tiles(args.tile, args.overlap, image_size, of_model.patch_size)
    for note in notes:
        print(note)
    diagnosis = examine_dataset(
        args.dataset,
        tiles=tiles,
        mask_size=4 * (image_size // of_model.patch_size),
        limit=KEPT if args.limit is None else args.limit,
        **{key: getattr(args, key) for key in (*READ_KEYS, "normalization", "processes")},
    )
    for line in diagnosis.findings.lines(1 if args.limit is None else args.limit):
        print(line)
    for line in _summary(diagnosis):
        print(line)
    if args.limit is None and len(diagnosis.findings.causes) < diagnosis.findings.counts.total():
        print("--limit 0 shows all files of each cause.")
    if args.json is not None:
        write_json(Path(args.json), _plain(args.dataset, diagnosis))
    if args.contact_sheet is not None:
        _draw(args, diagnosis, image_size, args.resize or of_model.resize)
    return 0 if diagnosis.ok else 1


def _draw(args: DoctorArguments, diagnosis: Diagnosis, image_size: int, resize: str) -> None:
    """The contact sheet of the training images that can be read."""
    from ..doctor.contact_sheet import save_contact_sheet

    usable = diagnosis.readable["train"].nonzero()[0].tolist() if diagnosis.source is not None else []
    if diagnosis.source is None or diagnosis.encoding is None or not usable:
        print(f"no {args.contact_sheet}: no training image can be read")
        return
    count = diagnosis.encoding.num_labels
    split = SegmentationSplit(diagnosis.source.tables["train"], diagnosis.source.reader, diagnosis.encoding)
    save_contact_sheet(
        Path(str(args.contact_sheet)),
        split if len(usable) == len(split) else split.select(usable),
        names=None if count is None else class_names(count, diagnosis.source.id2label),
        augmentations=args.augment,
        normalization=args.normalization,
        channels=args.channels,
        image_size=image_size,
        resize=resize,
        seed=args.seed,
    )
    print(f"Contact sheet: {args.contact_sheet}")


def _summary(diagnosis: Diagnosis) -> list[str]:
    """How the images were dealt, what can be used, in a line for each split, and how much is wrong."""
    lines = [] if diagnosis.source is None else list(diagnosis.source.notes)
    for split, facts in diagnosis.facts.items():
        sizes = {f"{size[1]}x{size[0]}" for size in (facts.smallest, facts.largest) if size is not None}
        shown = " to ".join(sorted(sizes, key=lambda text: [int(side) for side in text.split("x")]))
        shares = facts.classes / max(1, facts.classes.sum())
        if not facts.classes.any():
            content = "no mask can be used"
        elif diagnosis.encoding is not None and diagnosis.encoding.num_labels is None:
            content = f"foreground {shares[1]:.{1 if shares[1] >= 0.001 else 4}%}"
        else:
            names = diagnosis.source.id2label if diagnosis.source is not None else {}
            content = ", ".join(f"{names.get(label, label)} {share:.1%}" for label, share in enumerate(shares))
        usable = "" if facts.read == facts.images else f", {facts.read} usable,"
        if facts.nodata[0]:
            content += f", no data in {facts.nodata[0] / facts.nodata[1]:.1%}"
        lines.append(f"{split}: {facts.images} images{usable} of {shown or 'no'} pixels; {content}")
    images = sum(facts.images for facts in diagnosis.facts.values())
    per_thousand = 1000 * diagnosis.seconds / max(1, images)
    counts = [f"{diagnosis.findings.total(kind)} {kind}s" for kind in (ERROR, WARNING)]
    found = ", ".join(counts) if diagnosis.findings.counts else "nothing found"
    lines.append(f"{found} in {images} images ({diagnosis.seconds:.1f} s, {per_thousand:.1f} s per 1,000)")
    return lines


def _plain(dataset: str, diagnosis: Diagnosis) -> dict[str, Any]:
    """For JSON."""
    findings = diagnosis.findings
    return {
        "dataset": os.fspath(dataset),
        "ok": diagnosis.ok,
        "findings": [{name: getattr(finding, name) for name in SHOWN} for finding in findings.ordered()],
        "counts": [
            {"severity": severity, "code": code, "count": count}
            for (severity, code), count in sorted(findings.counts.items())
        ],
        "mask_values": None if diagnosis.encoding is None else diagnosis.encoding.mask_values,
        "splits": {split: facts.plain() for split, facts in diagnosis.facts.items()},
        "seconds": round(diagnosis.seconds, 3),
    }
