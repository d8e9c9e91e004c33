"""Class weights computed from training masks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hf_sam_adapt.errors import UserError
from hf_sam_adapt.losses.class_weights import class_weights_from


def masks_with(counts, seed=0, pieces=3):
    """Masks of different sizes that together hold `counts[value]` pixels of each value, mixed."""
    values = np.concatenate([np.full(count, value, np.uint8) for value, count in counts.items()])
    np.random.default_rng(seed).shuffle(values)
    return [part.reshape(1, -1) for part in np.array_split(values, pieces)]


@pytest.mark.parametrize(
    ("rule", "expected"), [("inverse_sqrt", [1 / 30, 1 / 10, 1 / 20]), ("inverse", [1 / 900, 1 / 100, 1 / 400])]
)
def test_weights_follow_the_frequency_with_mean_one(rule, expected):
    weights, absent = class_weights_from(masks_with({0: 900, 1: 100, 2: 400, 255: 77}), 3, rule)
    assert weights.dtype == torch.float32 and absent == []
    assert weights.tolist() == pytest.approx([w / (sum(expected) / 3) for w in expected])


@pytest.mark.parametrize("rule", ["inverse_sqrt", "inverse", "none"])
def test_an_absent_class_gets_zero_and_is_named(rule):
    masks = masks_with({0: 400, 3: 100})
    weights, absent = class_weights_from(masks, 5, rule, {0: "water", 1: "road", 2: "paddy", 3: "woodland"})
    assert absent == ["road", "paddy", "4"]
    assert weights[[1, 2, 4]].tolist() == [0, 0, 0]
    ratio = {"inverse_sqrt": 2, "inverse": 4, "none": 1}[rule]
    assert weights[3] / weights[0] == pytest.approx(ratio) and weights[[0, 3]].mean() == pytest.approx(1)


def test_a_split_is_read_in_order_once_and_one_item_at_a_time():
    masks = masks_with({0: 50, 1: 70, 255: 9}, pieces=4)
    read = []

    class Split:
        def __len__(self):
            return len(masks)

        def __getitem__(self, index):  # without the IndexError that plain iteration needs
            read.append(index)
            return SimpleNamespace(mask=masks[index % len(masks)])

    weights, _ = class_weights_from(Split(), 2)
    assert read == [0, 1, 2, 3]
    for source in (masks, iter(masks), (mask for mask in masks)):
        assert torch.equal(class_weights_from(source, 2)[0], weights)


def test_masks_that_do_not_fit_and_unknown_rules_raise():
    with pytest.raises(UserError, match="hold class 4, num_labels is 3"):
        class_weights_from(masks_with({0: 9, 4: 1}), 3)
    with pytest.raises(UserError, match="no pixel of the training masks is labelled"):
        class_weights_from(masks_with({255: 9}), 3)
    with pytest.raises(UserError, match="'sqrt' is not one of inverse_sqrt, inverse, none"):
        class_weights_from(masks_with({0: 9}), 3, "sqrt")
