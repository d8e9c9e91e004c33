"""What all annotation formats come down to: images, and areas with a label."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.coco import fill_polygon
from ..data.folder import SPLIT_NAMES
from ..data.walk import find_named, one_form
from ..errors import UserError
from ..files import plain_name


IGNORE_LABELS = ("__ignore__", "ignore")
BACKGROUND_LABELS = ("_background_", "__background__", "background")
UNSPLIT = "all"
ELLIPSE_CORNERS = 90


@dataclass
class Region:
    """An area of an image.

    Attributes:
        label: name of its class; of `BACKGROUND_LABELS` it cuts a hole, of `IGNORE_LABELS` it is ignored.
        draw: (height, width) -> bool (height, width).
    """

    label: str
    draw: Callable[[int, int], np.ndarray]


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
    """

    images: list[AnnotatedImage] = field(default_factory=list)
    classes: list[str] | None = None
    left_out: Counter[str] = field(default_factory=Counter)


def polygon(points: Sequence[Sequence[float]]) -> Callable[[int, int], np.ndarray]:
    """Inside of corners (x, y) in pixels from the image's corner; a path that crosses itself is even-odd."""
    corners = np.asarray(points, np.float64).reshape(-1, 2)
    return lambda height, width: fill_polygon(corners, height, width)


def rectangle(x1: float, y1: float, x2: float, y2: float, degrees: float = 0) -> Callable[[int, int], np.ndarray]:
    """Between two opposite corners, turned clockwise about its centre."""
    centre = np.array([x1 + x2, y1 + y2]) / 2
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]], np.float64)
    return polygon((corners - centre) @ _turn(degrees) + centre)


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0) -> Callable[[int, int], np.ndarray]:
    """About (x, y) with two half-axes, turned clockwise about its centre."""
    angles = np.arange(ELLIPSE_CORNERS) * (2 * math.pi / ELLIPSE_CORNERS)
    # A polygon between the inner and the outer one has the area of the ellipse.
    stretch = math.sqrt((2 * math.pi / ELLIPSE_CORNERS) / math.sin(2 * math.pi / ELLIPSE_CORNERS))
    corners = np.stack([rx * np.cos(angles), ry * np.sin(angles)], axis=1) * stretch
    return polygon(corners @ _turn(degrees) + (x, y))


def window(bitmap: np.ndarray, left: int, top: int) -> Callable[[int, int], np.ndarray]:
    """A bool (h, w) whose corner lies at (left, top); what lies outside of the image is cut off."""

    def draw(height: int, width: int) -> np.ndarray:
        mask = np.zeros((height, width), bool)
        rows, columns = np.nonzero(bitmap)
        rows, columns = rows + top, columns + left
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        mask[rows[inside], columns[inside]] = True
        return mask

    return draw


def split_of(name: str) -> str:
    """The split that a folder or subset is called after; "all" for other names."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), UNSPLIT)


def stem_of(path: str | Path) -> str:
    """`a/b/x.jpg` -> `a_b_x`."""
    return one_form("_".join(part for part in Path(path).with_suffix("").parts if part not in ("..", ".", "/")))


def find_image(name: str, folders: Sequence[Path], source: str) -> Path:
    """The first of `folders` that has the file `name`, with or without its own folders. Raises `UserError`."""
    # Written on Windows, a path has other separators.
    parts = [part for part in Path(name.replace("\\", "/")).parts if part not in ("..", ".", "/")]
    places = (find_named(folder, str(Path(*tail))) for folder in folders for tail in (parts, parts[-1:]))
    found = next(filter(None, places), None)
    if found is None:
        hint = "put it there, or name its folder by --images"
        raise UserError(f"{source}: the image {name} is not in {folders[0]}; {hint}")
    return found


def _turn(degrees: float) -> np.ndarray:
    """For rows (x, y) with y downwards: clockwise."""
    angle = math.radians(degrees)
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
