"""Reading images and masks: files and PIL images of any mode become plain uint8 arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError, first_line


IGNORE = 255
LOSSY_FORMATS = {"JPEG", "MPO", "JPEG2000", "WEBP"}
END_MARKERS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
EXIF_ORIENTATION = 0x0112  # values 5 to 8 swap height and width
_COLOUR_MODES = {"RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}
_WIDE_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}


def open_image(source: str | os.PathLike | BytesIO | Image.Image, name: str | None = None) -> Image.Image:
    """Open `source` lazily (header only). Raises `UserError` naming it when it is missing or no image."""
    if isinstance(source, Image.Image):
        return source
    try:
        return Image.open(source)
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{name or source}: not a readable image ({_reason(error)}); remove or replace the file"
        ) from error


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


def read_header(source: str | os.PathLike | BytesIO, name: str | None = None) -> Header:
    """Header of an encoded image, without decoding it.

    Raises:
        UserError: missing, no image, or cut short (the end marker is missing and the pixels cannot be decoded).
    """
    with open_image(source, name) as image:
        width, height = image.size
        # PIL decodes a whole PNG to look for its EXIF (a rotated one is noticed when it is read), and gives the size
        # of a TIFF after rotation.
        if image.format in ("JPEG", "MPO", "WEBP") and image.getexif().get(EXIF_ORIENTATION, 1) >= 5:
            width, height = height, width
        marker = END_MARKERS.get(image.format)
        if marker and not _ends_with(image, marker):
            read_image(source, name)
        return Header(height, width, is_lossy(image), image.mode in _COLOUR_MODES)


def is_lossy(image: Image.Image) -> bool:
    """Whether the format of an opened file may have changed the pixel values (JPEG and the like)."""
    return image.format in LOSSY_FORMATS


def read_image(source: str | os.PathLike | BytesIO | Image.Image | np.ndarray, name: str | None = None) -> np.ndarray:
    """Read an image as RGB.

    EXIF orientation is applied. 16-bit values are divided by 257, or by 16 when none exceeds 4095 (12-bit sensors
    stored in 16 bits, which would be nearly black otherwise). Alpha is dropped. Grey becomes three equal channels.

    Args:
        source: path, PIL image, or array uint8/uint16 of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        name: what error messages call it; the file's path by default.

    Returns:
        uint8 (H, W, 3).

    Raises:
        UserError: the file is missing, corrupt or of an unsupported kind; the message names it.
    """
    if isinstance(source, np.ndarray):
        return array_to_rgb(source)
    name = name or source_name(source)
    image = open_image(source, name)
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode in _WIDE_MODES:
            return array_to_rgb(_wide_to_uint16(np.asarray(image), name))
        if image.mode == "P" and "transparency" in image.info:
            # PIL warns when a palette with byte transparency goes straight to RGB.
            image = image.convert("RGBA")
        return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{name}: corrupt image ({_reason(error)}); remove or replace the file") from error


def read_mask(
    source: str | os.PathLike | BytesIO | Image.Image | np.ndarray, name: str | None = None, *, coloured: bool = False
) -> np.ndarray:
    """Read a mask as stored: palette indices, grey values, or the common value of three equal channels.

    Args:
        source: path, PIL image, or integer/bool array (H, W), (H, W, 1) or (H, W, 3) with values 0..255.
        name: what error messages call it; the file's path by default.
        coloured: give an RGB mask in its colours, whatever they are; other masks are read as ever.

    Returns:
        uint8 (H, W), or (H, W, 3) for an RGB mask if `coloured`. A 1-bit or bool mask gives {0, 1}.

    Raises:
        UserError: corrupt, truly coloured, or with values outside 0..255; the message names the file.
    """
    name = name or source_name(source)
    if not isinstance(source, np.ndarray):
        image = open_image(source, name)
        try:
            image = ImageOps.exif_transpose(image)
            if image.mode == "PA":
                image = image.getchannel(0)
            elif image.mode in ("LA", "RGBA", "CMYK", "YCbCr"):
                image = image.convert("L" if image.mode == "LA" else "RGB")
            source = np.asarray(image)
        except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
            raise UserError(f"{name}: corrupt mask ({_reason(error)}); remove or replace the file") from error
    if coloured and source.ndim == 3 and source.shape[2] in (3, 4) and source.dtype == np.uint8:
        return np.ascontiguousarray(source[..., :3])
    return _array_to_mask(source, name)


def load_array(source: str | os.PathLike | BytesIO, name: str | None = None) -> np.ndarray:
    """The array of a `.npy` file, memory-mapped; of encoded bytes, in memory. Raises `UserError` naming it."""
    try:
        return np.load(source, mmap_mode=None if isinstance(source, BytesIO) else "r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{name or source}: not a readable .npy array ({_reason(error)}); store plain numbers with numpy.save"
        ) from error


def array_to_rgb(array: np.ndarray) -> np.ndarray:
    """uint8/uint16/bool array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) -> uint8 (H, W, 3)."""
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint16:
        array = (array // 16 if array.max(initial=0) <= 4095 else array // 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise UserError(f"image array of type {array.dtype}: pass uint8 values 0..255 (or uint16)")
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise UserError(f"image array of shape {array.shape}: expected (H, W), (H, W, 3) or (H, W, 4)")
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    return np.ascontiguousarray(array[:, :, :3])


def array_header(array: np.ndarray) -> Header:
    """Header of an array (H, W) or (H, W, C) that stands for an image or a mask."""
    return Header(array.shape[0], array.shape[1], lossy=False, coloured=array.ndim == 3 and array.shape[2] >= 3)


def _wide_to_uint16(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind == "f":
        raise UserError(f"{name}: floating-point image; store it as 8-bit or 16-bit")
    if array.min(initial=0) < 0 or array.max(initial=0) > 65535:
        raise UserError(f"{name}: values outside 0..65535; store it as 8-bit or 16-bit")
    return array.astype(np.uint16)


def _array_to_mask(array: np.ndarray, name: str) -> np.ndarray:
    if array.ndim == 3 and array.shape[2] in (1, 3, 4):
        if array.shape[2] >= 3 and not ((array[..., 0] == array[..., 1]) & (array[..., 0] == array[..., 2])).all():
            raise UserError(
                f"{name}: a coloured mask, and no palette is given; set palette to the colours of the classes, or "
                "store one class index per pixel (grey or palette PNG)"
            )
        array = array[..., 0]
    if array.ndim != 2:
        raise UserError(f"{name}: mask of shape {array.shape}; expected one value per pixel (H, W)")
    if array.dtype != np.uint8:
        if array.dtype.kind not in "biu" or array.min(initial=0) < 0 or array.max(initial=0) > 255:
            raise UserError(f"{name}: mask values outside 0..255; store class indices as 8-bit, 255 = ignore")
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


def source_name(source: str | os.PathLike | BytesIO | Image.Image | np.ndarray) -> str:
    """What an error message calls an image."""
    if isinstance(source, (str, Path)):
        return str(source)
    return getattr(source, "filename", "") or "image in memory"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "of no known format"
    return first_line(error)
