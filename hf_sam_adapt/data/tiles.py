"""Where large images are cut into overlapping tiles, and how much each tile counts where several show a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from ..names import check_tile


LARGER = 2.0  # `tile: auto` cuts images whose longer side is more than so many times the network's input
OVERLAP_SHARE = 8  # `overlap: auto` is the tile's side by this number


class Window(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of an array (H, W, ...)."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width


@dataclass(frozen=True)
class Tiles:
    """How images are cut.

    Attributes:
        side: of a square tile, in pixels of the image.
        overlap: pixels that neighbours have in common, at least.
        larger_than: images whose longer side is at most this are one tile, whatever their size.
    """

    side: int
    overlap: int
    larger_than: float = 0

    def grid(self, size: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> Grid:
        """The tiles of an image of `size` (height, width); `shift` moves the inner ones, as far as they go."""
        if max(size) <= max(self.larger_than, self.side):
            return Grid(size, ((0,), (0,)), size)
        rows, columns = (_starts(length, self.side, self.overlap, by) for length, by in zip(size, shift))
        return Grid(size, (rows, columns), (min(self.side, size[0]), min(self.side, size[1])))


@dataclass(frozen=True)
class Grid:
    """The tiles of one image, row by row.

    Attributes:
        size: (height, width) of the image.
        starts: first rows and first columns of the tiles.
        tile: (height, width) of each tile.
    """

    size: tuple[int, int]
    starts: tuple[tuple[int, ...], tuple[int, ...]]
    tile: tuple[int, int]

    def __len__(self) -> int:
        return len(self.starts[0]) * len(self.starts[1])

    @property
    def windows(self) -> Iterator[Window]:
        """What each tile shows of the image."""
        return (Window(top, left, *self.tile) for top in self.starts[0] for left in self.starts[1])

    @property
    def cells(self) -> Iterator[Window]:
        """What no tile after each one shows: from its start to that of the next one. They cover the image once."""
        rows, columns = (list(zip(starts, (*starts[1:], length))) for starts, length in zip(self.starts, self.size))
        return (Window(top, left, end - top, last - left) for top, end in rows for left, last in columns)

    @cached_property
    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the rows and of the columns of each tile, float32 (tiles, side).

        The weight of a pixel is the product of both. Over the tiles that show it they sum to 1; where a single tile
        does, its weight is exactly 1. They fall to 0 as the square of a cosine over the common pixels of two
        neighbours.
        """
        return tuple(  # type: ignore[return-value]
            _weights(starts, side, length) for starts, side, length in zip(self.starts, self.tile, self.size)
        )


def resolve_tiles(
    tile: int | Literal["auto"] | None,
    overlap: int | Literal["auto"] | None,
    image_size: int,
    patch_size: int,
) -> tuple[Tiles | None, list[str]]:
    """The tiles that the keys `tile` and `overlap` ask for, and sentences about what was rounded.

    Args:
        tile: side in pixels, rounded up to a multiple of the patch; "auto" = the network's input, for images of which
            the longer side is more than twice that; None = images are not cut.
        overlap: in pixels; "auto" and None = an eighth of the tile.
        image_size, patch_size: of the network.

    Raises:
        UserError: an overlap without tiles, or one that is negative or not smaller than the tile.
    """
    check_tile(tile, overlap)
    if tile is None:
        return None, []
    side = image_size if tile == "auto" else -(-int(tile) // patch_size) * patch_size
    notes = [] if tile in ("auto", side) else [f"tile: {tile} is rounded up to {side}, a multiple of the patch"]
    pixels = side // OVERLAP_SHARE if overlap in ("auto", None) else int(overlap)  # type: ignore[arg-type]
    check_tile(side, pixels)
    return Tiles(side, pixels, LARGER * image_size if tile == "auto" else 0), notes


def _starts(length: int, side: int, overlap: int, shift: int) -> tuple[int, ...]:
    """As few tiles as cover `length` with that overlap, at equal distances; the first and the last end at its ends."""
    if length <= side:
        return (0,)
    count = -(-(length - overlap) // (side - overlap))
    places = np.linspace(0, length - side, count).round().astype(int)
    # A shifted grid still has to cover the image: no gap between neighbours, or to the ends.
    slack = side - int(np.diff(places).max(initial=0))
    places[1:-1] += int(np.clip(shift, -slack, slack))
    return tuple(places.tolist())


def _weights(starts: tuple[int, ...], side: int, length: int) -> np.ndarray:
    places = np.arange(side) + 0.5
    windows = np.ones((len(starts), side))
    for tile, start in enumerate(starts):
        if tile > 0:
            windows[tile] *= _ramp(places / max(1, starts[tile - 1] + side - start))
        if tile + 1 < len(starts):
            windows[tile] *= _ramp((side - places) / max(1, start + side - starts[tile + 1]))
    total = np.zeros(length)
    for start, window in zip(starts, windows):
        total[start : start + side] += window
    return np.stack([window / total[start : start + side] for start, window in zip(starts, windows)]).astype(
        np.float32
    )


def _ramp(share: np.ndarray) -> np.ndarray:
    """From 0 to 1 as a squared sine over the overlap, and 1 behind it."""
    return np.sin(np.pi / 2 * np.clip(share, 0, 1)) ** 2
