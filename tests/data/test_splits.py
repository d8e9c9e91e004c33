"""Seeded splits."""

import pytest

from hf_sam_adapt.data.splits import split_indices
from hf_sam_adapt.errors import UserError


NAMES = ("train", "val", "test")


def test_shares_and_seeds():
    ids = [f"{i:03d}" for i in range(100)]
    split = split_indices(ids, NAMES, seed=3)
    assert {name: len(part) for name, part in split.items()} == {"train": 70, "val": 15, "test": 15}
    assert sorted(index for part in split.values() for index in part) == list(range(100))
    assert split == split_indices(ids, NAMES, seed=3) != split_indices(ids, NAMES, seed=4)
    held = split_indices(ids, ("train", "val"), seed=3)
    assert {name: len(part) for name, part in held.items()} == {"train": 85, "val": 15}


def test_groups_stay_together():
    ids = [f"p{i % 17:02d}_{i}" for i in range(170)]
    split = split_indices(ids, NAMES, group_by="^(p[0-9]+)_", seed=0)
    groups = {name: {ids[i].split("_")[0] for i in part} for name, part in split.items()}
    assert not groups["train"] & groups["val"] and not groups["train"] & groups["test"]
    assert not groups["val"] & groups["test"]
    assert sum(map(len, groups.values())) == 17
    assert all(15 <= len(split[name]) <= 40 for name in ("val", "test"))


def test_groups_of_unequal_size():
    ids = ["big_0"] * 80 + ["a_0"] * 10 + ["b_0"] * 10
    for seed in range(5):
        split = split_indices(ids, ("train", "val"), group_by="^(.*)_", seed=seed)
        assert len(split["val"]) in (10, 20)


@pytest.mark.parametrize("count, expected", [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (7, (5, 1, 1))])
def test_few_images(count, expected):
    split = split_indices([str(i) for i in range(count)], NAMES)
    assert tuple(len(split[name]) for name in NAMES) == expected


def test_one_group_holds_nothing_out():
    split = split_indices(["a_1", "a_2", "a_3"], NAMES, group_by="^(a)_")
    assert tuple(len(split[name]) for name in NAMES) == (3, 0, 0)


@pytest.mark.parametrize(
    "pattern, message", [("(", "no regular"), ("p", "0 groups"), ("(x)|(y)", "2 groups"), ("(q)", "'p1'")]
)
def test_bad_patterns(pattern, message):
    with pytest.raises(UserError, match=rf"^group_by: .*{message}"):
        split_indices(["p1", "p2"], NAMES, group_by=pattern)
