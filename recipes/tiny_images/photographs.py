"""Photographs with labelled regions, packed once for cheap loading, as training examples.

The folder holds a folder for each source: `<source>/images/NNNN.jpg`, `<source>/masks/NNNN.png` (0 unlabelled, 1..255
regions) and, where there are more layers, `NNNN_2.png`, `NNNN_3.png`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hf_sam_adapt.errors import UserError

from .augment import changed_pixels
from .drawn import resized
from .example import SIDE, SMALLEST, Example, padded, regions
from .sources import COMPLETE, DENSE_SHARE, UNGUESSED


LAYERS = 3
EVEN = (0.75, 1.33)  # height by width of a crop: padding teaches nothing


def pack_photographs(folder: Path, cache: Path) -> Path:
    """Decode every photograph once: `cache/<source>.npy`, flat uint8, and `cache/index.json`.

    The index maps a source to its records `[offset, height, width, layers]`; a record is (height, width, 3 + layers):
    red, green, blue and the layers of regions. A source packed before is kept.

    Raises:
        UserError: no photographs in the folder, a photograph without masks, or masks of another size.
    """
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / "index.json"
    index = json.loads(path.read_text()) if path.exists() else {}
    sources = sorted(images.parent for images in folder.glob("*/images") if images.is_dir())
    if not sources:
        raise UserError(f"{folder}: it holds no <source>/images; give the folder of the sources")
    for source in sources:
        pictures = sorted((source / "images").glob("*.jpg"))
        if source.name in index and len(index[source.name]) == len(pictures):
            continue
        records = [_record(picture) for picture in pictures]
        offsets = np.cumsum([0] + [record.size for record in records])[:-1].tolist()
        np.save(cache / f"{source.name}.npy", np.concatenate([record.ravel() for record in records]))
        index[source.name] = [
            [offset, *record.shape[:2], record.shape[2] - 3] for offset, record in zip(offsets, records)
        ]
        partial = cache / "index.json.tmp"
        partial.write_text(json.dumps({name: index[name] for name in sorted(index)}))
        partial.replace(path)
    return cache


def _record(picture: Path) -> np.ndarray:
    masks = picture.parents[1] / "masks"
    names = [picture.stem + ending for ending in ("", *(f"_{number}" for number in range(2, LAYERS + 1)))]
    layers = [np.asarray(Image.open(masks / f"{name}.png")) for name in names if (masks / f"{name}.png").exists()]
    image = np.asarray(Image.open(picture).convert("RGB"))
    if not layers:
        raise UserError(f"{picture}: no {masks / picture.stem}.png; a photograph needs its regions")
    if any(layer.shape != image.shape[:2] for layer in layers):
        raise UserError(f"{picture}: a mask in {masks} is not of its size {image.shape[:2]}, or not of one channel")
    return np.concatenate([image, np.stack(layers, axis=2).astype(np.uint8)], axis=2)


def held_back_sources(names: list[str]) -> list[str]:
    """Every tenth source in alphabetical order, the fifth first; at least one."""
    names = sorted(names)
    return names[4::10] or names[-1:]


class Photographs:
    """Photographs of some sources.

    Args:
        cache: folder of `pack_photographs`.
        sources: names of the sources to draw from.
        tasks: number of each source as a task, from 1.
    """

    def __init__(self, cache: Path, sources: list[str], tasks: dict[str, int]):
        index = json.loads((cache / "index.json").read_text())
        self.sources = sources
        self.records = [index[name] for name in sources]
        self.pixels = [np.load(cache / f"{name}.npy", mmap_mode="r") for name in sources]
        self.tasks = [tasks.get(name, 0) for name in sources]
        weights = np.sqrt([len(records) for records in self.records])
        self.share = weights / weights.sum()

    def record(self, source: int, number: int) -> np.ndarray:
        """Image and layers, uint8 (h, w, 3 + layers)."""
        offset, height, width, layers = self.records[source][number]
        size = height * width * (3 + layers)
        return np.array(self.pixels[source][offset : offset + size]).reshape(height, width, 3 + layers)

    def draw(self, rng: np.random.Generator, count: int) -> Example:
        """A random photograph, cropped, turned and changed, with `count` regions of one of its layers."""
        while True:
            source = int(rng.choice(len(self.sources), p=self.share))
            record = self.record(source, int(rng.integers(len(self.records[source]))))
            height, width = record.shape[:2]
            box = (0.0, 0.0, float(width), float(height))
            if rng.random() < 0.7:
                box = _crop(rng, height, width)
            image, labels = resized(record, box, *_fitted(box[3] - box[1], box[2] - box[0]))
            image, labels = _turned(changed_pixels(image, rng), labels, rng)
            example = self.example(source, image, labels, rng, count)
            if example is not None:
                return example

    def plain(self, source: int, number: int, rng: np.random.Generator, count: int) -> Example | None:
        """A given photograph as it is, with `count` regions; None where it has none large enough."""
        record = self.record(source, number)
        height, width = record.shape[:2]
        image, labels = resized(record, (0, 0, width, height), *_fitted(height, width))
        return self.example(source, image, labels, rng, count)

    def example(
        self, source: int, image: np.ndarray, labels: np.ndarray, rng: np.random.Generator, count: int
    ) -> Example | None:
        """First a layer, then regions of it, the larger ones somewhat oftener; None without any."""
        name = self.sources[source]
        pixels, labels = padded(image, labels)
        found = [(layer, *regions(layer)) for layer in labels]
        found = [(layer, numbers, areas) for layer, numbers, areas in found if len(numbers)]
        if not found:
            return None
        layer, numbers, areas = found[rng.integers(len(found))]
        share = areas**0.25 / (areas**0.25).sum()
        chosen = rng.choice(numbers, count, replace=len(numbers) < count, p=share)
        objects = torch.from_numpy(layer[None] == chosen[:, None, None].astype(np.uint8))
        complete = name in COMPLETE
        labelled = np.count_nonzero(layer) / (image.shape[0] * image.shape[1])
        whole, task = None, 0
        if complete:
            whole = torch.from_numpy((labels > 0).any(0))
            guessed = name not in UNGUESSED and (self.tasks[source] == 0 or rng.random() < 0.6)
            task = 0 if guessed else self.tasks[source]
            if (not guessed and task == 0) or np.count_nonzero(whole) < SMALLEST:
                whole = None
        return Example(pixels, objects, not complete and labelled < DENSE_SHARE, whole, task)


def _crop(rng: np.random.Generator, height: int, width: int) -> tuple[float, float, float, float]:
    """A part of the image, at least 0.4 of each side: left, top, right, bottom."""
    part_height, part_width = (side * rng.uniform(0.4, 1) for side in (height, width))
    part_height = max(part_height, part_width * EVEN[0])
    part_width = max(part_width, part_height / EVEN[1])
    part_height, part_width = min(part_height, height), min(part_width, width)
    part_height, part_width = min(part_height, part_width * EVEN[1]), min(part_width, part_height / EVEN[0])
    top, left = rng.uniform(0, height - part_height), rng.uniform(0, width - part_width)
    return left, top, left + part_width, top + part_height


def _fitted(height: float, width: float) -> tuple[int, int]:
    """The size with the longer side at the input's."""
    scale = SIDE / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _turned(image: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mirrored in half of the cases, upside down or transposed in some."""
    if rng.random() < 0.5:
        image, labels = image[:, ::-1], labels[:, :, ::-1]
    if rng.random() < 0.2:
        image, labels = image[::-1], labels[:, ::-1]
    if rng.random() < 0.2:
        image, labels = image.transpose(1, 0, 2), labels.transpose(0, 2, 1)
    return image, labels
