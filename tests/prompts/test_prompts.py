"""Prompts derived from masks."""

import numpy as np
import pytest

from hf_sam_adapt.errors import UserError
from hf_sam_adapt.prompts import Prompt, degrade, derive_prompts


def two_objects() -> np.ndarray:
    """100 x 120: a large rectangle, a small one, one pixel of noise and a stripe of ignored pixels."""
    mask = np.zeros((100, 120), np.uint8)
    mask[10:40, 20:70] = 1
    mask[60:70, 90:100] = 1
    mask[90, 5] = 1
    mask[80:85] = 255
    return mask


def test_boxes_are_tight_and_inclusive():
    prompt = derive_prompts(two_objects(), "box")
    assert prompt.boxes.dtype == np.float32
    assert prompt.boxes.tolist() == [[20, 10, 69, 39], [90, 60, 99, 69]]
    assert len(prompt) == 2 and prompt.targets.sum(axis=(1, 2)).tolist() == [1500, 100]
    assert prompt.labels.tolist() == [1, 1]
    assert prompt.points is None and prompt.masks is None
    block = np.zeros((10, 10), np.uint8)
    block[5:7, 4:7] = 1
    assert derive_prompts(block, "box").boxes.tolist() == [[4, 5, 6, 6]]
    assert derive_prompts(np.zeros((10, 10), np.uint8), "box").boxes.shape == (0, 4)


def test_small_components_do_not_count():
    mask = np.zeros((100, 100), np.uint8)  # 0.05 % are 5 pixels
    mask[10, 10:14] = 1
    mask[20, 20:25] = 1
    prompt = derive_prompts(mask, "box")
    assert prompt.boxes.tolist() == [[20, 20, 24, 20]]
    assert prompt.left_out == (1, 4)


def test_diagonal_pixels_are_connected_and_ignored_ones_are_not_foreground():
    mask = np.zeros((20, 20), np.uint8)
    mask[3, 3] = mask[4, 4] = mask[5, 5] = 1
    mask[10:15, 10:15] = 255
    assert derive_prompts(mask, "box").boxes.tolist() == [[3, 3, 5, 5]]


def test_at_most_the_largest():
    mask = np.zeros((200, 200), np.uint8)
    for index in range(40):
        row, column = divmod(index, 8)
        mask[row * 20 : row * 20 + 5, column * 20 : column * 20 + 5 + index % 10] = 1
    prompt = derive_prompts(mask, "box")
    assert len(prompt) == 32
    areas = prompt.targets.sum(axis=(1, 2))
    assert (np.diff(areas) <= 0).all()
    assert prompt.left_out == (8, (mask > 0).sum() - prompt.targets.sum())
    assert len(derive_prompts(mask, "box", max_objects=3)) == 3


def test_points_are_farthest_from_the_border():
    rng = np.random.default_rng(0)
    mask = np.zeros((60, 80), np.uint8)
    for _ in range(3):
        y, x = rng.integers(0, 40, 2)
        mask[y : y + rng.integers(5, 20), x : x + rng.integers(5, 30)] = 1
    prompt = derive_prompts(mask, "point")
    assert prompt.points.shape == (len(prompt), 1, 2) and prompt.point_labels.tolist() == [[1]] * len(prompt)
    for (x, y), target in zip(prompt.points[:, 0].astype(int), prompt.targets):
        outside = np.argwhere(~np.pad(target, 1)) - 1
        every = np.argwhere(target)
        nearest = ((every[:, None] - outside[None]) ** 2).sum(-1).min(1)
        assert nearest[(every == (y, x)).all(1).argmax()] == nearest.max()
        assert target[y, x]


def test_the_image_border_is_a_border():
    mask = np.zeros((21, 41), np.uint8)
    mask[:, :21] = 1
    assert derive_prompts(mask, "point").points.tolist() == [[[10, 10]]]


def test_classes_have_their_own_objects():
    mask = np.zeros((50, 50), np.uint8)
    mask[5:20, 5:25] = 2
    mask[5:20, 25:40] = 1
    mask[30:40, 30:40] = 2
    prompt = derive_prompts(mask, "box", num_labels=3)
    assert prompt.labels.tolist() == [2, 1, 2] and prompt.labels.dtype == np.int64
    assert prompt.boxes.tolist() == [[5, 5, 24, 19], [25, 5, 39, 19], [30, 30, 39, 39]]
    assert len(derive_prompts(mask, "box")) == 2


def test_degraded_masks_change_and_stay_near():
    mask = two_objects()
    targets = derive_prompts(mask, "box").targets
    grown = set()
    for seed in range(12):
        prompt = derive_prompts(mask, "mask", rng=np.random.default_rng(seed))
        again = derive_prompts(mask, "mask", rng=np.random.default_rng(seed))
        assert np.array_equal(prompt.masks, again.masks) and np.array_equal(prompt.targets, targets)
        for degraded, target in zip(prompt.masks, targets):
            overlap = (degraded & target).sum() / (degraded | target).sum()
            assert 0.3 < overlap < 1
            assert (degraded >= target).all() or (degraded <= target).all()
            grown.add(bool(degraded.sum() > target.sum()))
    assert grown == {True, False}


def test_degradation_by_brute_force():
    rng = np.random.default_rng(3)
    target = np.zeros((40, 50), bool)
    target[0:12, 8:30] = True
    target[12:20, 12:20] = True
    for seed in range(6):
        degraded = degrade(target, np.random.default_rng(seed))
        grid = np.argwhere(np.ones_like(target))
        grows = degraded.sum() > target.sum()
        seeds = np.argwhere(target if grows else ~target)
        distance = np.sqrt(((grid[:, None] - seeds[None]) ** 2).sum(-1).min(1)).reshape(target.shape)
        reached = distance[degraded].max() if grows else distance[target & ~degraded].max()
        assert np.array_equal(degraded, distance <= reached if grows else distance > reached)
    full = np.ones((10, 10), bool)
    for _ in range(6):
        assert degrade(full, rng).all()


def test_an_erosion_that_leaves_nothing_keeps_the_object():
    line = np.zeros((60, 60), bool)
    line[30, 5:55] = True
    for seed in range(8):
        assert degrade(line, np.random.default_rng(seed)).any()


@pytest.mark.parametrize("kind", ["box", "point", "mask"])
def test_nothing_to_prompt(kind):
    prompt = derive_prompts(np.full((30, 30), 255, np.uint8), kind)
    assert prompt.kind == kind and len(prompt) == 0 and prompt
    assert prompt.targets.shape == (0, 30, 30) and prompt.labels.shape == (0,)


def test_none_is_empty_and_unknown_kinds_raise():
    assert derive_prompts(two_objects(), "none") == Prompt("none")
    with pytest.raises(UserError, match="'boxes'"):
        derive_prompts(two_objects(), "boxes")


def test_select():
    prompt = derive_prompts(two_objects(), "point").select([1])
    assert len(prompt) == 1 and prompt.points.tolist() == derive_prompts(two_objects(), "point").points[1:].tolist()


@pytest.mark.parametrize("dtype", [bool, np.int64, np.float32])
def test_masks_of_any_type(dtype):
    mask = np.zeros((40, 40), np.uint8)
    mask[5:20, 8:30] = 1
    found, expected = (derive_prompts(one, "box") for one in (mask.astype(dtype), mask))
    assert np.array_equal(found.boxes, expected.boxes) and len(found) == 1
