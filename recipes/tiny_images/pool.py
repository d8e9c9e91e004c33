"""A pool of drawn scenes on disk, memory-mapped: drawing is slower than training, so it is done once and ahead."""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from .scenes import draw_scene


SHARD = 250  # scenes a file
SIDE = 256  # pixels
CHANNELS = 6  # red, green, blue, object number, salient class, number of the salient class's connected part
MIN_PART = 0.0005  # share of the image below which a connected part is no object
MAX_PARTS = 32


def connected_parts(mask: np.ndarray) -> np.ndarray:
    """Number the connected components of `mask` `(H, W)`, the largest first, small ones left out: uint8 `(H, W)`."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    order = [number for number in np.argsort(-areas) if areas[number] >= MIN_PART * mask.size][:MAX_PARTS]
    table = np.zeros(count + 1, dtype=np.uint8)
    for rank, number in enumerate(order):
        table[number + 1] = rank + 1
    return table[labels]


def draw_record(seed: int, index: int) -> np.ndarray:
    """Scene `index` of series `seed` as one uint8 array `(SIDE, SIDE, CHANNELS)`."""
    scene = draw_scene(seed, index, (SIDE, SIDE))
    parts = connected_parts(scene.salient)
    return np.concatenate([scene.image, np.stack([scene.objects, scene.salient, parts], axis=2)], axis=2)


def _write_shard(path: Path, seed: int, start: int) -> Path:
    if not path.exists():
        records = np.stack([draw_record(seed, start + offset) for offset in range(SHARD)])
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        with open(partial, "wb") as file:
            np.save(file, records)
        partial.replace(path)
    return path


def draw_pool(folder: Path, seed: int, shards: int, workers: int = 1) -> list[Path]:
    """Make sure that the first `shards` files of series `seed` lie in `folder`; those that do are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"scenes_{seed}_{number:04d}.npy" for number in range(shards)]
    starts = [number * SHARD for number in range(shards)]
    if workers <= 1:
        return [_write_shard(path, seed, start) for path, start in zip(paths, starts)]
    with ProcessPoolExecutor(workers) as executor:
        return list(executor.map(_write_shard, paths, [seed] * shards, starts))
