"""A line for each image of an evaluation, the worst ones first: where to look for what is wrong."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..evaluation import EvalResult
from ..evaluation.classes import ClassResult
from ..evaluation.volumes import SCORES
from ..files import write_text


if TYPE_CHECKING:
    from ..data import SegmentationSplit

FILE, VOLUMES, SHEET = "per_image.csv", "per_volume.csv", "worst.png"
SHOWN = 10  # images of the contact sheet


def save_per_image(
    path: Path, split: SegmentationSplit, result: EvalResult | ClassResult, names: Sequence[str] | None = None
) -> None:
    """Writes a CSV of `file`, `image` (its name in the data set), `prompt`, `domain` (of a pool), `iou` and `dice`.

    A line for each image and prompt kind, by rising IoU; images that are ignored everywhere have no scores and come
    last. Of one class `zero_shot_iou` and `zero_shot_dice` follow where the model stands beside zero-shot SAM, of
    classes `iou_<name>` and `dice_<name>` of each that the image or its label map holds.

    Of slices of volumes also `per_volume.csv` beside it: `volume`, `prompt`, `model` and its scores, by rising Dice.

    Args:
        split: what was evaluated.
        names: of the classes, None = one class.
    """
    rows = _class_rows(result, names or []) if isinstance(result, ClassResult) else _rows(result)
    rows.sort(key=lambda row: (row["iou"] is None, row["iou"], row["image"]))
    for row in rows:
        row["file"] = _file(split, row.pop("index"))
    _write(path, rows, "file")
    if result.volumes:
        _write(path.with_name(VOLUMES), _volume_rows(result, names or []), "volume")


def _volume_rows(result: EvalResult | ClassResult, names: Sequence[str]) -> list[dict[str, Any]]:
    """A line for each volume, prompt kind and model, by rising Dice."""
    rows = []
    for (kind, variant), scores in result.volumes.items():
        for one in scores:
            row = {"volume": one["volume"], "prompt": kind, "model": variant} | {key: one[key] for key in SCORES}
            for label, each in one.get("per_class", {}).items():
                row |= {f"{key}_{names[int(label)]}": each[key] for key in SCORES}
            rows.append(row)
    return sorted(rows, key=lambda row: (row[SCORES[0]] is None, row[SCORES[0]], row["volume"]))


def _write(path: Path, rows: Sequence[dict[str, Any]], first: str) -> None:
    """The rows as CSV with the columns of all of them, `first` being the first."""
    columns = [first, *dict.fromkeys(key for row in rows for key in row if key != first)]
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
        row: dict[str, Any] = {"index": record.index, "image": record.id, "prompt": "none"}
        row["domain"] = record.domain
        row |= {key: record.scores[key] for key in ("iou", "dice")}
        for key in ("iou", "dice"):
            row |= {f"{key}_{names[int(label)]}": one[key] for label, one in record.scores["per_class"].items()}
        rows.append(row)
    return rows


def _file(split: Any, index: int) -> str:
    """The image's file, or its name where it has none of its own."""
    reader = getattr(split, "reader", None)
    if reader is None:
        return ""
    row = split.table[index]
    return reader.path(row) or row["id"]
