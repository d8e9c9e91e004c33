"""Each module of `evaluate` equals its oracle on random, empty, full, one-pixel and ignore-bearing masks."""

import numpy as np
import pytest
import torch
from test_boundary import reference_boundary
from test_classes import known_pixels, loop_scores
from test_overlap import brute_force
from test_saliency import mean_rate, plain_ber, plain_scores, sod_scores

from hf_sam_adapt.metrics import MODULES
from hf_sam_adapt.metrics.boundary import boundary_width


evaluate = pytest.importorskip("evaluate")
SHAPE = (17, 23)
KINDS = ("random", "empty", "full", "one pixel", "ignore")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")


def draw_mask(kind: str, rng: np.random.Generator, classes: int = 2) -> np.ndarray:
    """uint8 (H, W) of 0..classes-1, with `ignore` 255 too."""
    mask = rng.integers(0, classes, SHAPE).astype(np.uint8)
    if kind == "empty":
        mask[:] = 0
    elif kind == "full":
        mask[:] = classes - 1
    elif kind == "one pixel":
        mask[:] = 0
        mask[rng.integers(3, 14), rng.integers(3, 20)] = classes - 1  # not at the border, where an oracle gives NaN
    elif kind == "ignore":
        mask[rng.random(SHAPE) < 0.3] = 255
    return mask


def module_scores(name: str, prediction: np.ndarray, mask: np.ndarray, **settings) -> dict:
    metric = evaluate.load(str(MODULES / name), **settings)
    return metric.compute(predictions=[prediction], references=[mask])


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_masks(kind, seed):
    rng = np.random.default_rng(seed)
    mask = draw_mask(kind, rng)
    known = mask != 255
    for prediction in (rng.random(SHAPE) > 0.5, np.zeros(SHAPE, bool), np.ones(SHAPE, bool), mask == 1):
        iou, dice = brute_force(prediction, mask)
        assert module_scores("iou_dice", prediction, mask) == pytest.approx({"iou": iou, "dice": dice}, abs=1e-12)
        errors = plain_ber(prediction, mask)
        found = module_scores("ber", prediction, mask)
        assert found["ber"] == found["ber_pooled"] == pytest.approx(mean_rate(*errors), abs=1e-12)
        width = boundary_width(*SHAPE)
        ours, true = (reference_boundary(one & known, width) & known for one in (prediction, mask == 1))
        union = (ours | true).sum()
        expected = (ours & true).sum() / union if union else 1.0
        assert module_scores("boundary_iou", prediction, mask)["biou"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", KINDS)
def test_probability_maps(kind, seed):
    rng = np.random.default_rng(seed)
    mask, map_ = draw_mask(kind, rng), rng.random(SHAPE)
    scores: dict = {}
    if kind == "ignore":
        known = mask != 255
        map_ = np.where(mask == 1, 0.7, map_)  # whichever of the nearest true pixels is taken
        expected = plain_scores(map_, mask)
        # To the E-measure, which knows counts only, the known pixels in a row are the same image.
        row = sod_scores([(map_[known][None], mask[known][None] == 1)], normalize=False)
        expected |= {name: value for name, value in row.items() if name.startswith("e_measure")}
    else:
        expected = sod_scores([(map_, mask == 1)], normalize=False)
    for name in ("s_measure", "e_measure", "weighted_f", "mae"):
        scores |= module_scores(name, map_, mask, normalize=False)
    assert scores == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_classes(kind):
    rng = np.random.default_rng(torch.initial_seed())
    mask, prediction = draw_mask(kind, rng, classes=4), rng.integers(0, 4, SHAPE)
    found = module_scores("semantic", prediction, mask, num_labels=4)
    expected = loop_scores(known_pixels([(prediction, mask)]), range(4))
    assert found.keys() == expected.keys()
    for label, scores in expected.pop("per_class").items():
        assert found["per_class"][label] == pytest.approx(scores, abs=1e-12), label
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-12)
