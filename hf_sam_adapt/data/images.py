"""Reading images and masks: files and PIL images of any mode become plain uint8 arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..errors import UserError
from .mask_pages import mask_page
from .nodata import filled, valid_pixels
from .stored import (
    ALPHA_MODES,
    BROKEN,
    EXIF_ORIENTATION,
    WIDE_MODES,
    Encoded,
    Values,
    is_lossy,
    narrows,
    no_data,
    open_stored,
    reason,
    source_name,
    stored_grey,
    upright,
)


IGNORE = 255
MaskContent = Literal["values", "colours", "alpha"]
END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_COLOUR_MODES = {"RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_AS_STORED = "store it as 8-bit or 16-bit RGB, or set channels to {} to read its values as they are stored"


@dataclass(frozen=True)
class Header:
    """What the head of an image file says.

    Attributes:
        height, width: after EXIF rotation.
        lossy: whether its format may have changed the values.
        coloured: whether it holds red, green and blue rather than one value a pixel.
    """

    height: int
    width: int
    lossy: bool
    coloured: bool = False


def read_header(source: Encoded, name: str | None = None) -> Header:
    """Header of an image that `read_image` takes, without decoding it where that is not needed to know.

    Raises:
        UserError: missing, no image, cut short (the end marker is missing and the pixels cannot be decoded), or with
            bands, pages, bits or transparency that reading as RGB would leave out.
    """
    name = name or source_name(source)
    with open_stored(source, name) as stored:
        check_photograph(stored, name)
        header, hidden = header_of(stored), stored.alpha if isinstance(stored, Values) else has_alpha(stored)
        if hidden or is_cut_short(stored):
            read_image(source, name)
    return header


def read_mask_header(source: Encoded, name: str | None = None, content: MaskContent = "values") -> Header:
    """Header of a mask. Raises `UserError` as `read_header` does, of what `read_mask` would leave out."""
    with open_stored(source, name) as stored:
        header = header_of(stored)
        if isinstance(stored, Values) or stored.mode in ALPHA_MODES or content == "alpha" or is_cut_short(stored):
            read_mask(source, name, content=content)
    return header


def read_image(source: Encoded | Image.Image | np.ndarray, name: str | None = None) -> np.ndarray:
    """Read an image as RGB.

    EXIF orientation is applied. 16-bit values are divided by 257, or by 16 when none exceeds 4095 (12-bit sensors
    stored in 16 bits, which would be nearly black otherwise). Grey becomes three equal channels. Alpha is dropped
    where it is opaque. Pixels of a GeoTIFF without data get the mean colour of the others.

    Args:
        source: path, PIL image, or array uint8/uint16 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        name: what error messages call it; the file's path by default.

    Returns:
        uint8 (H, W, 3).

    Raises:
        UserError: the file is missing, corrupt or of an unsupported kind, or holds several pages or frames, further
            bands, floating-point values or transparent pixels, which RGB leaves out; the message names it.
    """
    name = name or source_name(source)
    if isinstance(source, np.ndarray):
        return array_to_rgb(source, name)
    with open_stored(source, name) as stored:
        check_photograph(stored, name)
        try:
            (nodata, alpha), shown = no_data(stored), mask_page(source)
            if isinstance(stored, Values):
                values = stored.read()
                return array_to_rgb(filled(values, valid_pixels(values, nodata, alpha, shown), alpha), name)
            image = upright(stored)
            if nodata is not None or alpha or shown is not None:
                image = _with_data(image, nodata, alpha, shown)
            if image.mode in WIDE_MODES:
                return array_to_rgb(_wide_to_uint16(np.asarray(image), name), name)
            if has_alpha(image):
                image = image.convert("RGBA")  # also where a colour of a palette, or one that is named, is transparent
                _check_opaque(np.asarray(image.getchannel("A")), name, len(stored.getbands()))
            return np.array(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"corrupt image ({reason(error)})", where=name, fix="remove or replace the file"
            ) from error


def _with_data(image: Image.Image, nodata: float | None, alpha: bool, shown: np.ndarray | None) -> Image.Image:
    """A picture whose pixels without data have the mean colour of the others."""
    if image.mode == "P":
        return image
    values = np.asarray(image)
    valid = valid_pixels(values, nodata, alpha, shown)
    return image if valid is None else Image.fromarray(filled(values, valid, alpha), image.mode)


def read_mask(
    source: Encoded | Image.Image | np.ndarray, name: str | None = None, *, content: MaskContent = "values"
) -> np.ndarray:
    """Read a mask as stored: palette indices, grey values, or the common value of three equal channels.

    Of a GIF, in which everything is an index, the colours count.

    Args:
        source: path, PIL image, or real array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        name: what error messages call it; the file's path by default.
        content: "values"; "colours" gives an RGB mask in its colours, whatever they are, other masks as ever; "alpha"
            gives the opacity of what is drawn on a transparent layer.

    Returns:
        uint8 (H, W), or (H, W, 3) of colours. Values that are no integers in 0..255 come in their own type. A 1-bit or
        bool mask gives {0, 1}.

    Raises:
        UserError: corrupt, truly coloured, partly transparent, several pages or frames, or not finite; the message
            names the file.
    """
    return read_mask_file(source, name, content=content)[0]


def read_mask_file(
    source: Encoded | Image.Image | np.ndarray, name: str | None = None, *, content: MaskContent = "values"
) -> tuple[np.ndarray, bool]:
    """As `read_mask`, and whether the mask is stored lossily."""
    name = name or source_name(source)
    if isinstance(source, np.ndarray):
        return _array_to_mask(source, name, content), False
    with open_stored(source, name) as stored:
        try:
            array = stored.read() if isinstance(stored, Values) else _mask_of_picture(stored, name, content)
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"corrupt mask ({reason(error)})", where=name, fix="remove or replace the file") from error
        return _array_to_mask(array, name, content), is_lossy(stored)


def has_alpha(image: Image.Image) -> bool:
    """Whether an image says of its pixels how transparent they are."""
    return image.mode in ALPHA_MODES or (image.mode not in WIDE_MODES and "transparency" in image.info)


def load_array(source: Encoded, name: str | None = None) -> np.ndarray:
    """The array of a `.npy` file, memory-mapped; of encoded bytes, in memory. Raises `UserError` naming it."""
    try:
        return np.load(source, mmap_mode=None if isinstance(source, BytesIO) else "r", allow_pickle=False)
    except (*BROKEN, TokenError) as error:
        raise UserError(
            f"not a readable .npy array ({reason(error)})",
            where=name or source,
            fix="store plain numbers with numpy.save",
        ) from error


def array_to_rgb(array: np.ndarray, name: str = "image array") -> np.ndarray:
    """uint8/uint16/bool array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) -> uint8 (H, W, 3). Alpha has to be opaque."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4):
        raise UserError(f"shape {array.shape}", where=name, fix="expected (H, W), (H, W, 3) or (H, W, 4)")
    if array.dtype not in (bool, np.uint8, np.uint16):
        raise UserError(
            f"values of type {array.dtype}",
            where=name,
            fix=f"pass uint8 values 0..255 (or uint16), or set channels to {array.shape[2]} for values as they are "
            "stored",
            code="bit-depth",
        )
    if array.shape[2] in (2, 4):
        _check_opaque(array[:, :, -1], name, array.shape[2])
        array = array[:, :, :-1]
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        array = (array // 16 if array.max(initial=0) <= 4095 else array // 257).astype(np.uint8)
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array)


def array_header(array: np.ndarray) -> Header:
    """Header of an array (H, W) or (H, W, C) that stands for an image or a mask."""
    return Header(array.shape[0], array.shape[1], lossy=False, coloured=array.ndim == 3 and array.shape[2] >= 3)


def header_of(stored: Image.Image | Values) -> Header:
    """Header of an opened file."""
    if isinstance(stored, Values):
        return Header(stored.shape[0], stored.shape[1], stored.lossy, coloured=stored.shape[2] >= 3)
    width, height = stored.size
    # PIL decodes a whole PNG to look for its EXIF (a rotated one is noticed when it is read), and gives the size of a
    # TIFF after rotation.
    if stored.format in ("JPEG", "MPO", "WEBP") and stored.getexif().get(EXIF_ORIENTATION, 1) >= 5:
        width, height = height, width
    return Header(height, width, is_lossy(stored), stored.mode in _COLOUR_MODES or _is_indexed_gif(stored))


def is_cut_short(stored: Image.Image | Values) -> bool:
    """Whether the marker that ends such a file is missing."""
    marker = END_MARKERS.get(stored.format or "") if isinstance(stored, Image.Image) else None
    return marker is not None and not _ends_with(stored, marker)


def check_photograph(stored: Image.Image | Values, name: str) -> None:
    """Refuse what reading as RGB of 8 bits would leave out, as far as the head of the file says it."""
    if isinstance(stored, Image.Image):
        if stored.mode == "F":
            raise UserError("floating-point image", where=name, fix=_AS_STORED.format(1), code="bit-depth")
        if stored.mode == "LAB":
            raise UserError("colours of mode LAB", where=name, fix="store it as RGB")
        return
    bands = stored.shape[2]
    if bands - stored.alpha not in (1, 3):
        raise UserError(
            f"{bands} bands, a photograph has red, green and blue",
            where=name,
            fix=_AS_STORED.format(bands),
            code="channels",
        )
    if stored.dtype not in (bool, np.uint8, np.uint16):
        kind = "floating-point image" if stored.dtype.kind == "f" else f"values of type {stored.dtype}"
        raise UserError(kind, where=name, fix=_AS_STORED.format(bands), code="bit-depth")


def _check_opaque(alpha: np.ndarray, name: str, channels: int) -> None:
    """Refuse an image whose transparent pixels RGB would show in colours that are not seen."""
    share = float((alpha < _opaque(alpha)).mean()) if alpha.size else 0.0
    if share:
        as_stored = f", or set channels to {channels} to read alpha as one of them" if channels in (2, 4) else ""
        raise UserError(
            f"{100 * share:.3g} % of the pixels are transparent, which reading as RGB leaves out",
            where=name,
            fix=f"store it without alpha{as_stored}",
            code="alpha",
        )


def _opaque(alpha: np.ndarray) -> Any:
    """The value of pixels through which nothing is seen."""
    if alpha.dtype in (np.uint8, np.uint16):
        return np.iinfo(alpha.dtype).max
    return 1 if alpha.max(initial=0) <= 1 else 255


def _wide_to_uint16(array: np.ndarray, name: str) -> np.ndarray:
    if array.min(initial=0) < 0 or array.max(initial=0) > 65535:
        raise UserError("values outside 0..65535", where=name, fix=_AS_STORED.format(1), code="bit-depth")
    return array.astype(np.uint16)


def _mask_of_picture(stored: Image.Image, name: str, content: MaskContent) -> np.ndarray:
    """(H, W) or (H, W, C) of the values that the file stores."""
    if narrows(stored):
        raise UserError(
            "more than 8 bits in several channels, of which Pillow keeps 8",
            where=name,
            fix="store it as PNG",
            code="bit-depth",
        )
    as_stored, image = stored_grey(stored), upright(stored)
    if content == "alpha":
        if not has_alpha(image):
            raise _no_alpha(name)
        return np.asarray(image.convert("RGBA").getchannel("A"))
    if image.mode == "PA":
        return np.stack([np.asarray(image.getchannel(band)) for band in (0, 0, 0, 1)], axis=2)
    if image.mode in ("CMYK", "YCbCr") or _is_indexed_gif(stored):
        image = image.convert("RGBA" if has_alpha(image) else "RGB")
    return as_stored(np.asarray(image))


def _is_indexed_gif(stored: Image.Image) -> bool:
    """Whether it is the format, not the annotator, that made indices of values: 1 may be black in it."""
    return stored.format == "GIF" and stored.mode == "P"


def _array_to_mask(array: np.ndarray, name: str, content: MaskContent) -> np.ndarray:
    """(H, W) or (H, W, C) of any real type -> what `read_mask` returns."""
    if array.dtype.kind not in "biuf":
        raise UserError(f"mask of type {array.dtype}", where=name, fix="store class indices as 8-bit, 255 = ignore")
    if array.ndim == 3 and array.shape[2] in (2, 4):
        if content == "alpha":
            return _narrowed(array[..., -1], name)
        alpha = array[..., -1]
        share = float((alpha < _opaque(alpha)).mean()) if alpha.size else 0.0
        if share:
            raise UserError(
                f"{100 * share:.3g} % of the mask is transparent, and its values do not say what is drawn",
                where=name,
                fix="set mask_values to alpha (what is visible is foreground), or store it without alpha",
                code="alpha",
            )
        array = array[..., :-1]
    elif content == "alpha" and array.ndim == 3 and array.shape[2] != 1:
        raise _no_alpha(name)
    if array.ndim == 3 and array.shape[2] == 3:
        if content == "colours":
            return _colours(array, name)
        if not ((array[..., 0] == array[..., 1]) & (array[..., 0] == array[..., 2])).all():
            raise UserError(
                "a coloured mask, and no palette is given",
                where=name,
                fix="set palette to the colours of the classes, or store one class index per pixel (grey or palette "
                "PNG)",
                code="palette",
            )
        array = array[..., 0]
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2:
        raise UserError(f"mask of shape {array.shape}", where=name, fix="expected one value per pixel (H, W)")
    return _narrowed(array, name)


def _no_alpha(name: str) -> UserError:
    fix = "set mask_values to binary or index"
    return UserError("a mask without an alpha channel", where=name, fix=fix, code="alpha")


def _colours(array: np.ndarray, name: str) -> np.ndarray:
    """uint8 (H, W, 3) of colours of 8 or 16 bits."""
    if array.dtype == np.uint16 and not (array % 257).any():
        array = (array // 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(
            f"colours of type {array.dtype}, a palette has 8 bits", where=name, fix="store it as 8-bit RGB"
        )
    return np.ascontiguousarray(array)


def _narrowed(array: np.ndarray, name: str) -> np.ndarray:
    """As uint8 where no value is lost by it."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(
            "a mask with values that are NaN or infinite",
            where=name,
            fix="give them a number, 255 = ignore",
            code="not-finite",
        )
    if array.dtype != np.uint8:
        fits = array.min(initial=0) >= 0 and array.max(initial=0) <= 255
        if not fits or (array.dtype.kind == "f" and (array % 1).any()):
            return np.ascontiguousarray(array)
        array = array.astype(np.uint8)
    return np.ascontiguousarray(array)


def _ends_with(image: Image.Image, marker: bytes) -> bool:
    """Whether `marker` is among the last bytes of the image's file (some writers append a few of their own)."""
    position = image.fp.tell()
    size = image.fp.seek(0, os.SEEK_END)
    image.fp.seek(max(0, size - 64))
    found = marker in image.fp.read(64)
    image.fp.seek(position)
    return found
