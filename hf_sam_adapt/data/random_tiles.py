"""Training tiles: parts of images at random places, read without the rest of their images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from .images import IGNORE
from .scan import in_threads
from .scenes import bands
from .tiles import Tiles, Window


if TYPE_CHECKING:
    from .dataset import OpenSample, Sample, SegmentationSplit

CELL = 32  # pixels a side of the cells in which foreground is looked up
TRIES = 10  # places that are drawn until a tile holds a labelled pixel


class RandomTiles(Dataset):
    """Tiles of the images of a split, drawn anew in each epoch.

    An epoch has as many tiles of an image as cover it, so that large images count for more. What is drawn comes from
    (seed, epoch, index) alone. Of an image as small as a tile the tile is the image.

    Args:
        split: the training images.
        tiles: their side; the overlap decides how many make an epoch.
        share: of the tiles that hold foreground for sure, where the image has some; the others lie anywhere.
    """

    def __init__(self, split: SegmentationSplit, tiles: Tiles, share: float, seed: int) -> None:
        self.split, self.tiles, self.share, self.seed = split, tiles, share, seed
        sizes = in_threads(self._size, split.table)
        self._ends = np.cumsum([len(tiles.grid(size)) for size in sizes])
        self._foreground: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def draw(self, epoch: int, index: int, instances: bool = False) -> tuple[Sample, np.ndarray | None]:
        """Tile `index` of an epoch, and the numbers of its objects (h, w), if wanted and the data tell them.

        Args:
            index: 0..len - 1.
            instances: whether objects are wanted.
        """
        image = int(np.searchsorted(self._ends, index, side="right"))
        rng = np.random.default_rng([self.seed, epoch, index, 1])
        with self.split.open(image) as opened:
            window = self._place(opened, image, rng)
            sample = opened.sample(window)
        objects = self.split.instances(image) if instances else None
        return sample, None if objects is None else np.ascontiguousarray(objects[window.slices])

    def _size(self, row: dict[str, Any]) -> tuple[int, int]:
        header = self.split.reader.headers(row)[0]
        return header.height, header.width

    def _place(self, opened: OpenSample, image: int, rng: np.random.Generator) -> Window:
        """The window of a tile."""
        height, width = opened.size
        if max(height, width) <= max(self.tiles.larger_than, self.tiles.side):
            return Window(0, 0, height, width)
        shown = min(self.tiles.side, height), min(self.tiles.side, width)
        if rng.random() < self.share:
            cells = self._cells(opened, image)
            if len(cells):
                return _around(cells[rng.integers(len(cells))], shown, opened.size, rng)
        window = Window(0, 0, *shown)
        for _ in range(TRIES):
            top, left = (int(rng.integers(0, whole - part + 1)) for whole, part in zip(opened.size, shown))
            window = Window(top, left, *shown)
            if (opened.mask(window) != IGNORE).any():
                break
        return window

    def _cells(self, opened: OpenSample, image: int) -> np.ndarray:
        """Row and column of the cells of an image that hold foreground, int (n, 2); found once."""
        if image not in self._foreground:
            found = []
            for band in bands(opened.size, 16 * CELL):
                mask = opened.mask(band)
                marked = (mask != 0) & (mask != IGNORE)
                rows, columns = (np.arange(0, length, CELL) for length in marked.shape)
                any_ = np.logical_or.reduceat(np.logical_or.reduceat(marked, rows, axis=0), columns, axis=1)
                found.append(np.argwhere(any_) + np.array([band.top // CELL, 0]))
            self._foreground[image] = np.concatenate(found).astype(np.int32)
        return self._foreground[image]


def _around(cell: np.ndarray, shown: tuple[int, int], size: tuple[int, int], rng: np.random.Generator) -> Window:
    """A window of `shown` pixels that holds all of a cell, or where it is smaller than a cell a part of that."""
    starts = []
    for place, part, whole in zip(cell.tolist(), shown, size):
        first = place * CELL
        last = min(first + CELL, whole)
        low, high = sorted((last - part, first))
        low, high = max(0, low), min(high, whole - part)
        starts.append(int(rng.integers(low, max(low, high) + 1)))
    return Window(starts[0], starts[1], *shown)
