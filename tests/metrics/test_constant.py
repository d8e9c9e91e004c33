"""The best constant mask against a search over every threshold."""

from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.folder import FileReader
from hf_sam_adapt.metrics import OverlapMetric, constant_mask


@dataclass
class Item:
    mask: np.ndarray


def brute_force(split: list[Item], size: int) -> float:
    """Highest mean IoU over all thresholds, the empty and the full mask included."""
    grids = [np.asarray(Image.fromarray(item.mask).resize((size, size), Image.Resampling.NEAREST)) for item in split]
    known = sum((grid != 255).astype(int) for grid in grids)
    mean = sum((grid == 1).astype(int) for grid in grids) / np.maximum(known, 1)
    best = 0.0
    for threshold in np.concatenate([[-1.0], np.unique(mean), [2.0]]):
        metric = OverlapMetric()
        for grid in grids:
            metric.update(mean >= threshold - 1e-9, grid)
        best = max(best, metric.compute()["iou"])
    return best


def split_of(rng: np.random.Generator, count: int, values: list[int]) -> list[Item]:
    """Rectangles near one place, of different image sizes, with noise."""
    items = []
    for _ in range(count):
        height, width = rng.integers(20, 40, 2)
        mask = np.zeros((height, width), np.uint8)
        top, left = rng.integers(2, 9, 2)
        mask[top : top + 12, left : left + 10] = 1
        noise = rng.random((height, width)) < 0.1
        mask[noise] = rng.choice(np.array(values, np.uint8), noise.sum())
        items.append(Item(mask))
    return items


@pytest.mark.parametrize("values", [[0, 1], [0, 1, 255]])
@pytest.mark.parametrize("seed", range(3))
def test_threshold_is_the_best_of_all(seed, values):
    split = split_of(np.random.default_rng(seed), 7, values)
    constant = constant_mask(split, size=16)
    assert constant.train_iou == pytest.approx(brute_force(split, 16), abs=1e-12)
    metric = OverlapMetric()
    for item in split:
        metric.update(
            constant.at(16, 16), np.asarray(Image.fromarray(item.mask).resize((16, 16), Image.Resampling.NEAREST))
        )
    assert metric.compute()["iou"] == pytest.approx(constant.train_iou, abs=1e-12)


def test_is_at_the_original_size():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 15:45] = 1
    constant = constant_mask([Item(mask)], size=64)
    assert constant.train_iou == 1.0
    metric = OverlapMetric()
    metric.update(
        constant.at(400, 600), np.asarray(Image.fromarray(mask).resize((600, 400), Image.Resampling.NEAREST))
    )
    assert constant.at(400, 600).shape == (400, 600)
    assert metric.compute()["iou"] > 0.95


@pytest.mark.parametrize(("value", "expected"), [(0, False), (1, True)])
def test_empty_and_full_training_masks(value, expected):
    split = [Item(np.full((30, 20), value, np.uint8)) for _ in range(3)]
    constant = constant_mask(split, size=8)
    assert constant.train_iou == 1.0
    assert np.all(constant.at(33, 21) == expected)


def test_all_ignored_and_empty_split():
    constant = constant_mask([Item(np.full((9, 9), 255, np.uint8))], size=8)
    assert constant.train_iou == 1.0
    with pytest.raises(ValueError, match="at least one"):
        constant_mask([])


def test_reads_masks_alone(make_dataset, monkeypatch):
    split = load_segmentation_dataset(str(make_dataset(train=7))).train
    expected = constant_mask(list(split), size=32)

    def fail(self, row):
        raise AssertionError("opened")

    monkeypatch.setattr(FileReader, "read_image", fail)
    found = constant_mask(split, size=32)
    assert found.train_iou == expected.train_iou and np.array_equal(found.mean, expected.mean)


@pytest.mark.parametrize(("domain", "expected"), [("polyp", 0.28), ("camouflage", 0.33), ("shadow", 0.24)])
def test_real_domains(real_data, domain, expected):
    def read(split: str) -> list[Item]:
        paths = sorted((real_data / domain / split / "masks").glob("*.png"))
        return [Item((np.asarray(Image.open(path)) > 0).astype(np.uint8)) for path in paths]

    constant = constant_mask(read("train"))
    metric = OverlapMetric()
    for item in read("test"):
        metric.update(constant.at(*item.mask.shape), item.mask)
    assert metric.compute()["iou"] == pytest.approx(expected, abs=0.01)
