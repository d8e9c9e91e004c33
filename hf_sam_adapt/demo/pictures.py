"""Pictures of the page: prompts drawn on the image, masks over it, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..report import MASK_COLOURS, overlay
from ..report_classes import class_colours
from .engine import Segmentation
from .images import Picture, resize_mask
from .session import Clicks


_POINTS = {1: (34, 197, 94), 0: (239, 68, 68)}
_BOX = (250, 204, 21)


def with_prompt(picture: Picture, clicks: Clicks) -> np.ndarray:
    """The shown picture with points (green on, red off the object) and box, uint8 (h, w, 3)."""
    canvas = Image.fromarray(picture.shown)
    draw = ImageDraw.Draw(canvas)
    radius = max(2.5, 0.011 * max(canvas.size))
    for x, y, label in clicks.points:
        _dot(draw, (x + 0.5) / picture.scale, (y + 0.5) / picture.scale, radius, _POINTS[label])
    corners = [((x + 0.5) / picture.scale, (y + 0.5) / picture.scale) for x, y in clicks.corners]
    if clicks.box is not None:
        (x0, x1), (y0, y1) = (sorted(values) for values in zip(*corners))
        draw.rectangle((x0, y0, x1, y1), outline=_BOX, width=max(2, round(radius / 2)))
    for x, y in corners:
        _dot(draw, x, y, 0.7 * radius, _BOX)
    return np.asarray(canvas)


def _dot(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour, outline="white", width=2)


def with_mask(picture: np.ndarray, result: Segmentation, variant: str) -> np.ndarray:
    """A picture uint8 (h, w, 3) tinted by a segmentation.

    Args:
        picture: of any size; the mask is brought to it.
        variant: "zero_shot" or "adapted", for the colour of a single class.
    """
    mask = resize_mask(result.mask, picture.shape[:2])
    if result.classes is None:
        return overlay(picture, mask, MASK_COLOURS[variant])
    colours = class_colours(len(result.classes))
    return (0.55 * picture + 0.45 * colours[mask]).astype(np.uint8)


def legend_masks(picture: np.ndarray, result: Segmentation, variant: str) -> list[tuple[np.ndarray, str]]:
    """(mask uint8 (h, w) in {0, 1}, name with its share of the image) per class that is there, for a legend."""
    mask = resize_mask(result.mask, picture.shape[:2])
    if result.classes is None:
        return [(mask.astype(np.uint8), _named({"zero_shot": "zero-shot mask"}.get(variant, "mask"), result.mask))]
    return [
        ((mask == label).astype(np.uint8), _named(name, result.mask == label))
        for label, name in enumerate(result.classes)
        if (result.mask == label).any()
    ]


def legend_colours(result: Segmentation, variant: str) -> dict[str, str]:
    """Name with share, as in `legend_masks` -> colour, `#rrggbb`."""
    if result.classes is None:
        colours = [MASK_COLOURS[variant]]
    else:
        palette = class_colours(len(result.classes))
        colours = [palette[label] for label in range(len(result.classes)) if (result.mask == label).any()]
    names = [name for _, name in legend_masks(np.zeros((1, 1, 3), np.uint8), result, variant)]
    return {name: "#{:02x}{:02x}{:02x}".format(*colour) for name, colour in zip(names, colours)}


def _named(name: str, mask: np.ndarray) -> str:
    return f"{name} {100 * mask.mean():.1f} %"


def save_results(folder: Path, picture: Picture, result: Segmentation, variant: str) -> tuple[Path, Path]:
    """Write mask and overlay as `predict` does, at the image's size; returns both paths."""
    stem = Path(picture.name).stem
    mask_file, overlay_file = folder / f"{stem}_mask.png", folder / f"{stem}_overlay.png"
    if result.classes is None:
        Image.fromarray(result.mask.astype(np.uint8) * 255).save(mask_file)
    else:
        labels = Image.fromarray(result.mask)
        labels.putpalette(class_colours(len(result.classes)).tobytes())
        labels.save(mask_file)
    Image.fromarray(with_mask(picture.image, result, variant)).save(overlay_file)
    return mask_file, overlay_file
