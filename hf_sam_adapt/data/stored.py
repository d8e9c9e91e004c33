"""Opening image files: all bands and bits of their one picture, also where Pillow's mode holds less than the file."""

from __future__ import annotations

import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError, first_line
from .nodata import NODATA_TAG, PLACE_TAGS, nodata_of


Encoded = str | os.PathLike | BytesIO
Opened = Any  # Pillow's image, with what those of files have in addition: tile, fp, tag_v2
BROKEN = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    RuntimeError,
    ArithmeticError,
    SyntaxError,
    EOFError,
    struct.error,
    zlib.error,
)
EXIF_ORIENTATION = 0x0112  # values 5 to 8 swap height and width
LOSSY_FORMATS = {"JPEG", "MPO", "JPEG2000", "WEBP", "AVIF"}
ONE_PICTURE = {"MPO", "PSD", "ICO", "ICNS"}  # what else they hold are previews, depth maps, layers, other sizes
WIDE_MODES = {"I", "F", "I;16", "I;16L", "I;16B", "I;16N"}
ALPHA_MODES = {"LA", "RGBA", "PA"}
OPACITY = (1, 2)  # values of a TIFF's ExtraSamples
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SUBFILE_TYPE, _BITS, _SAMPLES, _EXTRA, _SAMPLE_FORMAT = 254, 258, 277, 338, 339  # tags of TIFF
_LOSSY_TIFF = {"jpeg", "tiff_jpeg", "webp"}
_LOSSY_COMPRESSIONS = {6, 7, 33003, 33004, 33005, 34712, 34887, 50001, 50002}  # JPEG, JPEG 2000, LERC, WebP, JPEG XL


@dataclass(frozen=True)
class Values:
    """The picture of a file that Pillow does not know, or of which its mode holds less.

    Attributes:
        shape: (H, W, C), upright.
        dtype: of the values.
        alpha: whether the last band is opacity.
        lossy: whether the file may have changed the values.
        format: of the file, as Pillow calls it.
        read: decodes it, (H, W, C) of `dtype`.
        nodata: the value that stands for no data, None = none does.
        placed: whether the file says where on a map its pixels are.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype
    alpha: bool
    lossy: bool
    format: str
    read: Callable[[], np.ndarray]
    nodata: float | None = None
    placed: bool = False


@contextmanager
def open_stored(
    source: Encoded | Image.Image, name: str | None = None, channels: int | None = None
) -> Iterator[Image.Image | Values]:
    """Open `source` lazily: Pillow's image where its mode holds every band and bit, else `Values`.

    Args:
        channels: the pages of a TIFF are channels of one image; None = a file holds one picture.

    Raises:
        UserError: missing, no image, too large, or several pages or frames; the message names it.
    """
    name = name or source_name(source)
    if isinstance(source, Image.Image):
        file = getattr(source, "filename", None) or getattr(source, "fp", None)
        found = source if file is None else _values_of(source, file, name, channels)
        changed = isinstance(found, Values) and sorted(found.shape[:2]) != sorted(source.size)  # by its owner
        yield source if changed else found
        return
    rewind(source)
    try:
        image = Image.open(source)
    except Image.DecompressionBombError as error:
        raise _too_large(name) from error
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        if isinstance(error, UnidentifiedImageError) and is_tiff(source):
            yield _tiff_values(source, name, channels)
            return
        raise UserError(
            f"not a readable image ({reason(error)})", where=name, fix="remove or replace the file"
        ) from error
    with image:
        yield _values_of(image, source, name, channels)


def _values_of(image: Opened, source: Any, name: str, channels: int | None) -> Image.Image | Values:
    """`Values` of a file where `image`, which Pillow opened from it, holds less; else `image`."""
    pages, tiff, frame = _pages(image), image.format == "TIFF", image.tell()
    if pages > 1 and (channels is None or not tiff):
        raise _several(name, pages, tiff)
    size, rawmodes = (image.height, image.width), set(_rawmodes(image))
    if tiff and (pages > 1 or _hides_samples(image) or (channels is not None and _is_unsigned_32(image))):
        if pages == 1 and rawmodes == {"RGBX"} and len(image.tag_v2.get(_BITS)) == 4:
            read = partial(_decoded, source, lambda rawmode: "RGBA", frame, "RGBA")
            return Values((*size, 4), np.dtype(np.uint8), False, is_lossy(image), "TIFF", read, *_place_of(image))
        return _tiff_values(source, name, channels)
    if len(image.getbands()) > 1 and any(";16" in rawmode for rawmode in rawmodes):
        bands = 2 if "LA;16B" in rawmodes else len(image.getbands())
        read = partial(_both_bytes, source, bands, frame)
        told = np.dtype(np.uint16), bands in (2, 4), False, str(image.format), read
        return Values((*size, bands), *told, *_place_of(image))
    return image


def _place_of(image: Opened) -> tuple[float | None, bool]:
    """The value that stands for no data in an opened file, and whether it says where on a map its pixels are."""
    tags = image.tag_v2 if image.format == "TIFF" else {}
    return nodata_of(tags.get(NODATA_TAG)), any(tag in tags for tag in PLACE_TAGS)


def upright(image: Image.Image) -> Image.Image:
    """`image` turned as its EXIF orientation says."""
    return ImageOps.exif_transpose(image)


def is_lossy(image: Image.Image | Values) -> bool:
    """Whether the format of an opened file may have changed the pixel values (JPEG and the like)."""
    if isinstance(image, Values):
        return image.lossy
    return image.format in LOSSY_FORMATS or image.info.get("compression") in _LOSSY_TIFF


def stored_grey(image: Opened) -> Callable[[np.ndarray], np.ndarray]:
    """What takes the values of an opened image (not yet loaded) back to those that its file stores.

    Pillow stretches grey values of 2 and 4 bits, and those of PGM files, to its own range, and turns those of TIFFs
    around in which 0 is white.
    """
    rawmode = next(iter(_rawmodes(image)), "")
    if rawmode.startswith("L;") and not rawmode.startswith("L;16"):
        step = 255 // (2 ** int(rawmode[2]) - 1) if rawmode[2] in "24" else 1
        inverted = "I" in rawmode
        return lambda array: (255 - array if inverted else array) // step
    if image.format == "PPM" and rawmode and isinstance(image.tile[0][3], tuple) and len(image.getbands()) == 1:
        largest = image.tile[0][3][1]
        own = 255 if image.mode == "L" else 65535
        if image.mode in ("L", "I") and largest not in (0, own):
            return lambda array: np.rint(array * (largest / own)).astype(array.dtype)
    return lambda array: array


def narrows(image: Opened) -> bool:
    """Whether Pillow scales more than 8 bits of several bands down to 8."""
    if len(image.getbands()) < 2 or not _rawmodes(image):
        return False
    if image.format == "PPM":
        arguments = image.tile[0][3]
        return isinstance(arguments, tuple) and int(arguments[1]) > 255
    if image.format == "JPEG2000" and image.fp is not None:
        place = image.fp.tell()
        image.fp.seek(0)
        head = image.fp.read(65536)
        image.fp.seek(place)
        size = head.find(b"\xff\x4f\xff\x51")  # the codestream's start and its first segment, SIZ
        return size >= 0 and (head[size + 42] & 0x7F) + 1 > 8
    return False


def no_data(stored: Opened | Values) -> tuple[float | None, bool]:
    """The value that stands for no data in an opened file, and whether its transparent pixels have none.

    Of a picture that lies nowhere on a map they do not: what is hidden may be meant.
    """
    if isinstance(stored, Values):
        return stored.nodata, stored.alpha and stored.placed
    nodata, placed = _place_of(stored)
    return nodata, placed and stored.mode in ALPHA_MODES


def source_name(source: Any) -> str:
    """What an error message calls an image."""
    if isinstance(source, (str, Path)):
        return str(source)
    return getattr(source, "filename", "") or "image in memory"


def reason(error: Exception) -> str:
    return "of no known format" if isinstance(error, UnidentifiedImageError) else first_line(error)


def is_beyond_limit(height: int, width: int) -> bool:
    """Whether an image is too large to be read at once: beyond Pillow's limit."""
    return bool(Image.MAX_IMAGE_PIXELS) and height * width > 2 * (Image.MAX_IMAGE_PIXELS or 0)


def _too_large(name: str) -> UserError:
    """The error for an image beyond Pillow's limit."""
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
    problem = f"more than the {limit:.0f} million pixels that are read at once"
    return UserError(problem, where=name, fix="cut it into smaller images, or store it as TIFF and set tile")


def rewind(source: Any) -> None:
    if isinstance(source, BytesIO):
        source.seek(0)


def placeholder(shape: Sequence[int], dtype: Any) -> np.ndarray:
    """An array of `shape` that takes no memory."""
    return np.broadcast_to(np.zeros((), dtype), tuple(shape))


def _several(name: str, count: int, tiff: bool) -> UserError:
    problem = f"{count} {'pages' if tiff else 'frames'}, of which only one would be read"
    channels = ", or set channels if they are the channels of one image" if tiff else ""
    return UserError(problem, where=name, fix=f"store each as a file of its own{channels}", code="frames")


def _pages(image: Opened) -> int:
    """Pictures in a file; thumbnails, overviews and masks of a TIFF do not count, nor those that a caller skipped."""
    try:
        count = 1 if image.format in ONE_PICTURE else getattr(image, "n_frames", 1)
        if count == 1 or image.tell() > 0:
            return 1
        if image.format != "TIFF":
            return count
        kinds = []
        for page in range(count):
            image.seek(page)
            kinds.append(image.tag_v2.get(_SUBFILE_TYPE, 0))
        image.seek(0)
    except BROKEN:
        return 1  # damaged further on: said when it is read
    return max(1, sum(not kind & 5 for kind in kinds))  # 1 = reduced in size, 4 = a mask


def _rawmodes(image: Opened) -> list[str]:
    """How Pillow will read the parts of an image that is not yet loaded."""
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    return [str(one if isinstance(one, str) or not isinstance(one, tuple) else one[0]) for one in arguments]


def _hides_samples(image: Opened) -> bool:
    """Whether a TIFF has samples or bits that Pillow's mode leaves out."""
    tags, bands = image.tag_v2, len(image.getbands())
    found = (tags.get(tag, default) for tag, default in ((_BITS, 1), (_EXTRA, ()), (_SAMPLE_FORMAT, 1)))
    bits, extra, kinds = (value if isinstance(value, tuple) else (value,) for value in found)
    if tags.get(_SAMPLES, 1) != bands or 0 in extra:
        return True
    if bands == 1:
        return kinds[:1] == (2,) and bits == (8,)  # signed bytes, which Pillow takes for unsigned ones
    # The bytes of 16 bits are read one after the other; not where each band lies on its own.
    return max(bits) > 8 and not (image.tile and all(";16" in rawmode for rawmode in _rawmodes(image)))


def _is_unsigned_32(image: Opened) -> bool:
    """Whether a TIFF has unsigned numbers of 32 bits, which Pillow takes for signed ones."""
    bits, kind = (image.tag_v2.get(tag) for tag in (_BITS, _SAMPLE_FORMAT))
    return bits in (32, (32,)) and kind in (None, 1, (1,))


def _both_bytes(source: Any, bands: int, frame: int) -> np.ndarray:
    """uint16 (H, W, C): Pillow gives the high byte of 16 bits, or taken in the other byte order the low one."""
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    if bands == 2:  # as four bytes: those of grey, those of alpha
        both = _decoded(source, lambda rawmode: "RGBA", frame).astype(np.uint16)
        return both[..., ::2] << 8 | both[..., 1::2]
    high = _decoded(source, lambda rawmode: rawmode, frame)
    return high.astype(np.uint16) << 8 | _decoded(source, lambda rawmode: rawmode[:-1] + other[rawmode[-1]], frame)


def _decoded(source: Any, change: Callable[[str], str], frame: int, mode: str | None = None) -> np.ndarray:
    """uint8 (H, W, C) of a file that is read in another way than Pillow chose, and into another mode."""
    rewind(source)
    with Image.open(source) as image:
        image.seek(frame)
        image._mode = mode or image.mode
        tiles: list[Any] = []
        for tile in image.tile:
            way: Any = tile[3]
            way = change(way) if isinstance(way, str) else (change(way[0]), *way[1:])
            tiles.append(tile._replace(args=way) if hasattr(tile, "_replace") else (*tile[:3], way))
        image.tile = tiles
        return np.asarray(upright(image))


def is_lossy_compression(compression: int) -> bool:
    """Whether a TIFF's compression may have changed its values."""
    return int(compression) in _LOSSY_COMPRESSIONS


def is_tiff(source: Encoded) -> bool:
    """Whether the bytes begin as those of a TIFF."""
    rewind(source)
    if isinstance(source, BytesIO):
        return source.getbuffer()[:4].tobytes() in _TIFF_STARTS
    with Path(source).open("rb") as file:
        return file.read(4) in _TIFF_STARTS


def _tiff_values(source: Any, name: str, channels: int | None) -> Values:
    """Of a TIFF, by tifffile; with `channels` pages are channels, too."""
    rewind(source)
    try:
        import tifffile
    except ImportError as error:
        raise UserError(
            "this TIFF needs tifffile", where=name, fix="pip install tifffile, or hf-sam-adapt[train]"
        ) from error

    def read(pixels: bool = True) -> tuple[np.ndarray, int, bool, bool, float | None, bool]:
        """(H, W, C), the number of pictures, and what else `Values` says."""
        rewind(source)
        try:
            with tifffile.TiffFile(source) as file:
                series, first = file.series[0], file.pages.first
                others = sum(not (one.keyframe.subfiletype & 5) for one in file.series[1:])
                array = series.asarray() if pixels else placeholder(series.shape, series.dtype)
                if not array.size:
                    raise ValueError("without a pixel")
                axes, extra = series.axes, first.extrasamples
                lossy = is_lossy_compression(first.compression)
                orientation = first.tags.valueof(EXIF_ORIENTATION, default=1)
                nodata = nodata_of(first.tags.valueof(NODATA_TAG))
                placed = any(tag in first.tags for tag in PLACE_TAGS)
        except BROKEN as error:
            raise UserError(
                f"not a readable TIFF ({first_line(error)})", where=name, fix="store it uncompressed or as .npy"
            ) from error
        # tifffile writes an array (H, W, C) as H pages unless told otherwise; their axes then have no meaning.
        if axes == "QYX" and array.shape[2] == channels != array.shape[0]:
            axes = "YXS"
        if "Y" not in axes or "X" not in axes:
            raise UserError(f"a TIFF with the axes {axes}", where=name, fix="store it as height, width and channels")
        pages = int(np.prod([size for size, axis in zip(array.shape, axes) if axis not in "YXS"]))
        array = np.moveaxis(array, (axes.index("Y"), axes.index("X")), (0, 1))
        array = _turned(array.reshape(*array.shape[:2], -1), orientation)  # (H, W, …) -> (H, W, C)
        alpha = pages == 1 and bool(extra) and extra[-1] in OPACITY
        return array, others + (pages if channels is None else 1), alpha, lossy, nodata, placed

    array, pictures, alpha, lossy, nodata, placed = read(pixels=False)
    if pictures > 1:
        raise _several(name, pictures, True)
    height, width, bands = array.shape
    return Values((height, width, bands), array.dtype, alpha, lossy, "TIFF", lambda: read()[0], nodata, placed)


def _turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) as its EXIF orientation says."""
    if orientation in (5, 7):  # mirrored along a diagonal
        array, orientation = array.swapaxes(0, 1), {5: 1, 7: 3}[orientation]
    if orientation in (2, 4):
        return array[:, ::-1] if orientation == 2 else array[::-1]
    return np.rot90(array, {3: 2, 6: 3, 8: 1}.get(orientation, 0))
