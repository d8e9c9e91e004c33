"""Splits that an image's name decides, so that it keeps its side when others come or go."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from .columns import with_keys
from .dataset import image_keys
from .walk import one_form


if TYPE_CHECKING:
    import datasets


SLOTS, HELD_OUT = 20, 3  # 3 of 20 are 15 %
_NUMBER = re.compile(r"(.*?)(\d+)(\D*)", re.DOTALL)  # the last number of a name, with what is around it


def draw_splits(
    tables: dict[str, datasets.Dataset],
    group_by: str | None,
    seed: int,
    known: Mapping[str, Sequence[str]] | None,
) -> tuple[dict[str, datasets.Dataset], dict[str, list[str]] | None, list[str]]:
    """Draw the splits that a source does not name.

    Args:
        tables: per split, or "all".
        group_by, seed, known: see `split_indices`.

    Returns:
        Tables per split, keys per drawn split or None, and notes.
    """
    source = "all" if "all" in tables else "train"
    names = ("train", "val", "test") if source == "all" else ("train", "val")
    if source not in tables or (source == "train" and "val" in tables):
        return tables, None, [] if "test" in tables else [no_test_note(tables)]
    table = with_keys(tables[source])
    keys = image_keys(table)
    dealt = split_indices(table["id"], names, group_by=group_by, seed=seed, keys=keys, known=known)
    drawn = {name: part for name, part in dealt.items() if part}
    splits = {name: [keys[index] for index in part] for name, part in drawn.items()}
    result = {name: part for name, part in tables.items() if name != source}
    result |= {name: table.select(part) for name, part in drawn.items()}
    counts = ", ".join(f"{len(part)} {name}" for name, part in drawn.items())
    if "val" in drawn:
        what = "volumes" if "count" in table.column_names else "images"
        notes = [f"{what} dealt by their names and seed {seed}: {counts}"]
        if 2 * len(drawn.get("train", ())) < len(keys):
            notes.append("fewer than half of the images are for training: another seed deals the groups otherwise")
    else:
        notes = ["one image: nothing is held out" if len(keys) == 1 else "one group of images: nothing is held out"]
    if "test" not in result:
        notes.append(no_test_note(result))
    return result, splits, notes


def no_test_note(splits: Collection[str]) -> str:
    """What is measured in place of test images, where only `splits` have images to measure."""
    instead = "validation images, which also choose the checkpoint" if "val" in splits else "training images"
    return f"no test split: the final evaluation uses the {instead}"


def split_indices(
    ids: Sequence[str],
    names: Sequence[str],
    *,
    group_by: str | None = None,
    seed: int = 0,
    keys: Sequence[str] | None = None,
    known: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, list[int]]:
    """Deal images into `names`: about 15 % each but for the first name, which takes the rest.

    The side of a group follows from its name and the seed alone. Only where a name would stay empty does it get the
    group that comes next to it; with two groups that is the second name.

    Args:
        ids: one per image.
        names: ("train", "val", "test") or ("train", "val").
        group_by: regular expression with one group; images with equal groups stay together.
        seed: another seed deals otherwise.
        keys: what an image is known by, where that is not its id.
        known: keys per name that an earlier split has dealt; they stay, with the other images of their groups.

    Returns:
        Sorted indices per name. Later names stay empty when there are too few groups for one each.
    """
    keys = ids if keys is None else keys
    groups: dict[str, list[int]] = {}
    for index, group in enumerate(group_keys(ids, group_by) if group_by is not None else keys):
        groups.setdefault(group, []).append(index)
    # What was trained on stays there, whatever else an earlier split says of the group.
    earlier = {key: name for name in reversed(names) for key in (known or {}).get(name, ())}
    sides: dict[str, str] = {}
    for group, indices in groups.items():
        known_sides = {earlier[keys[index]] for index in indices if keys[index] in earlier}
        if known_sides:
            sides[group] = min(known_sides, key=list(names).index)

    held: tuple[str, ...] = ("test", "val") if "test" in names else ("val",)
    first = 0 if "test" in names else HELD_OUT  # validation images are the same with and without a test split
    places = {group: _place(group, seed, first) for group in groups if group not in sides}
    order = sorted(places, key=places.__getitem__)
    fresh = not sides
    if fresh:
        held = held if len(order) > len(held) else held[-1:] if len(order) == 2 else ()
    start = 0
    for number, name in enumerate(held, start=1):
        end = sum(place[0] < number * HELD_OUT for place in places.values())
        if fresh:  # at least one group for each name
            end = min(max(end, start + 1), len(order) - 1 - (len(held) - number))
        sides |= dict.fromkeys(order[start:end], name)
        start = end
    result: dict[str, list[int]] = {name: [] for name in names}
    for group, indices in groups.items():
        result[sides.get(group, names[0])] += indices
    return {name: sorted(indices) for name, indices in result.items()}


def _place(group: str, seed: int, first: int) -> tuple[int, str]:
    """Where a group stands: its slot, counted from `first`, of 20; among those of one slot, a text.

    Of 20 numbers that follow each other each has a slot of its own, so that small folders have the right shares, too.
    """
    match = _NUMBER.fullmatch(group)
    around, number = (f"{match[1]}#{match[3]}", int(match[2])) if match else (group, 0)
    block, position = divmod(number, SLOTS)
    start = int.from_bytes(hashlib.sha256(f"{seed} {block} {around}".encode()).digest()[:4], "big")
    slot = (start - HELD_OUT * position) % SLOTS  # 3 and 20 have no common divisor
    return (slot - first) % SLOTS, hashlib.sha256(f"{seed} {group}".encode()).hexdigest()


def group_keys(ids: Sequence[str], group_by: str) -> list[str]:
    """The group of each image. Raises `UserError` where `group_by` does not match."""
    try:
        pattern = re.compile(one_form(group_by))
    except re.error as error:
        raise UserError(f"{group_by!r} is not a regular expression ({error})", key="group_by") from error
    if pattern.groups != 1:
        raise UserError(
            f"{group_by!r} has {pattern.groups} groups",
            key="group_by",
            fix="it needs exactly one, such as '^(p[0-9]+)_'",
        )
    keys = []
    for name in ids:
        match = pattern.search(name)
        if match is None or match.group(1) is None:
            raise UserError(
                f"{group_by!r} does not match the image {name!r}", key="group_by", fix="every image needs a group"
            )
        keys.append(match.group(1))
    return keys


def read_splits(file: Path) -> dict[str, list[str]]:
    """The `splits.json` of a run. Raises `UserError` where it is damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(name): [str(key) for key in keys] for name, keys in content.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(
            f"not a readable splits.json ({error})", where=file, fix="remove it to deal the images anew"
        ) from error


def changes(before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]) -> str | None:
    """How many images came and went between two splits, in words; None where none did."""
    parts = []
    for name in after:
        if name in before:
            old, new = set(before[name]), set(after[name])
            parts += [f"{len(new - old)} new in {name}"] * bool(new - old)
            parts += [f"{len(old - new)} gone from {name}"] * bool(old - new)
        else:
            parts.append(f"{name} is new")
    parts += [f"{name} is gone" for name in before if name not in after]
    return ", ".join(parts) or None
