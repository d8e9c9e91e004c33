"""Drawn scenes of a pool as training examples: turned, cropped and given other aspect ratios."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .example import SIDE, SMALLEST, Example, padded, regions


class DrawnScenes:
    """Scenes of a pool.

    Args:
        paths: files of `draw_pool`.
    """

    def __init__(self, paths: list[Path]):
        self.shards = [np.load(path, mmap_mode="r") for path in paths]

    def draw(self, rng: np.random.Generator, count: int) -> Example:
        """One scene with `count` of its objects."""
        while True:
            image, (objects, salient, parts) = self._scene(rng)
            candidates = [(layer, regions(layer)[0]) for layer in (objects, parts)]
            if any(len(numbers) for _, numbers in candidates):
                break
        masks = []
        for _ in range(count):
            first = len(candidates[0][1]) and (not len(candidates[1][1]) or rng.random() < 0.6)
            layer, numbers = candidates[0 if first else 1]
            masks.append(layer == rng.choice(numbers))
        whole = torch.from_numpy(salient > 0) if np.count_nonzero(salient) >= SMALLEST else None
        return Example(image, torch.from_numpy(np.stack(masks)), False, whole, 0)

    def _scene(self, rng: np.random.Generator) -> tuple[torch.Tensor, np.ndarray]:
        shard = self.shards[rng.integers(len(self.shards))]
        record = np.array(shard[rng.integers(len(shard))])  # (256, 256, 6)
        record = record[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        if rng.random() < 0.5:
            record = record.transpose(1, 0, 2)
        if rng.random() < 0.35:
            side = int(SIDE / rng.uniform(1.1, 2.0))
            top, left = rng.integers(0, SIDE - side, 2)
            record = record[top : top + side, left : left + side]
        height = width = SIDE
        if rng.random() < 0.4:
            short = int(SIDE * rng.uniform(0.55, 0.98))
            height, width = (short, SIDE) if rng.random() < 0.7 else (SIDE, short)
        return padded(*resized(record, (0, 0, record.shape[1], record.shape[0]), height, width))


def resized(
    record: np.ndarray, box: tuple[float, float, float, float], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The part `box` (left, top, right, bottom) of a record uint8 (h, w, 3 + n) at a new size.

    Returns:
        The image, (height, width, 3), and the n layers of labels, (n, height, width).
    """
    image = Image.fromarray(np.ascontiguousarray(record[..., :3]))
    image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    layers = [Image.fromarray(np.ascontiguousarray(record[..., number])) for number in range(3, record.shape[2])]
    labels = [layer.resize((width, height), Image.Resampling.NEAREST, box=box) for layer in layers]
    return np.asarray(image), np.stack([np.asarray(layer) for layer in labels])
