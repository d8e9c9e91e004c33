"""Seeded splits."""

import numpy as np
import pytest

from hf_sam_adapt.data.splits import changes, split_indices
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
    assert held["val"] == split["val"]


def words(count: int, seed: int = 0) -> list[str]:
    """Names without a number in them."""
    letters = np.random.default_rng(seed).choice(list("abcdefghij"), (count, 12))
    return ["".join(row) for row in letters.tolist()]


NAMINGS = {
    "numbers": [f"{i:04d}" for i in range(60)],
    "numbers from elsewhere": [f"img_{i}_rgb" for i in range(9993, 10053)],
    "every fifth frame": [f"frame{5 * i}" for i in range(60)],
    "every thousandth": [f"t{1000 * i}" for i in range(60)],
    "words": words(60),
    "sub-folders": [f"day{i % 3}/{i // 3}" for i in range(60)],
    "accents": [f"é_{word}" for word in words(60, 1)],
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("naming", NAMINGS)
def test_an_image_keeps_its_side_when_others_come_and_go(naming, seed):
    """Whatever comes first, in the middle or last: of 22 images that 38 join, and the reverse."""
    ids = np.random.default_rng(seed).permutation(NAMINGS[naming]).tolist()
    whole = sides_of(ids, seed=seed)
    for part in (ids[:22], ids[38:], ids[10:32], ids[::-1], sorted(ids)[20:42]):
        own = sides_of(part, seed=seed)
        lent = [name for name in part if own[name] != whole[name]]
        # A side that would be empty is lent one image; what is trained on is never held out later.
        assert len(lent) <= 2 and all(list(own.values()).count(own[name]) == 1 for name in lent)
        assert all(whole[name] == "train" for name in part if own[name] == "train")
    shares = [list(whole.values()).count(name) / 60 for name in NAMES]
    assert shares[0] >= 0.5 and 0.03 <= shares[1] <= 0.3 and 0.03 <= shares[2] <= 0.3


@pytest.mark.parametrize("seed", range(5))
def test_numbered_images_keep_their_sides_exactly(seed):
    ids = [f"image_{i}" for i in range(1, 200)]
    whole = sides_of(ids, seed=seed)
    for part in (ids[:14], ids[:22], ids[50:90], ids[1::2]):
        assert sides_of(part, seed=seed).items() <= whole.items()


def sides_of(ids, **keys):
    split = split_indices(ids, NAMES, **keys)
    return {ids[index]: name for name, part in split.items() for index in part}


@pytest.mark.parametrize("count", [7, 10, 14, 20, 33])
def test_shares_of_few_numbered_images(count):
    for start in (0, 1, 17):
        split = split_indices([f"x{i:03d}" for i in range(start, start + count)], NAMES, seed=count)
        assert all(abs(len(split[name]) - 0.15 * count) <= 1.5 for name in ("val", "test"))


def test_images_of_one_group_keep_its_side():
    ids = [f"p{i % 12}_{i}" for i in range(60)]
    whole = sides_of(ids, group_by="^(p[0-9]+)_")
    for part in (ids[:24], ids[30:]):
        assert sides_of(part, group_by="^(p[0-9]+)_").items() <= whole.items()


def test_known_images_keep_their_sides():
    """Also under another seed, and with their whole groups; what was trained on is never tested."""
    ids = [f"p{i % 9}_{i}" for i in range(45)]
    first = split_indices(ids[:20], NAMES, seed=5)
    known = {name: [ids[index] for index in part] for name, part in first.items()}
    later = sides_of(ids, seed=6, known=known)
    assert all(later[key] == name for name, keys in known.items() for key in keys)
    assert {later[name] for name in ids[20:]} == set(NAMES)
    grouped = sides_of(ids, seed=6, known=known, group_by="^(p[0-9]+)_")
    groups = [{name.split("_")[0] for name, side in grouped.items() if side == wanted} for wanted in NAMES]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert all(grouped[name] == "train" for name in known["train"])


def test_changes_are_counted():
    before = {"train": ["a", "b", "c"], "test": ["d"]}
    assert changes(before, {"train": ["c", "a", "b"], "test": ["d"]}) is None
    assert changes(before, {"train": ["a", "e", "f"], "test": ["d"]}) == "2 new in train, 2 gone from train"
    assert changes(before, {"train": ["a", "b", "c"], "val": ["d"]}) == "val is new, test is gone"


def test_groups_stay_together():
    ids = [f"p{i % 17:02d}_{i}" for i in range(170)]
    split = split_indices(ids, NAMES, group_by="^(p[0-9]+)_", seed=0)
    groups = {name: {ids[i].split("_")[0] for i in part} for name, part in split.items()}
    assert not groups["train"] & groups["val"] and not groups["train"] & groups["test"]
    assert not groups["val"] & groups["test"]
    assert sum(map(len, groups.values())) == 17
    assert all(len(split[name]) in (20, 30) for name in ("val", "test"))


@pytest.mark.parametrize("count, expected", [(1, (1, 0, 0)), (2, (1, 1, 0)), (3, (1, 1, 1)), (7, (5, 1, 1))])
def test_few_images(count, expected):
    split = split_indices([str(i) for i in range(count)], NAMES)
    assert tuple(len(split[name]) for name in NAMES) == expected


def test_one_group_holds_nothing_out():
    split = split_indices(["a_1", "a_2", "a_3"], NAMES, group_by="^(a)_")
    assert tuple(len(split[name]) for name in NAMES) == (3, 0, 0)


@pytest.mark.parametrize(
    "pattern, message", [("(", "not a regular"), ("p", "0 groups"), ("(x)|(y)", "2 groups"), ("(q)", "'p1'")]
)
def test_bad_patterns(pattern, message):
    with pytest.raises(UserError, match=rf"^group_by: .*{message}"):
        split_indices(["p1", "p2"], NAMES, group_by=pattern)
