"""Volumes with masks, unpacked: a PNG for each slice, for tools that know images alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...data.annotations import IGNORE_LABELS, ONLY_CLASS
from ...data.areas import Bounds
from ...data.images import IGNORE
from ...data.volumes.folder import VolumeReader, find_volumes, has_volumes, slice_tables
from ...data.volumes.slices import SliceKeys
from ...errors import UserError
from .regions import UNSPLIT, AnnotatedImage, Annotations, Region


GROUP = r"^(.+)_[0-9]+$"  # the volume in the name of a slice


def read_volumes(source: Path, slices: Mapping[str, Any]) -> Annotations:
    """Every slice of the volumes of a folder, see `find_volumes`, its mask a region for each value.

    Args:
        slices: how volumes are cut, see `SliceKeys.of`.

    Raises:
        UserError: no volumes there, or one that a data set refuses.
    """
    if not source.is_dir() or not has_volumes(source):
        fix = "name the folder of images/ and masks/ with volumes"
        raise UserError("no volumes in it", where=source, fix=fix)
    reader = VolumeReader(SliceKeys.of(slices))
    tables, _ = find_volumes(source, reader.keys)
    rows = [(split, row) for split, table in slice_tables(tables).items() for row in table]
    values = sorted({value for _, row in rows for value in _values(reader, row)})
    labels = {value: IGNORE_LABELS[0] if value == IGNORE else str(value) for value in values}
    if len(values) == 1:
        labels = {values[0]: ONLY_CLASS}
    annotations = Annotations(classes=[name for name in labels.values() if name not in IGNORE_LABELS])
    for split, row in rows:
        regions = [Region(labels[value], _Slice(reader, row, value)) for value in _values(reader, row)]
        size = row["height"], row["width"]
        stem = row["id"].replace("/", "_")
        home = UNSPLIT if split == "all" else split
        annotations.images.append(AnnotatedImage(home, stem, _Png(reader, row), size, regions, reader.name(row)))
    return annotations


@dataclass(frozen=True)
class _Png:
    """The encoded image of a slice, when it is asked for."""

    reader: VolumeReader
    row: dict[str, Any]

    def __call__(self) -> bytes:
        content = BytesIO()
        Image.fromarray(self.reader.read_image(self.row)).save(content, format="PNG")
        return content.getvalue()


@dataclass(frozen=True)
class _Slice:
    """Where the mask of a slice has a value."""

    reader: VolumeReader
    row: dict[str, Any]
    value: int

    def draw(self, height: int, width: int) -> np.ndarray:
        return self.reader.read_mask(self.row)[0] == self.value

    def bounds(self, height: int, width: int) -> Bounds | None:
        return None


def _values(reader: VolumeReader, row: dict[str, Any]) -> Iterator[int]:
    """The values above 0 of a slice's mask."""
    mask = reader.read_mask(row)[0]
    if mask.dtype != np.uint8:
        fix = "store class indices, 255 = ignore"
        raise UserError("a mask whose values are no classes", where=reader.name(row), fix=fix)
    return (int(value) for value in np.unique(mask) if value)
