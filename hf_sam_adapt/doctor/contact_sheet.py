"""A PNG of what the network is shown: training images after augmentation and the processor, with their masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ..data.augment import augment
from ..data.channels import displayable
from ..data.dataset import SegmentationSplit
from ..data.images import IGNORE
from ..data.normalization import fit_normalization
from ..processing import SamAdaptProcessor
from ..report import IGNORED_COLOUR, TRUTH_COLOUR, overlay
from ..report_classes import class_colours


TILE, CAPTION, COLUMNS, SHOWN = 256, 14, 4, 12


def save_contact_sheet(
    path: Path,
    split: SegmentationSplit,
    *,
    num_labels: int | None,
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
        num_labels: classes, None = binary.
        augmentations, normalization, channels, image_size, resize, seed: as in a recipe, resolved.
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(split), min(SHOWN, len(split)), replace=False)).tolist()
    fitted = None
    if channels is not None or normalization not in (None, "imagenet"):
        fitted = fit_normalization(split, normalization or "percentile", seed)
    processor = SamAdaptProcessor(image_size=image_size, resize=resize, channels=channels, normalization=fitted)
    rows = -(-len(chosen) // COLUMNS)
    sheet = Image.new("RGB", (TILE * min(COLUMNS, len(chosen)), (TILE + CAPTION) * rows), "white")
    draw = ImageDraw.Draw(sheet)
    for place, index in enumerate(chosen):
        sample = split[index]
        # What a training draws for this image in its first epoch.
        image, mask = augment(sample.image, sample.mask, np.random.default_rng([seed, 0, index]), augmentations)
        inputs = processor([image], masks=[mask], mask_values="index")
        tile = _tile(inputs["pixel_values"][0].numpy(), inputs["labels"][0].numpy(), processor, num_labels)
        left, top = TILE * (place % COLUMNS), (TILE + CAPTION) * (place // COLUMNS)
        sheet.paste(tile, (left, top + CAPTION))
        height, width = sample.mask.shape
        draw.text((left + 2, top + 1), f"{sample.id}  {width}x{height}"[:42], fill="black")
    sheet.save(path, format="PNG")


def _tile(pixels: np.ndarray, labels: np.ndarray, processor: SamAdaptProcessor, num_labels: int | None) -> Image.Image:
    """float32 (C, S, S), normalised, and int64 (S, S) -> a picture with the classes in their colours."""
    values = pixels.transpose(1, 2, 0)  # (C, S, S) -> (S, S, C)
    statistics: Any = processor.normalization
    if statistics is None:
        values = values * np.asarray(processor.image_std) + np.asarray(processor.image_mean)
        picture = (values.clip(0, 1) * 255).round().astype(np.uint8)
    else:
        picture = displayable(values.astype(np.float32))
    size = (TILE, TILE)
    shown = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))
    small = np.asarray(Image.fromarray(labels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    colours = [TRUTH_COLOUR] if num_labels is None else class_colours(num_labels)[1:num_labels].tolist()
    for label, colour in enumerate(colours, start=1):
        shown = overlay(shown, small == label, colour)
    return Image.fromarray(overlay(shown, small == IGNORE, IGNORED_COLOUR))
