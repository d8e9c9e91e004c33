"""The mask that a TIFF may hold as a page of its own: where its picture has data."""

from __future__ import annotations

import os
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np

from ..errors import UserError, first_line
from .stored import BROKEN, is_tiff, rewind, source_name


_MASK, _REDUCED = 4, 1  # bits of a page's kind


def mask_page(source: Any) -> np.ndarray | None:
    """What a TIFF's own mask shows, bool (H, W), False where it has no data; GDAL writes one beside the picture.

    Args:
        source: anything; files and encoded bytes are looked into, by tifffile.

    Returns:
        None where there is no such page.

    Raises:
        UserError: that page is damaged.
    """
    if not isinstance(source, (str, os.PathLike, BytesIO)) or not is_tiff(source) or find_spec("tifffile") is None:
        return None
    import tifffile

    rewind(source)
    try:
        with tifffile.TiffFile(source) as file:
            kinds = [getattr(page, "subfiletype", 0) for page in file.pages]
            place = next((place for place, kind in enumerate(kinds) if kind & (_MASK | _REDUCED) == _MASK), None)
            return None if place is None else file.pages[place].asarray() > 0
    except BROKEN as error:
        raise UserError(
            f"corrupt image ({first_line(error)})", where=source_name(source), fix="remove or replace the file"
        ) from error
