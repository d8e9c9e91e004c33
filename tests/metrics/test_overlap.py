"""IoU and Dice against a brute-force count of pixels."""

import numpy as np
import pytest

from hf_sam_adapt.metrics import Overlap, OverlapMetric, mean_overlap, overlap


def brute_force(prediction: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    intersection = union = total = 0
    for row in range(mask.shape[0]):
        for column in range(mask.shape[1]):
            if mask[row, column] == 255:
                continue
            predicted, true = bool(prediction[row, column]), bool(mask[row, column] > 0)
            intersection += predicted and true
            union += predicted or true
            total += predicted + true
    return (intersection / union if union else 1.0), (2 * intersection / total if total else 1.0)


def one_pixel(shape: tuple[int, int], value: int) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[shape[0] // 2, shape[1] - 1] = value
    return mask


def cases(rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    shape = (int(rng.integers(5, 30)), int(rng.integers(5, 30)))
    random = rng.random(shape) > 0.6
    empty, full = np.zeros(shape, np.uint8), np.ones(shape, np.uint8)
    bearing = rng.choice(np.array([0, 1, 255], np.uint8), shape)
    return {
        "random": (random, (rng.random(shape) > 0.5).astype(np.uint8)),
        "random class ids": (random, rng.integers(0, 5, shape).astype(np.uint8)),
        "ignored pixels": (random, bearing),
        "all ignored": (random, np.full(shape, 255, np.uint8)),
        "only background known": (random, np.where(bearing == 1, np.uint8(255), bearing)),
        "empty truth": (random, empty),
        "empty prediction": (empty.astype(bool), (rng.random(shape) > 0.5).astype(np.uint8)),
        "empty both": (empty.astype(bool), empty),
        "full truth": (random, full),
        "full both": (full.astype(bool), full),
        "one pixel": (random, one_pixel(shape, 1)),
        "one pixel hit": (one_pixel(shape, 1).astype(bool), one_pixel(shape, 1)),
        "one pixel ignored": (one_pixel(shape, 1).astype(bool), one_pixel(shape, 255)),
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", sorted(cases(np.random.default_rng(0))))
def test_equals_brute_force(name, seed):
    prediction, mask = cases(np.random.default_rng(seed))[name]
    counts = overlap(prediction, mask)
    assert (counts.iou, counts.dice) == pytest.approx(brute_force(prediction, mask), abs=1e-15)


def test_empty_against_empty_is_one_and_against_something_zero():
    empty = np.zeros((4, 5), np.uint8)
    assert overlap(empty.astype(bool), empty).scores() == {"iou": 1.0, "dice": 1.0}
    assert overlap(one_pixel((4, 5), 1).astype(bool), empty).scores() == {"iou": 0.0, "dice": 0.0}
    assert overlap(empty.astype(bool), one_pixel((4, 5), 1)).scores() == {"iou": 0.0, "dice": 0.0}


def test_mean_over_images_of_different_sizes_weighs_images_not_pixels():
    metric = OverlapMetric()
    metric.update(np.ones((2, 2), bool), np.ones((2, 2), np.uint8))
    metric.update(np.ones((100, 100), bool), np.zeros((100, 100), np.uint8))
    assert metric.compute() == {"iou": 0.5, "dice": 0.5}


def test_merge_equals_one_stream():
    rng = np.random.default_rng(3)
    whole, parts, counts = OverlapMetric(), [OverlapMetric(), OverlapMetric(), OverlapMetric()], []
    for index in range(10):
        shape = (int(rng.integers(3, 9)), int(rng.integers(3, 9)))
        prediction, mask = rng.random(shape) > 0.5, rng.choice(np.array([0, 1, 255], np.uint8), shape)
        whole.update(prediction, mask)
        parts[index % 3].update(prediction, mask)
        counts.append(overlap(prediction, mask))
    parts[0].merge(parts[1:])
    assert parts[0].compute() == pytest.approx(whole.compute()) == mean_overlap(counts)
    assert parts[0].totals[-1] == 10


def test_counts_are_exact_python_integers():
    counts = overlap(np.ones((3000, 3000), bool), np.ones((3000, 3000), np.uint8))
    assert counts == Overlap(9_000_000, 9_000_000, 9_000_000)
    assert type(counts.intersection) is int


def test_wrong_input_raises():
    with pytest.raises(ValueError, match="one size"):
        overlap(np.zeros((3, 4), bool), np.zeros((4, 3), np.uint8))
    with pytest.raises(ValueError, match="boolean"):
        overlap(np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8))
    with pytest.raises(ValueError, match="no image"):
        OverlapMetric().compute()
