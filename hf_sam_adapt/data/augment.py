"""Augmentation of an image with its mask. Nothing is resampled here: the processor's resize is the only one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageEnhance

from ..errors import UserError
from ..names import AUGMENTATIONS
from .images import IGNORE


DEFAULT_AUGMENTATIONS = ("flip", "scale", "colour")
MAX_SCALE = 1.5
MIN_CROP = 0.6
MAX_COLOUR = 0.25
JITTER_SIDE, JITTER_SCALE = 1024, (0.1, 2.0)
JITTER_FILL = 128


def augment(
    image: np.ndarray, mask: np.ndarray, rng: np.random.Generator, options: Sequence[str] = DEFAULT_AUGMENTATIONS
) -> tuple[np.ndarray, np.ndarray]:
    """Apply the named augmentations with strengths drawn from `rng`.

    "flip" mirrors left to right, "vflip" top to bottom, each half of the images; "rotate" turns by none to three
    quarters; "scale" cuts out or surrounds the image so that the processor shows it up to 1.5
    times larger or smaller; "crop" keeps 60 to 100 % of each side; "colour" changes brightness, contrast and
    saturation by up to 25 %, of a float image brightness and contrast by up to 25 % of each channel's deviation.
    "jitter" is the large-scale jitter of HQ-SAM and MoDA and stands in the place of scale and crop: see `_jitter`.

    Args:
        image: uint8 (H, W, 3), or float32 (H, W, C).
        mask: uint8 (H, W).
        rng: the only source of chance.
        options: names out of `AUGMENTATIONS`; ["none"] or [] changes nothing.

    Returns:
        Image and mask, both of a new size where they were scaled or cropped. What lies outside the original has the
        image's mean colour and the mask value 255 (ignore), with jitter grey and background.
    """
    options = check_options(options)
    if "flip" in options and rng.random() < 0.5:
        image, mask = image[:, ::-1], mask[:, ::-1]
    if "vflip" in options and rng.random() < 0.5:
        image, mask = image[::-1], mask[::-1]
    if "rotate" in options:
        turns = int(rng.integers(4))
        image, mask = np.rot90(image, turns), np.rot90(mask, turns)
    if "scale" in options:
        image, mask = _scale(image, mask, rng)
    if "crop" in options:
        height, width = (max(1, round(side * rng.uniform(MIN_CROP, 1))) for side in mask.shape)
        image, mask = _cut(image, mask, height, width, rng)
    if "jitter" in options:
        image, mask = _jitter(image, mask, rng)
    if "colour" in options:
        image = _colour(image, rng) if image.dtype == np.uint8 else _gain(image, rng)
    return np.ascontiguousarray(image), np.ascontiguousarray(mask)


def check_options(options: Sequence[str] | str | None) -> tuple[str, ...]:
    """The augmentations to apply. Raises `UserError` on an unknown name."""
    names = (options,) if isinstance(options, str) else tuple(options or ())
    unknown = [name for name in names if name not in (*AUGMENTATIONS, "none")]
    if unknown:
        raise UserError(
            f"{unknown[0]!r} is unknown", key="augment", fix=f"choose from {', '.join(AUGMENTATIONS)}, or none"
        )
    if "none" in names and len(names) > 1:
        raise UserError("none excludes the other names", key="augment", fix="leave it out or alone")
    return () if "none" in names else names


def _scale(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    scale = MAX_SCALE ** rng.uniform(-1, 1)
    height, width = (max(1, round(side / scale)) for side in mask.shape)
    if scale >= 1:
        return _cut(image, mask, height, width, rng)
    top, left = (int(rng.integers(0, new - old + 1)) for new, old in zip((height, width), mask.shape))
    wide_mask = np.full((height, width), IGNORE, np.uint8)
    wide_image = np.empty((height, width, image.shape[2]), image.dtype)
    wide_image[0] = _mean_colour(image).round() if image.dtype == np.uint8 else image.mean((0, 1), dtype=np.float64)
    wide_image[1:] = wide_image[0]
    window = np.s_[top : top + mask.shape[0], left : left + mask.shape[1]]
    wide_mask[window], wide_image[window] = mask, image
    return wide_image, wide_mask


def _mean_colour(image: np.ndarray) -> np.ndarray:
    """`image.mean((0, 1))` of uint8 (H, W, 3), float64 and exact, in a sixth of the time: row upon row at first."""
    return image.sum(axis=0, dtype=np.uint32).sum(axis=0, dtype=np.float64) / (image.shape[0] * image.shape[1])


def _jitter(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Large-scale jitter (Ghiasi et al. 2021): 1024 x 1024 whatever comes in.

    The longer side is scaled to 1024 times 0.1 to 2, a window of at most 1024 x 1024 is cut at a random place, and
    what is missing at the right and at the bottom is grey (128; of a float image each channel's mean) and background.
    It resamples by itself, unlike the others: at a tenth of the size the unscaled canvas would be 10 times as wide.
    """
    height, width = mask.shape
    factor = rng.uniform(*JITTER_SCALE) * JITTER_SIDE / max(height, width)
    scaled = [max(1, round(side * factor)) for side in (height, width)]
    window = [min(JITTER_SIDE, side) for side in scaled]
    offset = [int(rng.integers(0, side - cut + 1)) for side, cut in zip(scaled, window)]
    # The window in pixels of the original: left, top, right, bottom.
    ratio = [side / new for side, new in zip((height, width), scaled)]
    (top, bottom), (left, right) = ((o * r, (o + cut) * r) for o, cut, r in zip(offset, window, ratio))
    size, box = (window[1], window[0]), (left, top, min(right, width), min(bottom, height))
    canvas = np.empty((JITTER_SIDE, JITTER_SIDE, image.shape[2]), image.dtype)
    canvas[:] = JITTER_FILL if image.dtype == np.uint8 else image.mean(axis=(0, 1))
    for channel in range(image.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(image[:, :, channel]))
        resized = plane.resize(size, Image.Resampling.BILINEAR, box=box)
        canvas[: window[0], : window[1], channel] = np.asarray(resized)
    labels = np.zeros((JITTER_SIDE, JITTER_SIDE), np.uint8)
    plane = Image.fromarray(np.ascontiguousarray(mask))
    labels[: window[0], : window[1]] = np.asarray(plane.resize(size, Image.Resampling.NEAREST, box=box))
    return canvas, labels


def _cut(
    image: np.ndarray, mask: np.ndarray, height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A window of `height` x `width` at a random place."""
    top, left = (int(rng.integers(0, old - new + 1)) for new, old in zip((height, width), mask.shape))
    window = np.s_[top : top + height, left : left + width]
    return image[window], mask[window]


def _colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    factors = rng.uniform(1 - MAX_COLOUR, 1 + MAX_COLOUR, 3)
    changed = Image.fromarray(np.ascontiguousarray(image))
    for enhance, factor in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), factors):
        changed = enhance(changed).enhance(factor)
    return np.asarray(changed)


def _gain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness and contrast of float32 (H, W, C), whatever its units: no value leaves the range of its channel."""
    brightness, contrast = rng.uniform(-MAX_COLOUR, MAX_COLOUR, 2).astype(np.float32)
    mean, deviation = image.mean(axis=(0, 1)), image.std(axis=(0, 1))  # (C,)
    changed = mean + (image - mean) * (1 + contrast) + brightness * deviation
    return np.clip(changed, image.min(axis=(0, 1)), image.max(axis=(0, 1)))
