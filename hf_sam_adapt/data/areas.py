"""Areas of an image as annotations give them, polygons and run lengths: drawn, and whether they lie in the image."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, first_line
from .notes import Note


# What is wrong with an area that draws nothing, or not what was meant.
OUTSIDE = "mostly outside of its image"
NO_PIXEL = "too small for a pixel"
FIRST_PIXEL = "in the first pixel of its image, where coordinates in 0..1 lie"
FIXES = {
    OUTSIDE: "the coordinates are of another size or orientation of the images",
    NO_PIXEL: "remove these areas, or check the unit of the coordinates, which are pixels",
    FIRST_PIXEL: "multiply the coordinates by width and height",
}

FARTHEST = 2**31  # in pixels, beyond any image
Bounds = tuple[float, float, float, float]  # left, top, right, bottom in pixels


def draw_segmentation(segmentation: list | dict, height: int, width: int, name: str) -> np.ndarray:
    """Polygons [[x, y, x, y, …], …], one polygon [x, y, …] or a run-length dictionary -> bool (height, width)."""
    mask = np.zeros((height, width), bool)
    try:
        if isinstance(segmentation, dict):
            return decode_runs(segmentation, height, width, name)
        for corners in _polygons(segmentation):
            mask |= fill_polygon(corners, height, width)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"a damaged segmentation ({first_line(error)})", where=name, fix="correct the annotation"
        ) from error
    return mask


def segmentation_bounds(segmentation: list | dict) -> Bounds | None:
    """Of its polygons; None for run lengths, which cannot leave their image, and for what is damaged."""
    if isinstance(segmentation, dict):
        return None
    try:
        corners = np.concatenate([np.empty((0, 2)), *_polygons(segmentation)])
    except (TypeError, ValueError, OverflowError):
        return None
    return corner_bounds(corners)


def corner_bounds(corners: np.ndarray) -> Bounds:
    """Of corners (n, 2); of none, those of no pixel."""
    if not len(corners):
        return 0.0, 0.0, 0.0, 0.0
    (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
    return float(left), float(top), float(right), float(bottom)


def _polygons(segmentation: list) -> list[np.ndarray]:
    """Corners (n, 2) of each polygon."""
    # VIA writes a single polygon without the list around it.
    flat = bool(segmentation) and not isinstance(segmentation[0], list)
    polygons = [
        np.asarray(corners, np.float64).reshape(-1, 2) for corners in ([segmentation] if flat else segmentation)
    ]
    for corners in polygons:
        check_places(corners)
    return polygons


def check_places(coordinates: Any) -> None:
    """Raise `ValueError` for coordinates that no image has: NaN, infinite or farther than `FARTHEST`."""
    if not (np.abs(coordinates) < FARTHEST).all():
        raise ValueError("a coordinate that is not a number of pixels")


def fill_polygon(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool (height, width): the pixels whose centres lie inside `corners` (n, 2), (x, y) from the image's corner."""
    # pycocotools rounds an outline drawn five times finer, which differs by pixels along the border; here a pixel's
    # centre decides, in all formats alike. And COCO folders are read without an extra.
    x1, y1 = corners.T[:, :, None]  # (n, 1)
    x2, y2 = np.roll(corners, -1, axis=0).T[:, :, None]
    centres = np.arange(height) + 0.5
    edges, rows = np.nonzero((y1 <= centres) != (y2 <= centres))  # edges that cross a row of centres
    x1, y1, x2, y2 = x1[edges, 0], y1[edges, 0], x2[edges, 0], y2[edges, 0]
    crossings = x1 + (centres[rows] - y1) * (x2 - x1) / (y2 - y1)
    # Every crossing turns the rest of its row from outside to inside or back.
    turns = np.zeros((height, width + 1), np.int32)
    np.add.at(turns, (rows, np.ceil(crossings - 0.5).astype(int).clip(0, width)), 1)
    return turns.cumsum(axis=1)[:, :width] % 2 == 1


def decode_runs(runs: dict, height: int, width: int, name: str) -> np.ndarray:
    """COCO's run lengths (a list, or its compressed string) -> bool (height, width)."""
    # Of runs that are too short pycocotools' decode returns whatever its memory held.
    counts = runs["counts"]
    if isinstance(counts, str):
        counts = _decompress(counts)
    if list(runs.get("size", (height, width))) != [height, width] or sum(counts) != height * width:
        raise UserError(
            f"run lengths of another size than the image ({width}x{height})", where=name, fix="correct the annotation"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T  # columns first


def _decompress(text: str) -> list[int]:
    """COCO's string: 5 bits a character, low bits first, from the fourth number on the difference to two before."""
    counts: list[int] = []
    position = 0
    while position < len(text):
        value, shift, continues = 0, 0, True
        while continues:
            if position == len(text):
                raise ValueError("run lengths that break off")
            bits = ord(text[position]) - 48
            value |= (bits & 0x1F) << shift
            continues = bool(bits & 0x20)
            shift += 5
            position += 1
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def has_no_pixel(counts: Any) -> bool:
    """Whether run lengths are those of a mask without a pixel: one run, or none of ones."""
    if isinstance(counts, list):
        return not any(counts[1::2])
    try:
        return isinstance(counts, str) and len(counts) <= 7 and len(_decompress(counts)) <= 1
    except ValueError:  # what draws it says what is wrong
        return False


def misplacement(bounds: Bounds, height: int, width: int) -> str | None:
    """What is wrong with an area of these bounds in an image: a key of `FIXES`, None if nothing is."""
    left, top, right, bottom = bounds
    if right <= left or bottom <= top:
        return NO_PIXEL
    columns, rows = min(right, width) - max(left, 0), min(bottom, height) - max(top, 0)
    if columns <= 0 or rows <= 0 or 2 * columns * rows < (right - left) * (bottom - top):
        return OUTSIDE
    if right <= 1 and bottom <= 1 and height * width > 1:
        return FIRST_PIXEL
    # The centre of a pixel lies in the middle of it.
    if math.ceil(left - 0.5) > math.floor(right - 0.5) or math.ceil(top - 0.5) > math.floor(bottom - 0.5):
        return NO_PIXEL
    return None


def check_turn(areas: Sequence[Bounds | None], size: tuple[int, int], name: str, image: str) -> None:
    """Refuse areas of a photograph that fit it only when it is turned otherwise than its annotation says.

    Args:
        areas: of one image.
        size: (height, width) as the annotation says; EXIF turns the photograph by 90 degrees.
        name, image: what the message calls the annotation and the photograph.

    Raises:
        UserError: some are outside of `size`, and none when height and width are swapped.
    """
    lost = [
        sum(bounds is not None and misplacement(bounds, *frame) == OUTSIDE for bounds in areas)
        for frame in (size, size[::-1])
    ]
    if lost[0] and not lost[1]:
        raise UserError(
            f"{lost[0]} of {len(areas)} areas lie outside of {size[1]}x{size[0]}, but inside of {size[0]}x{size[1]}, "
            f"and EXIF turns {Path(image).name}",
            where=name,
            fix="swap width and height in the annotation, or store the photograph upright and without EXIF "
            "orientation",
        )


class Misplaced:
    """Counts the areas that draw nothing, or not what was meant."""

    def __init__(self) -> None:
        self.total = 0
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}

    def add(self, fault: str | None, name: str) -> None:
        """Count an area of the annotation `name`, with what `misplacement` says of it."""
        self.total += 1
        if fault is not None:
            self.counts[fault] += 1
            self.examples.setdefault(fault, name)

    def notes(self) -> dict[str, int]:
        """What to say, and how often. Raises `UserError` where most of the areas are misplaced."""
        if 2 * self.counts.total() > self.total:
            fault, count = self.counts.most_common(1)[0]
            example = Path(self.examples[fault]).name
            raise UserError(f"{count} of {self.total} areas are {fault}, such as in {example}", fix=FIXES[fault])
        said = {
            fault: Note(f"area {fault}, such as in {place}", f"area {fault}") for fault, place in self.examples.items()
        }
        return {said[fault]: count for fault, count in self.counts.items()}
