"""A PNG of what the network is shown: training images after augmentation and the processor, with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..data.augment import augment
from ..data.channels import displayable
from ..data.dataset import SegmentationSplit
from ..data.images import IGNORE
from ..data.normalization import fit_normalization
from ..reporting.class_maps import Legend, class_legend, class_overlay, with_legend
from ..reporting.report import IGNORED_COLOUR, overlay, truth_colour
from ..sam.processing import SamAdaptProcessor


TILE, CAPTION, COLUMNS, SHOWN = 256, 14, 4, 12


def save_contact_sheet(
    path: Path,
    split: SegmentationSplit,
    *,
    names: Sequence[str] | None,
    augmentations: list[str],
    normalization: str | None,
    channels: int | None,
    image_size: int,
    resize: str,
    seed: int,
) -> None:
    """Draw up to 12 training images as the first epoch shows them.

    Args:
        path: PNG to write.
        split: the training images.
        names: of the classes, None = binary.
        augmentations, normalization, channels, image_size, resize, seed: as in a recipe, resolved.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(split), min(SHOWN, len(split)), replace=False)).tolist()
    fitted = None
    if channels is not None or normalization not in (None, "imagenet"):
        fitted = fit_normalization(split, normalization or "percentile", seed)
    processor = SamAdaptProcessor(image_size=image_size, resize=resize, channels=channels, normalization=fitted)
    tiles, labels, captions = [], [], []
    for index in chosen:
        sample = split[index]
        # What a training draws for this image in its first epoch.
        image, mask = augment(sample.image, sample.mask, np.random.default_rng([seed, 0, index]), augmentations)
        inputs = processor([image], masks=[mask], mask_values="index")
        picture, small = _tile(inputs["pixel_values"][0].numpy(), inputs["labels"][0].numpy(), processor)
        tiles.append(picture)
        labels.append(small)
        height, width = sample.mask.shape
        captions.append(f"{sample.id}  {width}x{height}"[:42])
    shown = np.concatenate(labels)
    if names is None:
        colour = truth_colour(np.concatenate(tiles))
        drawn = [overlay(overlay(t, m == 1, colour), m == IGNORE, IGNORED_COLOUR) for t, m in zip(tiles, labels)]
        entries = ("object", 1, colour), ("ignored", IGNORE, IGNORED_COLOUR)
        legend: Legend = [(name, one) for name, label, one in entries if (shown == label).any()]
    else:
        drawn = [class_overlay(tile, small, len(names)) for tile, small in zip(tiles, labels)]
        legend = class_legend(shown, names)
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (TILE * min(COLUMNS, len(chosen)), (TILE + CAPTION) * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (tile, caption) in enumerate(zip(drawn, captions)):
        left, top = TILE * (place % COLUMNS), (TILE + CAPTION) * (place // COLUMNS)
        sheet.paste(Image.fromarray(tile), (left, top + CAPTION))
        draw.text((left + 2, top + 1), caption, fill="black")
    Image.fromarray(with_legend(np.asarray(sheet), legend)).save(path, format="PNG")


def _tile(pixels: np.ndarray, labels: np.ndarray, processor: SamAdaptProcessor) -> tuple[np.ndarray, np.ndarray]:
    """float32 (C, S, S), normalised, and int64 (S, S) -> picture uint8 (t, t, 3) and labels uint8 (t, t)."""
    values = pixels.transpose(1, 2, 0)  # (C, S, S) -> (S, S, C)
    statistics: Any = processor.normalization
    if statistics is None:
        values = values * np.asarray(processor.image_std) + np.asarray(processor.image_mean)
        picture = (values.clip(0, 1) * 255).round().astype(np.uint8)
    else:
        picture = displayable(values.astype(np.float32))
    size = (TILE, TILE)
    shown = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    return shown, np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
