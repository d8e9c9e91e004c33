"""What all annotation formats come down to: images, and areas with a label."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...data.annotations import label_of, read_text
from ...data.areas import Bounds, check_places, corner_bounds, fill_polygon
from ...data.folder import SPLIT_NAMES
from ...files import plain_name


UNSPLIT = "all"
ELLIPSE_CORNERS = 90


class Shape(Protocol):
    """Where an area lies in an image."""

    def draw(self, height: int, width: int) -> np.ndarray:
        """bool (height, width)."""

    def bounds(self, height: int, width: int) -> Bounds | None:
        """Of the whole area, also outside of the image; None for one that cannot be misplaced."""


@dataclass
class Region:
    """An area of an image.

    Attributes:
        label: name of its class; of `BACKGROUND_LABELS` it cuts a hole, of `IGNORE_LABELS` it is ignored. None = it
            has no label.
        shape: where it lies.
    """

    label: str | None
    shape: Shape


@dataclass
class AnnotatedImage:
    """An image and its regions; a later region lies on top of an earlier one.

    Attributes:
        split: "train", "val", "test", or "all" for a source without splits.
        stem: of the files to write.
        image: its file, or a function that gives its encoded bytes.
        size: (height, width) that the annotation was made for, None = not said.
        name: what messages call the annotation.
    """

    split: str
    stem: str
    image: Path | Callable[[], bytes]
    size: tuple[int, int] | None
    regions: list[Region]
    name: str

    def __post_init__(self) -> None:
        self.stem = plain_name(self.stem)


@dataclass
class Annotations:
    """What a source holds.

    Attributes:
        classes: all names in the order of the classes, None = those that occur, by name.
        left_out: what was not taken, and how often.
        notes: what else is to be said, and how often.
        encoding: of its texts that are not Unicode, None = guessed.
    """

    images: list[AnnotatedImage] = field(default_factory=list)
    classes: list[str] | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    encoding: str | None = None

    def read_text(self, file: Path) -> str:
        """The text of a file; one that is not Unicode is counted. Raises `UserError`."""
        text, encoding = read_text(file, self.encoding)
        if encoding is not None:
            self.notes[f"file read as {encoding}, as it is not UTF-8; if names look wrong, give --encoding"] += 1
        return text

    def take_order(self, lists: Sequence[Any]) -> None:
        """Take the classes as `predict` listed them in each of its files, if the `lists` agree; others come after.

        A list of one class says nothing of an order, and may be of a name that nobody uses.
        """
        first = lists[0] if lists else None
        if not isinstance(first, list) or len(first) < 2 or any(other != first for other in lists):
            return
        occurring = {region.label for image in self.images for region in image.regions if region.label is not None}
        listed = list(dict.fromkeys(str(label_of(name)) for name in first))
        self.classes = [*listed, *sorted(occurring - set(listed))]


@dataclass(frozen=True)
class Polygon:
    """Inside of a path; one that crosses itself is even-odd. Raises `ValueError` for corners that are no places.

    Attributes:
        corners: (n, 2), (x, y) from the image's corner, in pixels.
        relative: they are fractions of width and height.
    """

    corners: np.ndarray
    relative: bool = False

    def __post_init__(self) -> None:
        check_places(self.corners)

    def _pixels(self, height: int, width: int) -> np.ndarray:
        return self.corners * (width, height) if self.relative else self.corners

    def draw(self, height: int, width: int) -> np.ndarray:
        return fill_polygon(self._pixels(height, width), height, width)

    def bounds(self, height: int, width: int) -> Bounds:
        return corner_bounds(self._pixels(height, width))


@dataclass(frozen=True)
class Bitmap:
    """The pixels of a bool (h, w) whose corner lies at (left, top); what lies outside of the image is cut off."""

    pixels: np.ndarray
    left: int
    top: int

    def __post_init__(self) -> None:
        check_places((self.left, self.top))

    def draw(self, height: int, width: int) -> np.ndarray:
        mask = np.zeros((height, width), bool)
        rows, columns = np.nonzero(self.pixels)
        rows, columns = rows + self.top, columns + self.left
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        mask[rows[inside], columns[inside]] = True
        return mask

    def bounds(self, height: int, width: int) -> Bounds:
        rows, columns = np.nonzero(self.pixels)
        if not len(rows):
            return self.left, self.top, self.left, self.top
        rows, columns = rows + self.top, columns + self.left
        return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def polygon(points: Sequence[Sequence[float]]) -> Polygon:
    """Of corners (x, y) in pixels from the image's corner."""
    return Polygon(np.asarray(points, np.float64).reshape(-1, 2))


def rectangle(x1: float, y1: float, x2: float, y2: float, degrees: float = 0) -> Polygon:
    """Between two opposite corners, turned clockwise about its centre."""
    check_places((x1, y1, x2, y2))
    centre = np.array([x1 + x2, y1 + y2]) / 2
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)
    return Polygon((corners - centre) @ _turn(degrees) + centre)


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0) -> Polygon:
    """About (x, y) with two half-axes, turned clockwise about its centre."""
    check_places((x, y, rx, ry))
    angles = np.arange(ELLIPSE_CORNERS) * (2 * math.pi / ELLIPSE_CORNERS)
    # A polygon between the inner and the outer one has the area of the ellipse.
    stretch = math.sqrt((2 * math.pi / ELLIPSE_CORNERS) / math.sin(2 * math.pi / ELLIPSE_CORNERS))
    corners = np.stack([rx * np.cos(angles), ry * np.sin(angles)], axis=1) * stretch
    return Polygon(corners @ _turn(degrees) + (x, y))


def split_of(name: str) -> str:
    """The split that a folder or subset is called after; "all" for other names."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), UNSPLIT)


def _turn(degrees: float) -> np.ndarray:
    """For rows (x, y) with y downwards: clockwise."""
    angle = math.radians(degrees)
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
