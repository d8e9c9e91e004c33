"""Statistics of the training images, against those of all their pixels at once."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hf_sam_adapt.data import normalization as module
from hf_sam_adapt.data.normalization import NORMALIZATIONS, check_normalization, fit_normalization, normalize
from hf_sam_adapt.errors import UserError


@dataclass
class One:
    image: np.ndarray


class Images(list):
    """Arrays as a split."""

    opened = 0

    def __getitem__(self, index):
        self.opened += 1
        return One(super().__getitem__(index))

    @property
    def ids(self):
        return [f"image {index}" for index in range(len(self))]


def draw(count=12, channels=6, seed=0) -> Images:
    """Skewed amplitudes of different sizes and units per channel."""
    rng = np.random.default_rng(seed)
    units = 10.0 ** np.arange(-2, channels - 2)
    return Images(
        (rng.gamma(0.7, 1, (int(rng.integers(20, 60)), 40, channels)) * units).astype(np.float32) for _ in range(count)
    )


def pixels(images: Images) -> np.ndarray:
    return np.concatenate([image.reshape(-1, image.shape[2]) for image in list.__iter__(images)]).astype(np.float64)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
@pytest.mark.parametrize("channels", [1, 2, 6])
def test_plain_numbers_that_standardise_the_training_images(kind, channels):
    images = draw(channels=channels)
    if kind == "imagenet":
        images = Images(np.clip(image / 1e4 + 0.4, 0, 1) for image in list.__iter__(images))
    fitted = fit_normalization(images, kind, seed=1)
    assert json.loads(json.dumps(fitted)) == fitted == check_normalization(fitted, channels)
    assert fitted == fit_normalization(images, kind, seed=1)
    values = np.concatenate([normalize(image, fitted).reshape(-1, channels) for image in list.__iter__(images)])
    assert values.dtype == np.float32
    if kind != "imagenet":
        np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-3)
        np.testing.assert_allclose(values.std(axis=0), 1, atol=1e-3)


def test_zscore_and_minmax_of_all_pixels():
    images = draw()
    everything = pixels(images)
    fitted = fit_normalization(images, "zscore")
    assert set(fitted) == {"kind", "mean", "std"}
    np.testing.assert_allclose(fitted["mean"], everything.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(fitted["std"], everything.std(axis=0), rtol=1e-10)

    fitted = fit_normalization(images, "minmax")
    low, high = everything.min(axis=0), everything.max(axis=0)
    scaled = (everything - low) / (high - low)
    for key, expected in {"low": low, "high": high, "mean": scaled.mean(axis=0), "std": scaled.std(axis=0)}.items():
        np.testing.assert_allclose(fitted[key], expected, rtol=1e-8)
    outside = np.stack([low - 5, high * 2]).astype(np.float32)[None]  # (1, 2, C)
    inside = np.stack([low, high]).astype(np.float32)[None]
    np.testing.assert_allclose(normalize(outside, fitted), normalize(inside, fitted), atol=1e-4)


def test_percentiles_of_all_pixels_and_of_a_sample(monkeypatch):
    images = draw(count=30)
    everything = pixels(images)
    fitted = fit_normalization(images, "percentile")
    low, high = np.percentile(everything, (1, 99), axis=0)
    np.testing.assert_allclose(fitted["low"], low, rtol=1e-6)
    np.testing.assert_allclose(fitted["high"], high, rtol=1e-6)
    monkeypatch.setattr(module, "SAMPLED_VALUES", 6 * 15_000)
    sampled = fit_normalization(images, "percentile", seed=3)
    assert (
        sampled == fit_normalization(images, "percentile", seed=3) != fit_normalization(images, "percentile", seed=4)
    )
    np.testing.assert_allclose(sampled["high"], high, rtol=0.1)
    np.testing.assert_allclose(sampled["mean"], fitted["mean"], rtol=0.1)


def test_one_hot_pixel_does_not_move_the_percentiles():
    images = draw(channels=2)
    before = fit_normalization(images, "percentile")
    list.__getitem__(images, 0)[0, 0] = 1e9
    after = fit_normalization(images, "percentile")
    np.testing.assert_allclose(after["high"], before["high"], rtol=0.01)
    assert fit_normalization(images, "minmax")["high"] == [1e9, 1e9]


def test_decibels():
    images = draw(channels=3)
    everything = pixels(images)
    fitted = fit_normalization(images, "db")
    eps = 1e-3 * np.median(everything, axis=0)
    np.testing.assert_allclose(fitted["eps"], eps, rtol=1e-6)
    decibels = 20 * np.log10(everything + eps)
    low, high = np.percentile(decibels, (1, 99), axis=0)
    np.testing.assert_allclose(fitted["low"], low, rtol=1e-5)
    scaled = np.clip((decibels - low) / (high - low), 0, 1)
    expected = (scaled - scaled.mean(axis=0)) / scaled.std(axis=0)
    got = np.concatenate([normalize(image, fitted).reshape(-1, 3) for image in list.__iter__(images)])
    np.testing.assert_allclose(got, expected, atol=1e-3)

    # A radar that is calibrated otherwise gives the same picture.
    louder = Images(image * np.float32(4096) for image in list.__iter__(images))
    refitted = fit_normalization(louder, "db")
    first, second = list.__getitem__(images, 0), list.__getitem__(louder, 0)
    np.testing.assert_allclose(normalize(first, fitted), normalize(second, refitted), atol=1e-4)
    assert np.isfinite(normalize(np.zeros((2, 2, 3), np.float32), fitted)).all()


@pytest.mark.parametrize("largest, scale", [(0.9, 1), (200, 255), (4000, 4095), (60_000, 65_535)])
def test_imagenet_of_every_bit_depth(largest, scale):
    rng = np.random.default_rng(5)
    images = Images([(rng.random((9, 8, 4)) * largest).astype(np.float32) for _ in range(3)])
    list.__getitem__(images, 0)[0, 0] = largest
    fitted = fit_normalization(images, "imagenet")
    mean, std = np.mean([0.485, 0.456, 0.406]), np.mean([0.229, 0.224, 0.225])
    image = list.__getitem__(images, 1)
    np.testing.assert_allclose(normalize(image, fitted), (image / scale - mean) / std, atol=1e-5)
    three = fit_normalization(Images([image[..., :3] for image in list.__iter__(images)]), "imagenet")
    assert three["mean"] == [0.485, 0.456, 0.406] and three["std"] == [0.229, 0.224, 0.225]


def test_a_channel_without_contrast_becomes_zero():
    image = np.random.default_rng(6).random((10, 11, 2)).astype(np.float32)
    image[..., 1] = 42
    for kind in ("minmax", "percentile", "zscore", "db"):
        fitted = fit_normalization(Images([image]), kind)
        values = normalize(image, fitted)
        np.testing.assert_allclose(values[..., 1], 0, atol=1e-5)
        assert values[..., 0].std() > 0.9


def test_at_most_some_images_are_read(monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 5)
    images = draw(count=40)
    fitted = fit_normalization(images, "zscore", seed=1)
    assert images.opened == 5
    assert fitted == fit_normalization(images, "zscore", seed=1) != fit_normalization(images, "zscore", seed=2)


def test_what_cannot_be_normalised():
    images = Images([np.full((3, 4, 2), -1, np.float32)])
    for kind, message in {"db": "image 0 holds 24 negative", "imagenet": "-1..-1", "log": "'log' is unknown"}.items():
        with pytest.raises(UserError, match=message):
            fit_normalization(images, kind)
    fitted = fit_normalization(draw(channels=2), "db")
    with pytest.raises(UserError, match="amplitudes"):
        normalize(np.full((3, 4, 2), -1, np.float32), fitted)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"kind": "magic"}, "'magic'"),
        ({"mean": [1.0]}, "mean must list one number for each of 2"),
        ({"low": None}, "low must list"),
        ({"std": [1.0, float("nan")]}, "std must list"),
        ({"std": [1.0, 0.0]}, "std must be above 0"),
        ({"high": [-9.0, -9.0]}, "high above low"),
    ],
)
def test_a_file_that_was_tampered_with(change, message):
    fitted = fit_normalization(draw(channels=2), "percentile")
    with pytest.raises(UserError, match=message):
        check_normalization(fitted | change, 2)


def test_patches_get_numbers_of_the_usual_size():
    """SAM's patch embedding answers with the same magnitude as for a photograph, whatever the units."""
    rng = np.random.default_rng(7)
    weight = torch.from_numpy(rng.normal(0, 0.05, (32, 3, 8, 8)).astype(np.float32))

    def answer(values: np.ndarray) -> float:
        return F.conv2d(torch.from_numpy(values.transpose(2, 0, 1)[None]), weight, stride=8).std().item()

    noise = (rng.random((64, 64, 3)) * 255).astype(np.float32)
    usual = answer(normalize(noise, fit_normalization(Images([noise]), "imagenet")))
    for units in (1e-4, 1e5):
        image = (rng.gamma(1, 1, (64, 64, 3)) * units).astype(np.float32)
        for kind in ("minmax", "percentile", "zscore", "db"):
            assert 0.3 < answer(normalize(image, fit_normalization(Images([image]), kind))) / usual < 3
