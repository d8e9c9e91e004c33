"""Augmentation keeps mask and image aligned and depends on its generator alone."""

import numpy as np
import pytest

from hf_sam_adapt.data.augment import AUGMENTATIONS, _mean_colour, augment, check_options
from hf_sam_adapt.errors import UserError


def square(size=(60, 80)) -> tuple[np.ndarray, np.ndarray]:
    """A bright square on dark ground; the mask can be read off the image."""
    image, mask = np.full((*size, 3), 40, np.uint8), np.zeros(size, np.uint8)
    image[20:45, 10:35], mask[20:45, 10:35] = 220, 1
    return image, mask


@pytest.mark.parametrize(
    "options", [["flip"], ["scale"], ["crop"], ["flip", "scale", "crop"], ["flip", "scale", "crop", "colour"]]
)
def test_the_square_stays_under_its_mask(options):
    image, mask = square()
    sizes, moved = set(), 0
    for seed in range(40):
        new_image, new_mask = augment(image, mask, np.random.default_rng(seed), options)
        assert new_image.dtype == new_mask.dtype == np.uint8 and new_image.shape == (*new_mask.shape, 3)
        inside = new_mask != 255
        brightness = new_image.mean(axis=2)
        limit = (brightness[inside].min() + brightness[inside].max()) / 2
        if (new_mask == 1).any():
            assert np.array_equal((brightness > limit)[inside], (new_mask == 1)[inside])
        sizes.add(new_mask.shape)
        moved += new_mask.shape == mask.shape and not np.array_equal(new_mask, mask)
    if options == ["flip"]:
        assert sizes == {(60, 80)} and 8 < moved < 32
    else:
        assert len(sizes) > 20


def test_scale_surrounds_with_ignored_pixels_or_cuts():
    image, mask = square((100, 100))
    shapes = []
    for seed in range(60):
        new_image, new_mask = augment(image, mask, np.random.default_rng(seed), ["scale"])
        height, width = new_mask.shape
        shapes.append(height)
        assert height == width and 66 <= height <= 150
        assert (new_mask == 255).sum() == max(0, height * width - 100 * 100)
        if height > 100:
            filled = new_image[new_mask == 255]
            assert (filled == image.mean(axis=(0, 1)).round()).all()
            assert (new_mask == 1).sum() == 625
    assert min(shapes) < 75 and max(shapes) > 135


@pytest.mark.parametrize("size", [(100, 100), (90, 160)])
def test_jitter_scales_the_longer_side_to_a_tenth_or_twice_of_1024(size):
    """The published large-scale jitter: a canvas of 1024 x 1024, grey and background where the image ends."""
    image, mask = square(size)
    scales = []
    for seed in range(60):
        new_image, new_mask = augment(image, mask, np.random.default_rng(seed), ["jitter"])
        assert new_image.shape == (1024, 1024, 3) and new_mask.shape == (1024, 1024)
        assert new_image.dtype == new_mask.dtype == np.uint8 and set(np.unique(new_mask)) <= {0, 1}
        inside = new_image[:, :, 0] != 128
        # Nothing but image at the upper left, and everything else is filled.
        height, width = (np.flatnonzero(inside.any(axis=axis))[-1] + 1 for axis in (1, 0))
        assert inside[:height, :width].mean() > 0.97
        assert not new_mask[height:].any() and not new_mask[:, width:].any()
        if (new_mask == 1).sum() > 400:
            bright = new_image[:, :, 0] > 130
            assert (bright & (new_mask == 1)).sum() / (bright | (new_mask == 1)).sum() > 0.9
        if width < 1024:
            scales.append(width / 1024 * max(size) / size[1])
    assert 0.1 <= min(scales) < 0.25 and len(scales) < 50  # half of the scales are above 1


def test_jitter_takes_images_of_any_channels():
    image, mask = square()
    stored = np.repeat(image[:, :, :1].astype(np.float32) * 7.5, 5, axis=2)
    new_image, new_mask = augment(stored, mask, np.random.default_rng(1), ["jitter"])
    assert new_image.shape == (1024, 1024, 5) and new_image.dtype == np.float32
    assert new_image.min() >= stored.min() and new_image.max() <= stored.max() and new_mask.any()


def test_crop_keeps_most_of_each_side():
    image, mask = square()
    for seed in range(30):
        _, new_mask = augment(image, mask, np.random.default_rng(seed), ["crop"])
        assert 36 <= new_mask.shape[0] <= 60 and 48 <= new_mask.shape[1] <= 80
        assert (new_mask != 255).all()


def test_colour_changes_the_image_only():
    rng = np.random.default_rng(0)
    image, mask = rng.integers(60, 180, (20, 20, 3), dtype=np.uint8), rng.integers(0, 2, (20, 20), dtype=np.uint8)
    new_image, new_mask = augment(image, mask, rng, ["colour"])
    assert np.array_equal(new_mask, mask) and new_image.shape == image.shape
    change = np.abs(new_image.astype(int) - image)
    assert 2 < change.mean() < 70
    assert np.corrcoef(new_image.ravel(), image.ravel())[0, 1] > 0.9


def test_same_generator_same_result():
    image, mask = square()
    first = augment(image, mask, np.random.default_rng([1, 2, 3]), AUGMENTATIONS)
    second = augment(image, mask, np.random.default_rng([1, 2, 3]), AUGMENTATIONS)
    other = augment(image, mask, np.random.default_rng([1, 2, 4]), AUGMENTATIONS)
    assert np.array_equal(first[0], second[0]) and np.array_equal(first[1], second[1])
    assert first[0].shape != other[0].shape or not np.array_equal(first[0], other[0])


def test_inputs_stay_as_they_were():
    image, mask = square()
    kept = image.copy(), mask.copy()
    for seed in range(5):
        augment(image, mask, np.random.default_rng(seed), AUGMENTATIONS)
    assert np.array_equal(image, kept[0]) and np.array_equal(mask, kept[1])


@pytest.mark.parametrize("options", [[], ["none"], "none", None])
def test_nothing(options):
    image, mask = square()
    new_image, new_mask = augment(image, mask, np.random.default_rng(0), options)
    assert np.array_equal(new_image, image) and np.array_equal(new_mask, mask)


def test_tiny_images_survive():
    for seed in range(20):
        image, mask = augment(
            np.zeros((1, 2, 3), np.uint8), np.ones((1, 2), np.uint8), np.random.default_rng(seed), AUGMENTATIONS
        )
        assert image.shape[:2] == mask.shape and mask.size


@pytest.mark.parametrize("options, message", [(["flop"], "'flop'"), (["none", "flip"], "none excludes")])
def test_bad_names(options, message):
    with pytest.raises(UserError, match=message):
        check_options(options)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_floats_of_any_channels(channels):
    rng = np.random.default_rng(3)
    image = (rng.gamma(1, 1, (60, 80, channels)) * 10.0 ** np.arange(channels)).astype(np.float32)
    mask = np.zeros((60, 80), np.uint8)
    mask[20:45, 10:35] = 1
    image[mask == 1] += 100 * 10.0 ** np.arange(channels)
    for seed in range(30):
        new_image, new_mask = augment(image, mask, np.random.default_rng(seed), ["flip", "scale", "crop"])
        assert new_image.dtype == np.float32 and new_image.shape == (*new_mask.shape, channels)
        inside = new_mask != 255
        assert np.array_equal((new_image[..., 0] > 50)[inside], (new_mask == 1)[inside])
        filled = np.broadcast_to(image.mean(axis=(0, 1), dtype=np.float64), new_image[~inside].shape)
        np.testing.assert_allclose(new_image[~inside], filled, rtol=1e-5)


def test_colour_of_floats_stays_in_each_channels_range():
    rng = np.random.default_rng(4)
    image = (rng.gamma(1, 1, (50, 40, 3)) * [1e-3, 1, 1e4] + [0, 280, 0]).astype(np.float32)
    mask = np.zeros((50, 40), np.uint8)
    changes = []
    for seed in range(20):
        changed, same = augment(image, mask, np.random.default_rng(seed), ["colour"])
        assert changed.dtype == np.float32 and np.array_equal(same, mask)
        assert (changed.min(axis=(0, 1)) >= image.min(axis=(0, 1))).all()
        assert (changed.max(axis=(0, 1)) <= image.max(axis=(0, 1))).all()
        # The same in every channel, whatever its unit.
        relative = (changed - image).std(axis=(0, 1)) / image.std(axis=(0, 1))
        assert relative.max() < 0.3 and relative.max() - relative.min() < 0.1
        changes.append(relative.mean())
        assert np.array_equal(changed, augment(image, mask, np.random.default_rng(seed), ["colour"])[0])
    assert max(changes) > 0.05


@pytest.mark.parametrize("shape", [(37, 53, 3), (1, 7, 3), (640, 3, 3)])
def test_the_mean_colour_is_numpys(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for one in (image, image[:, ::-1], np.full(shape, 255, np.uint8)):
        assert np.array_equal(_mean_colour(one), one.mean(axis=(0, 1), dtype=np.float64))
