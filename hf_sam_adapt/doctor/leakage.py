"""Images that are there twice: within a split, or on both sides of a test."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..data.sources import Source
from ..data.splits import group_keys
from ..errors import UserError
from .findings import ERROR, WARNING, Finding, from_error
from .hashes import equal_pairs, near_pairs
from .sample import image_name, parts_of


if TYPE_CHECKING:
    import datasets


def check_leakage(tables: Mapping[str, datasets.Dataset], records: np.ndarray, source: Source) -> Iterator[Finding]:
    """Pairs of images that are equal in every pixel, then of those that look alike; the later file is named.

    Across splits this is leakage, an error where the pixels are equal. Equal images of one split are duplicates, and
    a contradiction where their masks differ. Training images come first: an image is compared with the first twin.
    """
    parts = parts_of(tables)

    def home(place: int) -> str:
        return next(split for split, part in parts.items() if place < part.stop)

    def named(place: int) -> str:
        split = home(place)
        return image_name(source.reader, tables[split][place - parts[split].start])

    told = set()
    for first, later in equal_pairs(records["image"]):
        told.add(later)
        split, other = home(later), home(first)
        if split != other:
            value = f"in {split}, the same pixels as {named(first)} in {other}"
            yield Finding(ERROR, "leakage", named(later), value, "remove one of them, or set group_by")
            continue
        masks = records["mask"][[first, later]]
        if masks.all() and masks[0] != masks[1]:
            value, fix = f"the same pixels as {named(first)}, with another mask", "keep the right one of the two"
            yield Finding(WARNING, "contradiction", named(later), value, fix)
        else:
            yield Finding(
                WARNING, "duplicate", named(later), f"the same pixels as {named(first)}", "remove one of them"
            )
    for first, later in near_pairs(records["hash"], records["thumbnail"]):
        if later in told:
            continue
        split, other = home(later), home(first)
        if split == other:
            value = f"looks like {named(first)}"
            yield Finding(WARNING, "near-duplicate", named(later), value, "if they are one picture, remove one")
        else:
            value = f"in {split}, looks like {named(first)} in {other}"
            fix = "if they are one picture or scene, keep them on one side (group_by)"
            yield Finding(WARNING, "leakage", named(later), value, fix)


def check_groups(tables: Mapping[str, datasets.Dataset], source: Source, group_by: str | None) -> Iterator[Finding]:
    """Groups (patients, scenes) on both sides; splits that were drawn by `group_by` have none."""
    if group_by is None:
        return
    home: dict[str, str] = {}
    for split, table in tables.items():
        try:
            keys = group_keys(table["id"], group_by)
        except UserError as error:
            yield from_error(error, source_name(source), "group-by")
            return
        across: dict[str, int] = {}
        for index, key in enumerate(keys):
            if home.setdefault(key, split) != split:
                across.setdefault(key, index)
        for key, index in across.items():
            file = image_name(source.reader, table[index])
            value = f"group {key!r} of {split} is in {home[key]}, too"
            yield Finding(ERROR, "leakage", file, value, "move the group to one side")


def source_name(source: Source) -> str:
    """What a finding about all ids is filed under."""
    return f"ids of {' and '.join(source.tables)}"
