"""Seeded splits that keep groups (patients, scenes) on one side."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ..errors import UserError


HELD_OUT = 0.15


def split_indices(
    ids: Sequence[str], names: Sequence[str], *, group_by: str | None = None, seed: int = 0
) -> dict[str, list[int]]:
    """Deal `ids` into `names`, 15 % each but for the first name, which takes the rest.

    Args:
        ids: one per image; only their order and `group_by`'s group in them matter.
        names: "train" first, for example ("train", "val", "test").
        group_by: regular expression with one group; images with equal groups stay together.
        seed: of the shuffle.

    Returns:
        Sorted indices per name. Later names stay empty when there are too few groups for one each.
    """
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(group_keys(ids, group_by)):
        groups.setdefault(key, []).append(index)
    order = [groups[key] for key in sorted(groups)]
    order = [order[i] for i in np.random.default_rng(seed).permutation(len(order))]

    result: dict[str, list[int]] = {name: [] for name in names}
    share = max(1, round(HELD_OUT * len(ids)))
    for name in names[1:]:
        if len(order) > 1:
            taken, order = _take(order, share)
            result[name] = [index for group in taken for index in group]
    result[names[0]] = [index for group in order for index in group]
    return {name: sorted(indices) for name, indices in result.items()}


def _take(groups: list[list[int]], share: int) -> tuple[list[list[int]], list[list[int]]]:
    """The first groups that make up about `share` images (the smallest one where all are too large), and the rest."""
    taken, rest, count = [], [], 0
    for group in groups:
        if count < share and count + len(group) <= 1.5 * share:
            taken.append(group)
            count += len(group)
        else:
            rest.append(group)
    if not taken:
        taken = [rest.pop(min(range(len(rest)), key=lambda i: len(rest[i])))]
    return taken, rest


def group_keys(ids: Sequence[str], group_by: str | None) -> list[str]:
    """The group of each image, one of its own without `group_by`. Raises `UserError` where it does not match."""
    if group_by is None:
        return [f"{index:012d}" for index in range(len(ids))]
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UserError(f"group_by: {group_by!r} is no regular expression ({error})") from error
    if pattern.groups != 1:
        raise UserError(
            f"group_by: {group_by!r} has {pattern.groups} groups; it needs exactly one, such as '^(p[0-9]+)_'"
        )
    keys = []
    for name in ids:
        match = pattern.search(name)
        if match is None or match.group(1) is None:
            raise UserError(f"group_by: {group_by!r} does not match the image {name!r}; every image needs a group")
        keys.append(match.group(1))
    return keys
