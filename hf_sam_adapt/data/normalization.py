"""Per-channel normalisation of images that SAM's own statistics do not fit, from the training images alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import UserError
from .rasters import raster_of
from .scenes import bands


if TYPE_CHECKING:
    from .dataset import SegmentationSplit

NORMALIZATIONS = ("imagenet", "minmax", "percentile", "zscore", "db")
MAX_IMAGES = 2000  # that are read for the statistics
SAMPLED_VALUES = 2**22  # kept in memory for percentiles, of all channels together
READ_AT_ONCE = 2**25  # pixels of an image
PERCENTILES = (1.0, 99.0)
DB_FLOOR = 1e-3  # of the median amplitude is added before the logarithm: 60 dB below it
SCALES = (1, 255, 4095, 65535)  # largest values of fractions and of 8, 12 and 16 bits


def fit_normalization(split: SegmentationSplit, kind: str, seed: int = 0) -> dict[str, Any]:
    """Fit a normalisation to the images of a split, in one pass and constant memory; pixels without data do not count.

    Of more than 2,000 images a seeded sample of 2,000 is read. The result is applied by `normalize`:

    - "zscore": minus the mean, by the standard deviation, over all pixels of a channel.
    - "minmax", "percentile": from the smallest to the largest value, or the 1st to the 99th percentile, to 0..1,
      values outside clipped; then minus the mean, by the deviation of that.
    - "db": 20 log10(amplitude + eps), then as "percentile"; eps is a thousandth of the median amplitude above 0.
    - "imagenet": by the largest value that the bit depth allows (1, 255, 4095 or 65535, the first that holds all
      values), then the mean and deviation of ImageNet's colours; with other than three channels, their average.

    Percentiles are those of a seeded sample of at most 4 million values.

    Args:
        split: the training images, float32 (H, W, C) or uint8 (H, W, 3).
        kind: one of `NORMALIZATIONS`.
        seed: of the samples.

    Returns:
        `kind`, and lists of a plain number per channel: `mean`, `std`, except for "zscore" `low` and `high`, for "db"
        `eps`.

    Raises:
        UserError: unknown kind; negative values with "db", or with "imagenet" values outside 0..65535.
    """
    if kind not in NORMALIZATIONS:
        raise UserError(f"{kind!r} is unknown", key="normalization", fix=f"choose from {', '.join(NORMALIZATIONS)}")
    moments, sample = _read(split, kind, seed)
    if kind == "imagenet":
        return _imagenet(moments)
    if kind == "zscore":
        return _plain(kind, None, None, moments.mean, moments.std)
    if kind == "minmax":
        low, high = moments.low, moments.high
        width = np.where(high > low, high - low, 1)
        return _plain(kind, low, low + width, (moments.mean - low) / width, moments.std / width)
    eps = None
    if kind == "db":
        eps = np.array([DB_FLOOR * np.median(values[values > 0]) if (values > 0).any() else 1 for values in sample.T])
        sample = _decibels(sample, eps)
    low, high = np.percentile(sample, PERCENTILES, axis=0)  # (C,)
    high = np.where(high > low, high, low + 1)
    scaled = np.clip((sample - low) / (high - low), 0, 1)
    return _plain(kind, low, high, scaled.mean(axis=0), scaled.std(axis=0), eps)


def normalize(image: np.ndarray, normalization: Mapping[str, Any]) -> np.ndarray:
    """Apply what `fit_normalization` found.

    Args:
        image: real (H, W, C), in the units of the training images.

    Returns:
        float32 (H, W, C), about mean 0 and deviation 1 over the training images.

    Raises:
        UserError: negative values, which have no decibels.
    """
    values = image.astype(np.float32)
    per_channel = {key: np.asarray(normalization[key], np.float32) for key in ("mean", "std")}
    if normalization["kind"] == "db":
        if (values < 0).any():
            raise UserError("db needs amplitudes, the image holds negative values", key="normalization")
        values = _decibels(values, np.asarray(normalization["eps"], np.float32))
    if normalization.get("low") is not None:
        low, high = (np.asarray(normalization[key], np.float32) for key in ("low", "high"))
        values = np.clip((values - low) / (high - low), 0, 1)
    return (values - per_channel["mean"]) / per_channel["std"]


def check_normalization(normalization: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """A copy with plain floats. Raises `UserError` if it is not one of `channels` channels that can be applied."""
    kind = normalization.get("kind")
    if kind not in NORMALIZATIONS:
        raise UserError(
            f"kind {kind!r} is unknown", key="normalization", fix=f"choose from {', '.join(NORMALIZATIONS)}"
        )
    wanted = ["mean", "std"] + ["low", "high"] * (kind != "zscore") + ["eps"] * (kind == "db")
    checked: dict[str, Any] = {"kind": kind}
    for key in wanted:
        values = normalization.get(key)
        if not isinstance(values, (list, tuple)) or len(values) != channels or not np.isfinite(values).all():
            raise UserError(f"{key} must list one number for each of {channels} channels", key="normalization")
        checked[key] = [float(value) for value in values]
    if min(checked["std"]) <= 0 or any(
        low >= high for low, high in zip(checked.get("low", ()), checked.get("high", ()))
    ):
        raise UserError("std must be above 0, and high above low, in every channel", key="normalization")
    return checked


class _Moments:
    """Exact count, mean, deviation, smallest and largest value per channel, image by image in float64 (Chan)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: np.ndarray = np.zeros(())
        self.squares: np.ndarray = np.zeros(())
        self.low: np.ndarray = np.full((), np.inf)
        self.high: np.ndarray = np.full((), -np.inf)

    def add(self, pixels: np.ndarray) -> None:
        """`pixels` (N, C)."""
        count, mean = len(pixels), pixels.mean(axis=0, dtype=np.float64)
        squares = np.square(pixels - mean).sum(axis=0)
        total, shift = self.count + count, mean - self.mean
        self.squares = self.squares + squares + shift**2 * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total
        self.low = np.minimum(self.low, pixels.min(axis=0))
        self.high = np.maximum(self.high, pixels.max(axis=0))

    @property
    def std(self) -> np.ndarray:
        return np.sqrt(self.squares / self.count)


def _read(split: SegmentationSplit, kind: str, seed: int) -> tuple[_Moments, np.ndarray]:
    """Moments of all pixels, and a sample of them, float64 (n, C), of equally many from each image."""
    rng = np.random.default_rng([seed, len(split)])
    chosen = np.sort(rng.choice(len(split), min(len(split), MAX_IMAGES), replace=False))
    moments, samples = _Moments(), []
    for index in chosen.tolist():
        for pixels, share in _pixels(split, index):
            if not len(pixels):
                continue
            if kind == "db" and (pixels < 0).any():
                raise UserError(
                    f"db needs amplitudes, {split.ids[index]} holds {np.count_nonzero(pixels < 0)} negative values",
                    key="normalization",
                    fix="choose percentile, or zscore for decibels",
                )
            moments.add(pixels)
            if kind in ("percentile", "db"):
                number = max(1, int(share * SAMPLED_VALUES) // (len(chosen) * pixels.shape[1]))
                samples.append(pixels[rng.integers(len(pixels), size=number)] if number < len(pixels) else pixels)
    if not moments.count:
        raise UserError(
            "the training images hold no data: their files say so of every pixel",
            key="dataset",
            fix="check their nodata values",
        )
    return moments, np.concatenate(samples).astype(np.float64) if samples else np.zeros((0, 0))


def _pixels(split: SegmentationSplit, index: int) -> Iterator[tuple[np.ndarray, float]]:
    """The pixels of an image that hold data, (N, C), and their share of it: all at once, of a scene by bands."""
    path = split.reader.path(split.table[index]) if hasattr(split, "reader") else None
    raster = None if path is None else raster_of(path)
    if raster is None or raster.size[0] * raster.size[1] <= READ_AT_ONCE:
        sample = split[index]
        pixels = sample.image.reshape(-1, sample.image.shape[2])  # (H, W, C) -> (H * W, C)
        valid = getattr(sample, "valid", None)
        yield pixels if valid is None else pixels[valid.ravel()], 1.0
        return
    with split.open(index) as scene:
        for band in bands(scene.size):
            values, known = scene.image(band), scene.valid(band)
            flat = values.reshape(-1, values.shape[2]) if known is None else values[known]
            yield flat, band.height / scene.size[0]


def _imagenet(moments: _Moments) -> dict[str, Any]:
    channels, largest = len(moments.mean), moments.high.max()
    scale = next((scale for scale in SCALES if largest <= scale), None)
    if scale is None or moments.low.min() < 0:
        raise UserError(
            f"imagenet needs values in 0..65535, the images hold {moments.low.min():g}..{largest:g}",
            key="normalization",
            fix="choose percentile",
        )
    mean, std = np.asarray(IMAGENET_DEFAULT_MEAN), np.asarray(IMAGENET_DEFAULT_STD)
    if channels != 3:
        mean, std = (np.full(channels, statistic.mean()) for statistic in (mean, std))
    return _plain("imagenet", np.zeros(channels), np.full(channels, float(scale)), mean, std)


def _decibels(amplitude: np.ndarray, eps: np.ndarray) -> np.ndarray:
    return 20 * np.log10(amplitude + eps)


def _plain(
    kind: str,
    low: np.ndarray | None,
    high: np.ndarray | None,
    mean: np.ndarray,
    std: np.ndarray,
    eps: np.ndarray | None = None,
) -> dict[str, Any]:
    """The statistics as plain numbers; a channel without contrast keeps its deviation 1 and becomes 0."""
    arrays = {"low": low, "high": high, "mean": mean, "std": np.where(std > 0, std, 1), "eps": eps}
    return {"kind": kind} | {key: values.tolist() for key, values in arrays.items() if values is not None}
