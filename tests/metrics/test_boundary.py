"""Boundary IoU beside published numbers and a plain reference."""

import numpy as np
import pytest

from hf_sam_adapt.metrics import boundary_overlap, overlap
from hf_sam_adapt.metrics.boundary import boundary_width


def rectangle(rows, columns, size=(100, 200)):
    mask = np.zeros(size, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def reference_boundary(mask, width):
    """One-pixel border of zeros, then `width` erosions by a 3 x 3 element, as the metric's authors compute it."""
    eroded = np.pad(mask, 1)
    for _ in range(width):
        inside = np.pad(eroded, 1, mode="edge")
        shifts = [inside[dy : dy + eroded.shape[0], dx : dx + eroded.shape[1]] for dy in range(3) for dx in range(3)]
        eroded = np.logical_and.reduce(shifts)
    return mask & ~eroded[1:-1, 1:-1]


def test_the_numbers_of_the_official_metric():
    truth, prediction = rectangle((40, 60), (50, 120)), rectangle((42, 60), (50, 120))
    assert boundary_width(100, 200) == 4
    assert overlap(prediction, truth.astype(np.uint8)).iou == pytest.approx(0.9, abs=1e-6)
    assert boundary_overlap(prediction, truth.astype(np.uint8)).iou == pytest.approx(0.661538, abs=1e-6)


def test_empty_and_thin_masks():
    empty = np.zeros((40, 50), bool)
    assert boundary_overlap(empty, empty.astype(np.uint8)).iou == 1.0
    thin = rectangle((3, 4), (0, 30), (40, 50))
    other = rectangle((3, 4), (10, 50), (40, 50))
    assert boundary_overlap(other, thin.astype(np.uint8)) == overlap(other, thin.astype(np.uint8))


@pytest.mark.parametrize("seed", range(4))
def test_equals_repeated_erosion(seed):
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(30, 160, 2))
    truth, prediction = (ndimage.gaussian_filter(rng.normal(size=size), 6) > 0 for _ in range(2))
    first, second = (reference_boundary(mask, boundary_width(*size)) for mask in (prediction, truth))
    wanted = (first & second).sum() / (first | second).sum()
    assert 0 < wanted < 1
    assert boundary_overlap(prediction, truth.astype(np.uint8)).iou == pytest.approx(wanted, abs=1e-12)


def test_ignored_pixels_count_nowhere():
    rng = np.random.default_rng(5)
    truth, prediction = rectangle((10, 70), (20, 150)), rectangle((20, 90), (10, 120))
    mask = truth.astype(np.uint8)
    mask[:, 100:] = 255
    scores = []
    for _ in range(2):
        prediction[:, 100:] = rng.random((100, 100)) > 0.5
        scores.append(boundary_overlap(prediction, mask))
    assert scores[0] == scores[1] and 0 < scores[0].iou < 1


def test_refuses_what_overlap_refuses():
    with pytest.raises(ValueError, match="boolean"):
        boundary_overlap(np.zeros((5, 5)), np.zeros((5, 5), np.uint8))
