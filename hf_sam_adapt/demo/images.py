"""What people upload: any file becomes an RGB picture of a size that the machine can take, or one clear message."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.encoding import LOSSY_THRESHOLD, middle_of_edges
from ..data.images import IGNORE, read_image, read_mask_file
from ..data.stored import Values, open_stored
from ..errors import UserError


# Pixels of the longer side on the page; masks are made at the image's own size.
LARGEST_SHOWN, SMALLEST_SHOWN = 1280, 640


@dataclass(frozen=True)
class Picture:
    """An uploaded image.

    Attributes:
        name: of its file, without folders.
        image: uint8 (H, W, 3), EXIF rotation applied.
        shown: uint8 (h, w, 3), the same at a size for the page.
    """

    name: str
    image: np.ndarray
    shown: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def scale(self) -> float:
        """Pixels of the image per pixel of the page."""
        return self.size[1] / self.shown.shape[1]


def read_picture(path: str | Path | None, max_pixels: int, name: str | None = None) -> Picture:
    """Read an upload as `predict` reads a file: EXIF rotation applied, grey and 16 bits made RGB.

    Args:
        path: any image file.
        max_pixels: images above are refused before they are decoded.
        name: the file's own name, where `path` is a temporary one.

    Raises:
        UserError: no image, damaged, partly transparent, of several frames, or too large.
    """
    if path is None:
        raise UserError("no image: upload one, paste one, or take an example")
    name = name or Path(path).name
    check_pixels(path, max_pixels, name)
    image = read_image(path, name)
    return Picture(name, image, for_page(image))


def read_binary_mask(path: str | Path, max_pixels: int, name: str | None = None) -> np.ndarray:
    """Read an uploaded mask, foreground above 0 (of lossy files above 127, of soft edges above their middle).

    Returns:
        uint8 (H, W) in {0, 1}, and 255 where an index mask says ignore.

    Raises:
        UserError: no image, damaged, too large, or several colours.
    """
    name = name or Path(path).name
    check_pixels(path, max_pixels, name)
    values, lossy = read_mask_file(path, name)
    middle = LOSSY_THRESHOLD if lossy else middle_of_edges(values)
    if middle is not None:
        return (values > middle).astype(np.uint8)
    if set(np.unique(values)) - {0, IGNORE} == {1}:  # indices, whose 255 is to be ignored
        return values
    return (values > 0).astype(np.uint8)


def check_pixels(path: str | Path, max_pixels: int, name: str) -> None:
    """Refuse an image by its header.

    Raises:
        UserError: no image, or more than `max_pixels`.
    """
    with open_stored(path, name) as stored:
        height, width = stored.shape[:2] if isinstance(stored, Values) else (stored.height, stored.width)
    if width * height > max_pixels:
        raise UserError(
            f"{width}x{height} pixels are {width * height / 1000000.0:.1f} million, more than the "
            f"{max_pixels / 1000000.0:.0f} million that are taken here",
            where=name,
            fix="make it smaller",
        )


def for_page(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3), its longer side of `SMALLEST_SHOWN` to `LARGEST_SHOWN` pixels; the same array where it is."""
    longest = max(image.shape[:2])
    factor = min(max(longest, SMALLEST_SHOWN), LARGEST_SHOWN) / longest
    if factor == 1:
        return image
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """bool or uint8 (H, W) at another (height, width), nearest."""
    if mask.shape == size:
        return mask
    rows, columns = ((2 * np.arange(new) + 1) * old // (2 * new) for new, old in zip(size, mask.shape))
    return mask[rows[:, None], columns]
