"""The table of formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from .maps import MAP_WRITERS
from .nifti import NiftiWriter
from .pictures import InstancePictures, PngWriter
from .polygons import CocoWriter, GeoJsonWriter, InstancesWriter, LabelmeWriter, YoloWriter
from .result import WriteOptions, Writer


_PLAIN: tuple[type[Writer], ...] = (PngWriter, LabelmeWriter, CocoWriter, YoloWriter, GeoJsonWriter, NiftiWriter)
WRITERS: dict[str, type[Writer]] = {writer.key: writer for writer in (*_PLAIN, *MAP_WRITERS)}


def make_writers(formats: Sequence[str], folder: Path, options: WriteOptions, instances: bool = False) -> list[Writer]:
    """The writers of `formats`, and with `instances` those that every prediction of instances has.

    Raises:
        UserError: an unknown format, or none.
    """
    unknown = [name for name in formats if name not in WRITERS]
    if unknown or not formats:
        problem = f"{unknown[0]!r} is unknown" if unknown else "none given"
        raise UserError(problem, key="format", fix=f"choose from {', '.join(WRITERS)}")
    kinds = [WRITERS[name] for name in dict.fromkeys(formats)]
    kinds += [InstancePictures, InstancesWriter] if instances else []
    return [kind(folder, options) for kind in kinds]
