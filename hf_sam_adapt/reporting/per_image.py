"""A line for each image of an evaluation, the worst ones first: where to look for what is wrong."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation import EvalResult
from ..evaluation.classes import ClassResult
from ..files import write_text


if TYPE_CHECKING:
    from ..data import SegmentationSplit

FILE, SHEET = "per_image.csv", "worst.png"
SHOWN = 10  # images of the contact sheet


def save_per_image(
    path: Path, split: SegmentationSplit, result: EvalResult | ClassResult, names: Sequence[str] | None = None
) -> None:
    """Writes a CSV of `file`, `image` (its name in the data set), `prompt`, `domain` (of a pool), `iou` and `dice`.

    A line for each image and prompt kind, by rising IoU; images that are ignored everywhere have no scores and come
    last. Of one class `zero_shot_iou` and `zero_shot_dice` follow where the model stands beside zero-shot SAM, of
    classes `iou_<name>` and `dice_<name>` of each that the image or its label map holds.

    Args:
        split: what was evaluated.
        names: of the classes, None = one class.
    """
    rows = _class_rows(result, names or []) if isinstance(result, ClassResult) else _rows(result)
    rows.sort(key=lambda row: (row["iou"] is None, row["iou"], row["image"]))
    for row in rows:
        row["file"] = _file(split, row.pop("index"))
    columns = ["file", *dict.fromkeys(key for row in rows for key in row if key != "file")]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: round(value, 6) if isinstance(value, float) else value for key, value in row.items()})
    write_text(path, text.getvalue())


def _rows(result: EvalResult) -> list[dict[str, Any]]:
    rows = []
    for record in result.records:
        for kind, variants in record.scores.items():
            shown = "adapted" if "adapted" in variants else "zero_shot"
            row: dict[str, Any] = {"index": record.index, "image": record.id, "prompt": kind}
            row["domain"] = record.domain
            for name, prefix in ((shown, ""), ("zero_shot", "zero_shot_")):
                if name in variants and (prefix == "" or shown != name):
                    scores = variants[name].scores()
                    row |= {prefix + key: value if record.labelled else None for key, value in scores.items()}
            rows.append(row)
    return rows


def _class_rows(result: ClassResult, names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for record in result.records:
        row: dict[str, Any] = {"index": record.index, "image": record.id, "prompt": "none", "domain": None}
        row |= {key: record.scores[key] for key in ("iou", "dice")}
        for key in ("iou", "dice"):
            row |= {f"{key}_{names[int(label)]}": one[key] for label, one in record.scores["per_class"].items()}
        rows.append(row)
    return rows


def _file(split: Any, index: int) -> str:
    """The image's file, or its name where it has none of its own."""
    reader = getattr(split, "reader", None)
    row = split.table[index] if reader is not None else None
    return (reader.path(row) or row["id"]) if reader is not None else ""
