"""Images of any number of channels, 8 or 16 bits or floating point: arrays, `.npy`, TIFF and what Pillow reads."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import UserError, first_line
from .images import Header, array_header, header_of, is_cut_short, load_array, read_header, read_image
from .mask_pages import mask_page
from .nodata import filled, valid_pixels
from .stored import (
    BROKEN,
    Encoded,
    Values,
    narrows,
    no_data,
    open_stored,
    placeholder,
    rewind,
    source_name,
    stored_grey,
    upright,
)


ARRAY_SUFFIX = ".npy"
DISPLAY_PERCENTILES = (1.0, 99.0)
Source = Encoded | Image.Image | np.ndarray

_MODES = {"1", "L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
_ARRAY_START = b"\x93NUMPY"


def load_image(source: Source, channels: int | None, name: str | None = None) -> np.ndarray:
    """`read_image` of a photograph (`channels` None), uint8 (H, W, 3), or `read_channels`, float32 (H, W, C)."""
    return read_image(source, name) if channels is None else read_channels(source, channels, name)


def load_header(source: Encoded | np.ndarray, channels: int | None, name: str | None = None) -> Header:
    """Size of what `load_image` would read, without its pixels where the format allows it."""
    if channels is not None:
        return read_channel_header(source, channels, name)
    if isinstance(source, np.ndarray):
        return array_header(source)
    return read_header(source, name)


def read_channels(source: Source, channels: int, name: str | None = None) -> np.ndarray:
    """Read an image of exactly `channels` channels, its values as they are stored.

    Args:
        source: path, encoded bytes, PIL image, or array (H, W) or (H, W, C) of a boolean, integer or real type.
            Samples and pages of a TIFF are its channels. Pixels of a GeoTIFF without data get the mean of the others.
        channels: C, at least 1.
        name: what error messages call it; the file's path by default.

    Returns:
        float32 (H, W, C), contiguous.

    Raises:
        UserError: unreadable, another number of channels, or NaN or infinite values; the message names the file.
    """
    name = name or source_name(source)
    array = check_channels(_open_array(source, channels, name, pixels=True), channels, name)
    with np.errstate(over="ignore"):  # float64 beyond the range of float32 becomes infinite and is counted
        values = np.ascontiguousarray(array, dtype=np.float32)
    wrong = int(np.count_nonzero(~np.isfinite(values).all(axis=2)))
    if wrong:
        raise UserError(
            f"{wrong} of {values.shape[0] * values.shape[1]} pixels are NaN or infinite",
            where=name,
            fix="give them a finite value, and 255 (ignore) in the mask",
            code="not-finite",
        )
    return values


def read_channel_header(source: Source, channels: int, name: str | None = None) -> Header:
    """Size of an image, without decoding it. Raises `UserError` if it is unreadable or its channels are not C."""
    name = name or source_name(source)
    array = check_channels(_open_array(source, channels, name, pixels=False), channels, name)
    return Header(array.shape[0], array.shape[1], lossy=False)


def displayable(image: np.ndarray) -> np.ndarray:
    """An image of any channels as a picture.

    Args:
        image: uint8 (H, W, 3), returned as it is, or a real array (H, W, C).

    Returns:
        uint8 (H, W, 3): one channel as grey, two as red and green, otherwise the first three. Each is stretched from
        its 1st to its 99th percentile.
    """
    if image.dtype == np.uint8 and image.shape[2] == 3:
        return image
    values = image[..., :3].astype(np.float32)
    low, high = np.percentile(values, DISPLAY_PERCENTILES, axis=(0, 1), keepdims=True)  # (1, 1, c)
    stretched = np.clip((values - low) / np.where(high > low, high - low, 1), 0, 1)
    shown = (stretched * 255).round().astype(np.uint8)
    if shown.shape[2] == 1:
        return np.repeat(shown, 3, axis=2)
    return np.pad(shown, ((0, 0), (0, 0), (0, 3 - shown.shape[2])))


def _open_array(source: Source, channels: int, name: str, pixels: bool) -> np.ndarray:
    """(H, W, C); without `pixels` an array of that shape whose values mean nothing."""
    if isinstance(source, np.ndarray):
        return _with_channels(source, name)
    if not isinstance(source, Image.Image) and _first_bytes(source, name).startswith(_ARRAY_START):
        rewind(source)
        return _with_channels(load_array(source, name), name)
    with open_stored(source, name, channels) as stored:
        nodata, alpha = no_data(stored)
        if isinstance(stored, Values):
            if not pixels:
                return placeholder(stored.shape, stored.dtype)
            values = stored.read()
            return filled(values, valid_pixels(values, nodata, alpha, mask_page(source)), alpha)
        if stored.mode not in _MODES:
            raise UserError(
                f"an image of mode {stored.mode}",
                where=name,
                fix="with channels, store values instead of palette indices",
                code="channels",
            )
        if narrows(stored):
            raise UserError(
                "16 bits in several channels, of which Pillow keeps 8",
                where=name,
                fix="store it as TIFF or .npy",
                code="bit-depth",
            )
        if not pixels and not is_cut_short(stored):
            header = header_of(stored)
            return placeholder((header.height, header.width, len(stored.getbands())), np.uint8)
        try:
            as_stored = stored_grey(stored)
            values = _with_channels(as_stored(np.asarray(upright(stored))), name)
            return filled(values, valid_pixels(values, nodata, alpha, mask_page(source)), alpha)
        except (*BROKEN, Image.DecompressionBombError) as error:
            raise UserError(
                f"corrupt image ({first_line(error)})", where=name, fix="remove or replace the file"
            ) from error


def _with_channels(array: np.ndarray, name: str) -> np.ndarray:
    """(H, W) or (H, W, C) -> (H, W, C)."""
    if array.ndim not in (2, 3):
        raise UserError(f"image array of shape {array.shape}", where=name, fix="expected (H, W) or (H, W, channels)")
    return array if array.ndim == 3 else array[:, :, None]


def check_channels(array: np.ndarray, channels: int, name: str) -> np.ndarray:
    """`array` (H, W, C); raises `UserError` unless it holds real numbers in `channels` channels."""
    if array.dtype.kind not in "biuf":
        hint = "; store its amplitude" if array.dtype.kind == "c" else ""
        raise UserError(f"image of type {array.dtype}, expected integers or real numbers{hint}", where=name)
    if array.shape[2] != channels:
        first = array.shape[0] == channels
        hint = "store it as (H, W, channels), they come first in it" if first else "fix the file or set channels"
        problem = f"{array.shape[2]} channels, but channels is {channels}"
        raise UserError(problem, where=name, fix=hint, code="channels")
    if 0 in array.shape:
        raise UserError(f"image of shape {array.shape} without pixels", where=name, fix="remove or replace the file")
    return array


def _first_bytes(source: Encoded, name: str) -> bytes:
    if isinstance(source, BytesIO):
        return source.getbuffer()[:8].tobytes()
    try:
        with Path(source).open("rb") as file:
            return file.read(8)
    except OSError as error:
        raise UserError(
            f"not a readable image ({first_line(error)})", where=name, fix="remove or replace the file"
        ) from error
