"""The best constant mask: what a promptless method reaches without looking at the image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..data.dataset import mask_of
from ..data.images import IGNORE
from ..data.tiles import Window


GRID = 256
MAX_MASKS = 2000


@dataclass(frozen=True)
class ConstantMask:
    """One mask for all images.

    Attributes:
        mean: float32 (S, S), share of the training masks in which a grid cell is foreground, 0..1.
        threshold: foreground is where `mean > threshold`: -1 for the full mask, 1 for the empty one.
        train_iou: mean IoU of the thresholded mask over the training masks, on the grid.
    """

    mean: np.ndarray
    threshold: float
    train_iou: float

    def at(self, height: int, width: int) -> np.ndarray:
        """The mask for an image of this size, bool (height, width)."""
        return self.window((height, width), Window(0, 0, height, width))

    def window(self, size: tuple[int, int], window: Window) -> np.ndarray:
        """The part of the mask for an image of `size` that a window shows, bool (h, w)."""
        box = grid_box(self.mean.shape, size, window)
        shown = window.width, window.height
        return np.asarray(Image.fromarray(self.mean).resize(shown, Image.Resampling.BILINEAR, box)) > self.threshold


def grid_box(grid: tuple[int, ...], size: tuple[int, int], window: Window) -> tuple[float, float, float, float]:
    """The left, upper, right and lower edge, in cells of a grid over an image of `size`, of a window of it."""
    down, across = (cells / length for cells, length in zip(grid, size))
    right, bottom = window.left + window.width, window.top + window.height
    return window.left * across, window.top * down, min(right * across, grid[1]), min(bottom * down, grid[0])


def constant_mask(train_split: Any, size: int = GRID) -> ConstantMask:
    """Finds the best constant mask of a training split.

    The masks are averaged on a common `size` x `size` grid (nearest; ignored pixels do not count), and of all the
    thresholds of that average the one with the highest mean IoU over the same masks is taken. Of more than 2,000 masks
    an evenly spaced 2,000 are read, which keeps time and memory constant (two bits a cell and mask).

    Args:
        train_split: a split, whose images stay unopened, or a sequence whose items have `.mask`, uint8 (H, W) with
            255 = ignore.

    Raises:
        ValueError: the split is empty.
    """
    if len(train_split) == 0:
        raise ValueError("the best constant mask needs at least one training mask")
    indices = np.unique(np.linspace(0, len(train_split) - 1, min(len(train_split), MAX_MASKS)).round().astype(int))
    foreground, valid = [], []
    for index in indices:
        mask = Image.fromarray(mask_of(train_split, int(index))).resize((size, size), Image.Resampling.NEAREST)
        cells = np.asarray(mask).ravel()  # (H, W) -> (size * size,)
        foreground.append(np.packbits((cells != 0) & (cells != IGNORE)))
        valid.append(np.packbits(cells != IGNORE))
    mean = _mean(foreground, size * size) / np.maximum(_mean(valid, size * size), 1.0 / len(indices))
    mean = mean.astype(np.float32)
    threshold, train_iou = _best_threshold(mean, foreground, valid)
    return ConstantMask(mean.reshape(size, size), threshold, train_iou)


def _mean(packed: Sequence[np.ndarray], cells: int) -> np.ndarray:
    """Share of the bit masks in which a cell is set, float64 (cells,)."""
    total = np.zeros(cells, np.int64)
    for bits in packed:
        total += np.unpackbits(bits, count=cells)
    return total / len(packed)


def _best_threshold(
    mean: np.ndarray, foreground: Sequence[np.ndarray], valid: Sequence[np.ndarray]
) -> tuple[float, float]:
    """The threshold of `mean` (cells,) with the highest mean IoU, and that IoU.

    With the cells sorted by falling mean, the mask of every threshold is a prefix, so cumulative sums give the IoU of
    all thresholds at once. Prefix 0 is the empty mask.
    """
    order = np.argsort(-mean, kind="stable")
    ranked = mean[order]
    total = np.zeros(mean.size + 1)
    for truth_bits, valid_bits in zip(foreground, valid, strict=True):
        truth = np.unpackbits(truth_bits, count=mean.size)[order]
        known = np.unpackbits(valid_bits, count=mean.size)[order]
        intersection = np.concatenate([[0], np.cumsum(truth, dtype=np.int64)])
        union = np.concatenate([[0], np.cumsum(known, dtype=np.int64)]) + intersection[-1] - intersection
        total += np.where(union > 0, intersection / np.maximum(union, 1), 1.0)
    # A prefix is the mask of a threshold only where it does not split cells of equal mean.
    allowed = np.concatenate([[True], ranked[1:] < ranked[:-1], [True]])
    best = int(np.argmax(np.where(allowed, total, -1.0)))
    # Halfway to the next lower value, so that the rounding of a later resize does not flip cells at the threshold.
    edges = np.concatenate([[1.0], ranked, [-1.0]])
    threshold = 1.0 if best == 0 else -1.0 if best == ranked.size else float(edges[best : best + 2].mean())
    return threshold, float(total[best] / len(foreground))
