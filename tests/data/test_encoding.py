"""What mask values mean, and what is refused."""

import numpy as np
import pytest

from hf_sam_adapt.data.encoding import MaskEncoding, map_values, parse_label_map, present_values, resolve_encoding
from hf_sam_adapt.errors import UserError


def resolve(*masks, mask_values="auto", num_labels=None, label_map=None, lossy=()):
    """`masks` are lists of values; they are called a, b, …"""
    items = []
    for name, values in zip("abcdef", masks):
        stored = map_values(np.array(values, np.uint8), label_map)
        items.append((name, present_values(stored, name), name in lossy))
    return resolve_encoding(items, mask_values, num_labels, label_map)


def test_binary_masks_of_1_and_255_are_said():
    said = resolve([0, 255], [0, 1], [0, 1, 255], mask_values="binary")[1]
    assert said == ["1 masks hold both 1 and 255, such as c: both are foreground; mask_values: index has 255 ignored"]
    assert resolve([0, 255], [0, 1], [0, 7, 255], mask_values="binary")[1] == []


def test_pictures_of_0_and_255_are_binary_and_say_so():
    encoding, notes = resolve([0, 255], [0], [255])
    assert encoding.mask_values == "binary" and len(notes) == 1 and "{0, 255}" in notes[0]
    decoded = encoding.decode(np.array([[0, 255]], np.uint8), False, "x")
    assert decoded.tolist() == [[0, 1]]
    with pytest.raises(UserError, match="late: mask value 7"):
        encoding.decode(np.array([[0, 255, 7]], np.uint8), False, "late")
    with pytest.raises(UserError, match=r"late: .*binary"):
        encoding.decode(np.array([[0, 255]], np.uint8), True, "late")


@pytest.mark.parametrize("num_labels, masks", [(None, ([0, 1], [0], [0, 1, 255])), (5, ([0, 4, 255], [1, 2], [3]))])
def test_indices(num_labels, masks):
    encoding, notes = resolve(*masks, num_labels=num_labels)
    assert encoding.mask_values == "index" and notes == []
    stored = np.array([masks[0]], np.uint8)
    assert np.array_equal(encoding.decode(stored, False, "x"), stored)
    with pytest.raises(UserError, match="late: mask value 9"):
        encoding.decode(np.array([[0, 9]], np.uint8), False, "late")


def test_a_value_above_the_last_class_offers_both_readings():
    for masks, num_labels in (([0, 128], None), ([0, 1, 254], None), ([0, 4], 4)):
        with pytest.raises(UserError, match=r"^b: mask value \d+.*binary.*index"):
            resolve([0, 1], masks, num_labels=num_labels)
        with pytest.raises(UserError, match=r"^b: mask value"):
            resolve([0, 1], masks, num_labels=num_labels, mask_values="index")


def test_mixed_encodings_name_a_file_of_each():
    with pytest.raises(UserError, match=r"mixed: b holds 255.*c holds class"):
        resolve([0], [0, 255], [0, 1])
    assert resolve([0], [0, 255], [0, 1], mask_values="index")[0].mask_values == "index"
    assert resolve([0], [0, 255], [0, 1], mask_values="binary")[0].mask_values == "binary"


@pytest.mark.parametrize("mask_values", ["auto", "index"])
def test_lossy_masks_offer_binary(mask_values):
    with pytest.raises(UserError, match=r"^b: .*mask_values to binary"):
        resolve([0, 255], [0, 3, 250, 255], mask_values=mask_values, lossy="b")


def test_binary_thresholds():
    encoding = resolve([0, 3, 250], mask_values="binary", lossy="a")[0]
    stored = np.array([[0, 1, 127, 128, 255]], np.uint8)
    assert encoding.decode(stored, False, "x").tolist() == [[0, 1, 1, 1, 1]]
    assert encoding.decode(stored, True, "x").tolist() == [[0, 0, 0, 1, 1]]


def test_label_map_comes_first():
    encoding, _ = resolve([0, 1, 11], [0, 5], label_map={0: 255} | {i: i - 1 for i in range(1, 12)}, num_labels=11)
    assert encoding.mask_values == "index"
    assert encoding.decode(np.array([[0, 1, 11]], np.uint8), False, "x").tolist() == [[255, 0, 10]]
    # A mask that is ignored but for its background is no picture of 0 and 255 here: the map names 255.
    assert resolve([0, 1], [1, 2], label_map={0: 255, 1: 0, 2: 1})[0].mask_values == "index"
    assert resolve([0, 128], label_map={128: 255})[0].mask_values == "index"
    assert resolve([0, 128, 255], label_map={128: 0})[0].mask_values == "binary"


@pytest.mark.parametrize("label_map", [{"a": 1}, {1: 300}, {1: -1}, [1, 2], {1: None}])
def test_label_maps_that_are_none(label_map):
    with pytest.raises(UserError, match=r"^label_map: "):
        parse_label_map(label_map)


def test_label_map_of_yaml_and_flags():
    assert parse_label_map({"0": "255", 1: 0}) == {0: 255, 1: 0}
    assert parse_label_map({"-1": 255, 26001: 1}) == {-1: 255, 26001: 1}
    assert parse_label_map({}) is None and parse_label_map(None) is None


def test_unknown_encoding():
    with pytest.raises(UserError, match="'indices'"):
        resolve([0, 1], mask_values="indices")


def test_decoding_does_not_change_its_input():
    stored = np.array([[0, 1, 2]], np.uint8)
    MaskEncoding("index", 3, {2: 1}).decode(stored, False, "x")
    assert stored.tolist() == [[0, 1, 2]]
