"""Images with masks to learn from, out of what was uploaded or painted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.images import IGNORE
from ..data.walk import is_leftover, one_form
from ..errors import UserError
from ..reporting.report import overlay, truth_colour
from .images import Picture, for_page, read_binary_mask, read_picture, resize_mask


MOST_PAIRS = 12
FEWEST_PAIRS = 2  # one to learn from, one held out


@dataclass(frozen=True)
class Pair:
    """An image and its mask, uint8 (H, W) in {0, 1, 255 = ignore}."""

    picture: Picture
    mask: np.ndarray

    def shown(self) -> np.ndarray:
        """The picture with its mask over it, uint8 (h, w, 3)."""
        mask = resize_mask(self.mask, self.picture.shown.shape[:2])
        return overlay(self.picture.shown, mask == 1, truth_colour(self.picture.shown))


def read_pairs(images: Sequence[str], masks: Sequence[str], max_pixels: int) -> list[Pair]:
    """Read uploaded files; a mask belongs to the image of its name, which may end in `_mask`, or else of its place.

    Raises:
        UserError: different numbers, an unreadable file, other sizes, or an empty mask.
    """
    if not images or not masks:
        raise UserError("choose the files of both", key="images, masks")
    images, masks = ([file for file in files if not is_leftover(Path(file).name)] for files in (images, masks))
    if len(images) != len(masks):
        raise UserError(f"{len(images)} images and {len(masks)} masks: choose one mask for each image")
    return [_read(*files, max_pixels) for files in zip(images, _matched(images, masks))]


def painted_pair(picture: np.ndarray, layers: Sequence[np.ndarray], name: str) -> Pair:
    """A pair out of a picture uint8 (H, W, 3 or 4) and layers uint8 (H, W, 4) of paint.

    Raises:
        UserError: nothing is painted.
    """
    painted = np.zeros(picture.shape[:2], np.uint8)
    for layer in layers:
        painted |= (layer[..., -1] > 0).astype(np.uint8)
    if not painted.any():
        raise UserError("the mask is empty: paint over the object first")
    image = np.ascontiguousarray(picture[..., :3])
    return Pair(Picture(name, image, for_page(image)), painted)


def check_pairs(pairs: Sequence[Pair]) -> None:
    """Raise `UserError` where there are too few or too many to learn from, or one twice."""
    if not FEWEST_PAIRS <= len(pairs) <= MOST_PAIRS:
        raise UserError(f"{len(pairs)} images with masks: give {FEWEST_PAIRS} to {MOST_PAIRS}, the last is held out")
    for number, pair in enumerate(pairs):
        for earlier in pairs[:number]:
            if np.array_equal(earlier.picture.image, pair.picture.image):
                names = f"{earlier.picture.name} and {pair.picture.name}"
                raise UserError(f"{names} are the same image", fix="give each once; the last is held out")


def write_pairs(pairs: Sequence[Pair], folder: Path) -> None:
    """Write a data set in which the last pair alone is for validation; `mask_values: index` reads its masks."""
    for index, pair in enumerate(pairs):
        split = folder / ("val" if index == len(pairs) - 1 else "train")
        name = f"{index:02d}_{Path(pair.picture.name).stem}.png"
        for kind, array in (("images", pair.picture.image), ("masks", pair.mask)):
            (split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(split / kind / name)


def _matched(images: Sequence[str], masks: Sequence[str]) -> list[str]:
    """The masks in the order of the images: by their names, or as they come where none is named like an image.

    Raises:
        UserError: some are named like an image and others are not.
    """
    stems = {one_form(Path(mask).stem).lower().removesuffix("mask").rstrip("_- "): mask for mask in masks}
    named = [stems.get(one_form(Path(image).stem).lower()) for image in images]
    if not any(named):
        return list(masks)
    alone = [Path(image).name for image, mask in zip(images, named) if mask is None]
    alone += [Path(mask).name for mask in masks if mask not in named]
    if alone or len(set(named)) < len(masks):
        raise UserError(
            f"some masks are named like their images, but not {', '.join(alone) or 'each another one'}",
            fix="name all masks like their images, or none",
        )
    return [mask for mask in named if mask]


def _read(image: str, mask: str, max_pixels: int) -> Pair:
    picture, values = read_picture(image, max_pixels), read_binary_mask(mask, max_pixels)
    if values.shape != picture.size:
        sizes = [f"{width}x{height}" for height, width in (values.shape, picture.size)]
        raise UserError(
            f"{sizes[0]} pixels for {picture.name} of {sizes[1]}", where=Path(mask).name, fix="they must be equal"
        )
    if not ((values > 0) & (values != IGNORE)).any():
        raise UserError("no pixel is foreground", where=Path(mask).name, fix="mark the object")
    return Pair(picture, values)
