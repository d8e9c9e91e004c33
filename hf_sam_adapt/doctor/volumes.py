"""Checks of volumes as wholes: what would be odd of an image is usual of a slice, and leakage is of volumes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from .findings import ERROR, WARNING, Finding
from .sample import parts_of


if TYPE_CHECKING:
    import datasets

UNLIKE = 1.25  # ratio of two spacings above which they are different ones


def check_volumes(tables: Mapping[str, datasets.Dataset], records: np.ndarray) -> Iterator[Finding]:
    """Volumes that are there twice, without any foreground, or of other voxels than the rest.

    Args:
        tables: of slices, a volume's one after the other.
        records: of `RECORD`, of all slices.
    """
    yield from _twice(tables, records)
    yield from _spacings(tables)
    for split, part in parts_of(tables).items():
        table, own = tables[split], records[part]
        for rows in _slices(table):
            if own["read"][rows].all() and not own["foreground"][rows].any():
                fix = "remove it with its volume, unless there is nothing to see"
                yield Finding(WARNING, "empty-mask", table[rows[0]]["mask"], "no foreground in any slice", fix)


def _twice(tables: Mapping[str, datasets.Dataset], records: np.ndarray) -> Iterator[Finding]:
    """Volumes with slices of equal pixels; slices of one grey, such as air, say nothing."""
    first: dict[int, tuple[str, str]] = {}
    for split, part in parts_of(tables).items():
        table, own = tables[split], records[part]
        for rows in _slices(table):
            path = table[rows[0]]["image"]
            told = [int(digest) for digest, hashed in zip(own["image"][rows], own["hash"][rows]) if digest and hashed]
            shared = Counter(first[digest] for digest in told if digest in first and first[digest][1] != path)
            for digest in told:
                first.setdefault(digest, (split, path))
            if not shared:
                continue
            (other, twin), count = shared.most_common(1)[0]
            value = f"{count} of {len(rows)} slices have the pixels of {twin} in {other}"
            if other != split:
                yield Finding(ERROR, "leakage", path, f"in {split}, {value}", "remove one of them, or set group_by")
            else:
                yield Finding(WARNING, "duplicate", path, value, "remove one of them")


def _spacings(tables: Mapping[str, datasets.Dataset]) -> Iterator[Finding]:
    """Volumes whose voxels are larger or smaller than those of most."""
    known = {}
    for table in tables.values():
        for rows in _slices(table):
            known[table[rows[0]]["image"]] = np.array(table[rows[0]]["spacing"])
    if not known:
        return
    usual = np.median(list(known.values()), axis=0)
    for path, spacing in known.items():
        ratio = np.maximum(spacing / usual, usual / spacing).max()
        if ratio > UNLIKE:
            sizes = (" x ".join(f"{side:.3g}" for side in one) for one in (spacing, usual))
            value = "voxels of {} mm (slice, row, column), most volumes have {}".format(*sizes)
            fix = "resample the volumes to one spacing, objects have another size in pixels"
            yield Finding(WARNING, "spacing", path, value, fix)


def _slices(table: datasets.Dataset) -> list[list[int]]:
    """The rows of each volume."""
    rows: dict[str, list[int]] = defaultdict(list)
    for place, name in enumerate(table["key"]):
        rows[name].append(place)
    return list(rows.values())
