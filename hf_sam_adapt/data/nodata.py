"""Pixels of which a GeoTIFF says that it holds no data: which they are, and what is read in their place."""

from __future__ import annotations

from typing import Any

import numpy as np


NODATA_TAG = 42113  # GDAL writes the value as text
PLACE_TAGS = (33550, 33922, 34264)  # the scale and tie points, or the matrix, from pixels to coordinates


def nodata_of(text: Any) -> float | None:
    """The value of a TIFF's `NODATA_TAG`; None where it has none, or one that is no number."""
    try:
        return None if text is None else float(str(text).strip("\0 "))
    except ValueError:
        return None


def valid_pixels(
    values: np.ndarray, nodata: float | None, alpha: bool = False, mask: np.ndarray | None = None
) -> np.ndarray | None:
    """Where there are data, bool (H, W); None = everywhere.

    A pixel without data has the nodata value in every band, or NaN in one where that value is given, or is wholly
    transparent, or the file's mask leaves it out.

    Args:
        values: (H, W) or (H, W, C), as they are stored.
        nodata: the value that stands for no data; None = none does.
        alpha: the last band is opacity.
        mask: the file's own, bool (H, W), False where there are none; None = it has no mask.
    """
    bands = values if values.ndim == 3 else values[..., None]
    without = np.zeros(bands.shape[:2], bool)
    if nodata is not None:
        shown = bands[..., :-1] if alpha else bands
        # A value that the type cannot hold is compared as it is, and is in no pixel.
        without = (shown == nodata).all(axis=2) if np.isfinite(nodata) else without
        if shown.dtype.kind == "f":
            without |= np.isnan(shown).any(axis=2)
    if alpha:
        without |= bands[..., -1] == 0
    if mask is not None:
        without |= ~mask
    return ~without if without.any() else None


def filled(values: np.ndarray, valid: np.ndarray | None, alpha: bool = False) -> np.ndarray:
    """`values` with the mean of the valid pixels of each band where there are no data, and 0 where there are none.

    With `alpha` they become opaque.
    """
    if valid is None:
        return values
    values = values.copy()
    inside = values[valid]  # (N,) or (N, C)
    if len(inside):
        mean = inside.mean(axis=0, dtype=np.float64)
        values[~valid] = mean if values.dtype.kind == "f" else np.rint(mean)
    else:
        values[:] = 0
    if alpha:
        opaque = np.iinfo(values.dtype).max if values.dtype.kind == "u" else 1
        values[..., -1] = np.where(valid, values[..., -1], opaque)
    return values
