"""Maps of overlapping tiles put together, in memory that does not grow with the image's height."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import torch

from ..data.scenes import ImageWindows
from ..data.tiles import Grid, Window


NOTHING = -10.0  # logit of what no object was asked for in, and of tiles without data

Name = TypeVar("Name", bound=Hashable)


class Blender:
    """Sums the weighted maps of tiles, which come row by row; what is complete leaves at once.

    A tile's map is complete in its cell, which no later tile shows. Kept is what later tiles add to: to the right of
    the cell what two neighbours have in common, below it the rows that the next row of tiles shows, too.
    """

    def __init__(self, grid: Grid) -> None:
        self._tiles = enumerate(zip(grid.windows, grid.cells, strict=True))
        self._weights = [torch.from_numpy(weights) for weights in grid.weights]
        self._columns, self._width = len(grid.starts[1]), grid.size[1]
        self._right: torch.Tensor | None = None  # (C, h, common columns)
        self._above: torch.Tensor | None = None  # (C, common rows, W), of the tile rows above
        self._below: torch.Tensor | None = None  # the same for the next tile row, as far as it is filled

    def add(self, values: torch.Tensor) -> tuple[Window, torch.Tensor]:
        """Take the map of the next tile, (C, h, w); returns the window that it completes with its values (C, h', w').

        float32, on the CPU.
        """
        number, (window, cell) = next(self._tiles)
        row, column = divmod(number, self._columns)
        rows, columns = self._weights[0][row], self._weights[1][column]
        summed = values.float().cpu() * rows[:, None] * columns
        if column == 0:
            self._above, self._right = self._below, None
            self._below = summed.new_zeros((len(summed), window.height - cell.height, self._width))
        if self._right is not None:
            summed[:, :, : self._right.shape[2]] += self._right
        done, self._right = summed[:, :, : cell.width], summed[:, :, cell.width :].clone()
        span = slice(cell.left, cell.left + cell.width)
        if self._above is not None:
            done[:, : self._above.shape[1]] += self._above[:, :, span]
        assert self._below is not None
        self._below[:, :, span] = done[:, cell.height :]
        return cell, done[:, : cell.height]


def blended(
    image: ImageWindows,
    grid: Grid,
    predict: Callable[[Sequence[np.ndarray], Sequence[Window]], Mapping[Name, Sequence[torch.Tensor]]],
    names: Sequence[Name],
    channels: int = 1,
    batch_size: int = 1,
) -> Iterator[tuple[Window, dict[Name, torch.Tensor]]]:
    """Read an image tile by tile, predict `batch_size` tiles at once, and yield the maps by complete windows.

    Tiles in which the file says that there are no data are not predicted: their logits are `NOTHING`.

    Args:
        predict: images of tiles and their windows -> of each name the map of each tile, (C, h, w).
        names: what `predict` returns maps of.
        channels: C.

    Yields:
        Windows that cover the image once, each with its values of each name, float32 (C, h, w) on the CPU.
    """
    blenders = {name: Blender(grid) for name in names}

    def flush(batch: list[tuple[Window, np.ndarray | None]]) -> Iterator[tuple[Window, dict[Name, torch.Tensor]]]:
        shown = [(window, pixels) for window, pixels in batch if pixels is not None]
        maps = predict([pixels for _, pixels in shown], [window for window, _ in shown]) if shown else {}
        order = iter(range(len(shown)))
        for window, pixels in batch:
            place = None if pixels is None else next(order)
            complete = {}
            for name, blender in blenders.items():
                blank = torch.full((channels, *window.size), NOTHING)
                cell, complete[name] = blender.add(blank if place is None else maps[name][place])
            yield cell, complete

    batch: list[tuple[Window, np.ndarray | None]] = []
    for window in grid.windows:
        valid = image.valid(window)
        batch.append((window, image.image(window) if valid is None or valid.any() else None))
        if len(batch) == batch_size:
            yield from flush(batch)
            batch = []
    yield from flush(batch)
