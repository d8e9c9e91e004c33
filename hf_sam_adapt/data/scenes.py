"""Images and masks of any size, read by windows: rasters from their files, all others from memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ..errors import UserError
from .channels import check_channels, load_header, load_image
from .images import Header, MaskContent, check_photograph, read_mask_file
from .nodata import filled, valid_pixels
from .rasters import Place, Raster, open_raster, raster_of, same_grid
from .stored import Values, is_beyond_limit, placeholder
from .tiles import Window


BAND_ROWS = 512  # that are read at once where all of an image is gone through
MASK_IGNORE = 255


class ImageWindows(Protocol):
    """An image that is read by windows.

    Attributes:
        size: (height, width).
        place: where on a map it lies; None = the file does not say, or nothing that is installed can tell.
        nodata: the value that stands for no data in the file.
    """

    size: tuple[int, int]
    place: Place | None
    nodata: float | None

    def image(self, window: Window) -> np.ndarray:
        """uint8 (h, w, 3), or float32 (h, w, C), as `load_image` returns it."""

    def valid(self, window: Window) -> np.ndarray | None:
        """bool (h, w), False where the file says that it holds no data; None = data everywhere."""


class WholeImage:
    """An image in memory; `known` is bool (H, W) of where it has data."""

    place: Place | None = None
    nodata: float | None = None

    def __init__(self, pixels: np.ndarray, known: np.ndarray | None = None) -> None:
        self.pixels, self.known = pixels, known
        self.size: tuple[int, int] = (pixels.shape[0], pixels.shape[1])

    def image(self, window: Window) -> np.ndarray:
        return np.ascontiguousarray(self.pixels[window.slices])

    def valid(self, window: Window) -> np.ndarray | None:
        return None if self.known is None else self.known[window.slices]


class RasterImage:
    """An image in a TIFF; `opened` is what `open_raster` gives."""

    def __init__(self, raster: Raster, opened: Any, channels: int | None) -> None:
        self.raster, self.channels, self._opened = raster, channels, opened
        self.size, self.nodata = raster.size, raster.nodata
        self.place: Place | None = opened.place()
        self._alpha = raster.alpha and raster.placed
        self._last: tuple[Window, np.ndarray, np.ndarray | None] | None = None

    def image(self, window: Window) -> np.ndarray:
        values, valid = self._read(window)
        values = filled(values, valid, self._alpha)
        if self.channels is None and values.dtype == np.uint16:
            values = (values // self._levels).astype(np.uint8)
        if self.channels is None and self.raster.inverted:
            values = 255 - values
        return load_image(values, self.channels, self.raster.path)

    def valid(self, window: Window) -> np.ndarray | None:
        return self._read(window)[1]

    def _read(self, window: Window) -> tuple[np.ndarray, np.ndarray | None]:
        if self._last is None or self._last[0] != window:
            values = self._opened.read(window)
            shown = self._opened.shown(window)
            self._last = window, values, valid_pixels(values, self.nodata, self._alpha, shown)
        return self._last[1:]

    @cached_property
    def _levels(self) -> int:
        """By what 16-bit values are divided: one number for all windows, as for the whole image."""
        for window in bands(self.size):
            values, valid = self._read(window)
            if filled(values, valid, self._alpha).max(initial=0) > 4095:
                return 257
        return 16


@contextmanager
def open_image(source: Any, channels: int | None) -> Iterator[ImageWindows]:
    """Open a file, PIL image or array by windows; what is no raster is decoded at once.

    Raises:
        UserError: as `load_image`.
    """
    raster = raster_of(source) if isinstance(source, (str, os.PathLike)) else None
    if raster is None:
        yield WholeImage(load_image(source, channels))
        return
    raster_header(raster, channels)
    with open_raster(raster) as opened:
        yield RasterImage(raster, opened, channels)


def raster_header(raster: Raster, channels: int | None) -> Header:
    """Header of the image in a raster. Raises `UserError` for bands or values that reading it would leave out."""
    if channels is None:
        check_photograph(as_values(raster), raster.path)
    else:
        check_channels(placeholder(raster.shape, raster.dtype), channels, raster.path)
    height, width, bands_ = raster.shape
    return Header(height, width, raster.lossy, coloured=bands_ >= 3)


def scene_header(path: str, channels: int | None) -> Header:
    """Header of an image of any size: as `load_header`, and of rasters that are read by windows."""
    raster = by_windows(path)
    return load_header(path, channels) if raster is None else raster_header(raster, channels)


def by_windows(path: str | os.PathLike) -> Raster | None:
    """The raster that a file has to be read as: on a map, or too large for Pillow; None for all others."""
    raster = raster_of(path)
    return raster if raster is not None and _needs_windows(raster) else None


def _needs_windows(raster: Raster) -> bool:
    return raster.placed or is_beyond_limit(*raster.size)


def as_values(raster: Raster) -> Values:
    """A raster as an opened file, whose pixels are not read."""
    return Values(
        raster.shape,
        raster.dtype,
        raster.alpha,
        raster.lossy,
        "TIFF",
        lambda: placeholder(raster.shape, raster.dtype),
        raster.nodata,
        raster.placed,
    )


def valid_of(path: str) -> np.ndarray | None:
    """Where the image in a file has data, bool (H, W); None = everywhere."""
    raster = raster_of(path)
    if raster is None or not raster.hides:
        return None
    told = raster.nodata, raster.alpha and raster.placed
    with open_raster(raster) as opened:
        parts = [
            (window, valid_pixels(opened.read(window), *told, opened.shown(window))) for window in bands(raster.size)
        ]
    if all(part is None for _, part in parts):
        return None
    return np.concatenate([np.ones(window.size, bool) if part is None else part for window, part in parts])


class StoredMask:
    """A mask file read by windows, as it is stored.

    Attributes:
        size: (height, width).
        lossy: whether its values may have been changed.
    """

    def __init__(self, raster: Raster, opened: Any, content: MaskContent) -> None:
        self.size, self.lossy = raster.size, raster.lossy
        self._raster, self._opened, self._content = raster, opened, content
        self._nodata = class_free_nodata(raster)

    def read(self, window: Window) -> np.ndarray:
        """uint8 (h, w), or (h, w, 3) of colours, as `read_mask` returns it; 0 where the file holds no data."""
        values = self._opened.read(window)
        valid = valid_pixels(values, self._nodata)
        values = values if valid is None else np.where(valid[..., None], values, values.dtype.type(0))
        return read_mask_file(values, self._raster.path, content=self._content)[0]

    def valid(self, window: Window) -> np.ndarray | None:
        """bool (h, w), False where the file says that it holds no data; None = data everywhere."""
        return None if self._nodata is None else valid_pixels(self._opened.read(window), self._nodata)


class WholeMask:
    """A mask in memory."""

    def __init__(self, values: np.ndarray, lossy: bool) -> None:
        self.values, self.lossy = values, lossy
        self.size: tuple[int, int] = (values.shape[0], values.shape[1])

    def read(self, window: Window) -> np.ndarray:
        return self.values[window.slices]

    def valid(self, window: Window) -> np.ndarray | None:
        return None


@contextmanager
def open_mask(path: str, content: MaskContent) -> Iterator[StoredMask | None]:
    """A mask file by windows; None where it is no raster."""
    raster = raster_of(path)
    if raster is None:
        yield None
        return
    with open_raster(raster) as opened:
        yield StoredMask(raster, opened, content)


def class_free_nodata(raster: Raster) -> float | None:
    """The nodata value of a mask that cannot be a class: negative, above 254 or NaN; None where it may be one."""
    return None if raster.nodata is None or 0 <= raster.nodata < MASK_IGNORE else raster.nodata


def mask_by_windows(path: str) -> Raster | None:
    """The raster that a mask's file has to be read as: as `by_windows`, or one with pixels without data."""
    raster = raster_of(path)
    wanted = raster is not None and (_needs_windows(raster) or class_free_nodata(raster) is not None)
    return raster if wanted else None


def mask_valid_of(path: str) -> np.ndarray | None:
    """Where the mask in a file has data, bool (H, W); None = everywhere."""
    raster = raster_of(path)
    if raster is None or class_free_nodata(raster) is None:
        return None
    with open_mask(path, "values") as opened:
        return None if opened is None else opened.valid(Window(0, 0, *opened.size))


def check_grid(image: str, mask: str) -> None:
    """Raise `UserError` unless an image and its mask, where both lie on a map, have their pixels in one place."""
    rasters = [raster for raster in (raster_of(image), raster_of(mask)) if raster is not None and raster.placed]
    if len(rasters) == 2 and not same_grid(*rasters):
        raise UserError(
            "the mask has another grid than its image: other coordinates, pixel size or coordinate system",
            where=mask,
            fix="warp it to the image's grid, as rio warp --like or gdalwarp does",
            code="other-grid",
        )


def bands(size: tuple[int, int], rows: int = BAND_ROWS) -> Iterator[Window]:
    """An image from top to bottom, some rows at a time."""
    for top in range(0, size[0], rows):
        yield Window(top, 0, min(rows, size[0] - top), size[1])


def reduced(image: ImageWindows, longest: int) -> tuple[np.ndarray, int]:
    """An image of which no side has more than `longest` pixels, each the mean of `step` x `step`; and that step."""
    step = -(-max(image.size) // longest)
    if step == 1:
        return image.image(Window(0, 0, *image.size)), 1
    parts = [block_means(image.image(window), step) for window in bands(image.size, step * max(1, BAND_ROWS // step))]
    return np.concatenate(parts), step


def block_means(values: np.ndarray, step: int) -> np.ndarray:
    """Means of `step` x `step` pixels, smaller ones at the right and the bottom: (H, W, C) -> its type."""
    rows, columns = (np.arange(0, length, step) for length in values.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(values, rows, axis=0, dtype=np.float64), columns, axis=1)
    counts = np.diff([*rows, values.shape[0]])[:, None, None] * np.diff([*columns, values.shape[1]])[:, None]
    means = sums / counts
    return (np.rint(means) if values.dtype.kind in "iu" else means).astype(values.dtype)


def sample_window(target: np.ndarray, values: np.ndarray, window: Window, step: int) -> None:
    """Put every `step`-th row and column of an image that lies in a window at its place in `target`."""
    rows, columns = (np.arange(-start % step, length, step) for start, length in zip(window[:2], values.shape))
    if len(rows) and len(columns):
        top, left = (window.top + rows[0]) // step, (window.left + columns[0]) // step
        target[top : top + len(rows), left : left + len(columns)] = values[rows[:, None], columns]
