"""Pictures of the page: prompts drawn on the image, masks over it, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..reporting.class_maps import Legend, class_colours, class_legend, class_overlay, with_legend
from ..reporting.report import MASK_COLOURS, overlay
from .engine import Segmentation
from .images import Picture, resize_mask
from .session import Clicks


_POINTS = {1: (34, 197, 94), 0: (239, 68, 68)}
_BOX = (250, 204, 21)


def with_prompt(picture: Picture, clicks: Clicks, result: Segmentation | None, variant: str) -> np.ndarray:
    """The shown picture, uint8 (h, w, 3), with points (green on, red off the object) and box.

    The outline of the object that was found is there too, so that a click shows its result where it was made.
    """
    shown = picture.shown
    if result is not None and result.classes is None:
        mask = resize_mask(result.mask, shown.shape[:2])
        shown = overlay(shown, mask, MASK_COLOURS[variant], tint=False)
    canvas = Image.fromarray(shown)
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
    return class_overlay(picture, mask, len(result.classes))


def legend(result: Segmentation) -> Legend:
    """(name with its share of the image, colour) of each class that is there."""
    named = class_legend(result.mask, result.classes or [])
    shares = [100 * (result.mask == label).mean() for label in np.unique(result.mask)]
    return [(f"{name} {share:.1f} %", colour) for (name, colour), share in zip(named, shares, strict=True)]


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
    tinted = with_mask(picture.image, result, variant)
    if result.classes is not None:
        tinted = with_legend(tinted, class_legend(result.mask, result.classes))
    Image.fromarray(tinted).save(overlay_file)
    return mask_file, overlay_file
