"""Scores of whole volumes, put together from the masks of their slices."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..data.dataset import mask_of
from ..data.volumes.folder import VolumeReader
from ..metrics.volume import TOLERANCE, volume_scores


SCORES = ("volume_dice", "hd95_mm", "surface_dice")


def is_of_volumes(split: Any) -> bool:
    """Whether the images of a split are slices of volumes."""
    return isinstance(getattr(_source(split), "reader", None), VolumeReader)


def pack(mask: np.ndarray) -> bytes:
    """A mask bool or uint8 (H, W) in a few kilobytes."""
    return zlib.compress(np.ascontiguousarray(mask, np.uint8).tobytes(), 1)


def score_volumes(
    split: Any, packed: Sequence[bytes], labels: Sequence[int] | None = None, tolerance: float = TOLERANCE
) -> list[dict[str, Any]]:
    """Scores of each volume of a split, see `volume_scores`.

    Args:
        split: of slices, also embedded.
        packed: their predicted masks by `pack`, in the order of the split.
        labels: the classes to score; None = one foreground class.
        tolerance: millimetres of `surface_dice`.

    Returns:
        Per volume `volume` (its name), `volume_dice`, `hd95_mm` and `surface_dice`; of classes their means over those
        that the truth or the prediction holds, and `per_class`, label -> the same.
    """
    rows: list[dict[str, Any]] = []
    for name, spacing, places in _volumes(split):
        truth = np.stack([mask_of(split, place) for place in places])  # (n, H, W)
        found = np.stack([np.frombuffer(zlib.decompress(packed[place]), np.uint8) for place in places])
        found = found.reshape(truth.shape)
        if labels is None:
            rows.append({"volume": name, **_renamed(volume_scores(found > 0, truth, spacing, tolerance))})
            continue
        each: dict[str, dict[str, float | None]] = {}
        for label in labels:
            wanted = np.where(truth == 255, np.uint8(255), (truth == label).astype(np.uint8))
            if (found == label).any() or (wanted == 1).any():
                each[str(label)] = _renamed(volume_scores(found == label, wanted, spacing, tolerance))
        rows.append({"volume": name, **mean_scores(list(each.values())), "per_class": each})
    return rows


def mean_scores(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Means of `SCORES` where they are known; None where they are nowhere."""
    means: dict[str, float | None] = {}
    for key in SCORES:
        values = [row[key] for row in rows if row[key] is not None]
        means[key] = float(np.mean(values)) if values else None
    return means


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `metrics.json` says of a model's volumes: their means, `volumes`, their number, and `without_hd95`, of how
    many there is no distance, one of the masks being empty."""
    missing = sum(row["hd95_mm"] is None for row in rows)
    return mean_scores(rows) | {"volumes": len(rows), "without_hd95": missing}


def _volumes(split: Any) -> Iterator[tuple[str, Sequence[float], list[int]]]:
    """Name, spacing and rows of each volume; its slices follow one another."""
    table = _source(split).table
    places: dict[str, list[int]] = {}
    for place, name in enumerate(table["key"]):
        places.setdefault(name, []).append(place)
    spacing = table["spacing"]
    for name, rows in places.items():
        yield name, spacing[rows[0]], rows


def _source(split: Any) -> Any:
    """The split itself, or that of which it has the embeddings."""
    return getattr(split, "source", split)


def _renamed(scores: dict[str, float | None]) -> dict[str, float | None]:
    return dict(zip(SCORES, (scores["dice"], scores["hd95"], scores["surface_dice"])))
