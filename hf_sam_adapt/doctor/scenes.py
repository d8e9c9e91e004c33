"""Rasters as the examination sees them: their place, their pixels without data, and scenes made small."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.dataset import Reader, mask_valid
from ..data.rasters import Raster, raster_of
from ..data.scan import stored_mask
from ..data.scenes import bands, open_image, reduced, sample_window, valid_of
from ..data.stored import is_beyond_limit
from .findings import WARNING, Finding


if TYPE_CHECKING:
    from .checks import SplitFacts

LONGEST = 4096  # pixels a side of what is looked at of a scene that is not read at once
MUCH = 0.5  # share of an image without data
NOWHERE = "none"


def raster_of_row(reader: Reader, row: dict[str, Any]) -> Raster | None:
    """The raster that is the image of a row. Raises `UserError` as `raster_of`."""
    path = reader.path(row)
    return None if path is None else raster_of(path)


def read_image(
    reader: Reader, row: dict[str, Any], raster: Raster | None
) -> tuple[np.ndarray, np.ndarray | None, int]:
    """An image, where it has data (None = everywhere), and the step by which a scene was made small, 1 for others."""
    if raster is None:
        return reader.read_image(row), None, 1
    if not is_beyond_limit(*raster.size):
        return reader.read_image(row), valid_of(raster.path), 1
    with open_image(raster.path, getattr(reader, "channels", None)) as opened:
        image, step = reduced(opened, LONGEST)
        valid = np.ones(image.shape[:2], bool)
        for band in bands(opened.size):
            known = opened.valid(band)
            if known is not None:
                sample_window(valid, known, band, step)
    return image, None if valid.all() else valid, step


def read_mask(
    reader: Reader, row: dict[str, Any], step: int
) -> tuple[np.ndarray, np.ndarray | None, bool, tuple[int, int]]:
    """A mask as it is stored, every `step`-th pixel of it; where it has data (None = everywhere); whether it is lossy;
    and its (height, width)."""
    if step == 1:
        stored, lossy = reader.read_mask(row)
        return stored, mask_valid(reader, row), lossy, stored.shape[:2]
    with stored_mask(reader, row) as mask:
        small = np.zeros([-(-length // step) for length in mask.size], np.uint8)
        valid = np.ones(small.shape, bool)
        for band in bands(mask.size):
            sample_window(small, mask.read(band), band, step)
            known = mask.valid(band)
            if known is not None:
                sample_window(valid, known, band, step)
        return small, None if valid.all() else valid, mask.lossy, mask.size


def check_places(name: str, facts: Mapping[str, SplitFacts]) -> Iterator[Finding]:
    """Whether images of several coordinate systems are mixed: their pixels may not have one size."""
    systems: Counter[str] = sum((found.systems for found in facts.values()), Counter())
    if len(systems) > 1:
        shown = ", ".join(f"{count} of {system}" for system, count in systems.most_common())
        fix = "warp them to one, unless their pixels have one size on the ground"
        yield Finding(WARNING, "mixed-crs", name, f"several coordinate systems: {shown}", fix)
