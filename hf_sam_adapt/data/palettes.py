"""Palettes: label images in colours, to class indices and back."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, one_line
from .images import IGNORE


Colour = tuple[int, int, int]
MAX_COUNTED = 100_000  # unknown colours that are told apart; a photograph taken for a label image holds more


@dataclass(frozen=True)
class Palette:
    """The colours of classes 0..K-1.

    Attributes:
        classes: name -> (red, green, blue), in the order of the classes.
    """

    classes: Mapping[str, Colour]

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.classes))

    def plain(self) -> dict[str, list[int]]:
        """As a recipe holds it: name -> [red, green, blue]."""
        return {name: list(colour) for name, colour in self.classes.items()}

    def colours(self) -> np.ndarray:
        """uint8 (K, 3)."""
        return np.array(list(self.classes.values()), np.uint8)


# ClassWise-SAM-Adapter's order of the classes (its class weights follow it); arXiv 2401.02326.
FUSAR_MAP_1 = Palette(
    {
        "building": (255, 0, 0),
        "vegetation": (0, 255, 0),
        "water": (0, 0, 255),
        "road": (255, 255, 0),
        "background": (0, 0, 0),
    }
)
FUSAR_MAP_2 = Palette(
    {
        "water": (0, 0, 255),
        "woodland": (0, 139, 0),
        "vegetation": (0, 255, 0),
        "bare soil": (139, 0, 0),
        "industry": (255, 0, 0),
        "residence": (205, 173, 0),
        "road": (83, 134, 139),
        "paddy": (0, 139, 139),
        "planting": (139, 105, 20),
        "human built": (189, 183, 107),
    }
)
PALETTES = {"FUSAR_MAP_1": FUSAR_MAP_1, "FUSAR_MAP_2": FUSAR_MAP_2}


def to_labels(rgb: np.ndarray, palette: Palette) -> np.ndarray:
    """uint8 (H, W, 3) of exact colours -> uint8 (H, W) of classes; a colour that is not in `palette` gives 255."""
    codes, known = _codes(rgb), _codes(palette.colours())
    order = np.argsort(known)
    place = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    classes = order[place].astype(np.uint8)
    return np.where(known[classes] == codes, classes, np.uint8(IGNORE))


def unknown_colours(rgb: np.ndarray, palette: Palette) -> Counter[Colour]:
    """Pixels per colour of uint8 (H, W, 3) that is not in `palette`; the 100,000 most frequent ones."""
    codes = _codes(rgb)[to_labels(rgb, palette) == IGNORE]
    values, counts = np.unique(codes, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:MAX_COUNTED]
    return Counter({_colour(int(values[index])): int(counts[index]) for index in most})


def resolve_palette(palette: str | Mapping[str, Any] | Palette | None) -> Palette | None:
    """A palette from what a recipe says.

    Args:
        palette: `FUSAR_MAP_1` or `FUSAR_MAP_2`; a mapping name -> [red, green, blue] in the order of the classes; or a
            YAML file that holds such a mapping.

    Raises:
        UserError: unknown name, unreadable file, not 2 to 255 colours, or a colour that is none or there twice.
    """
    if palette is None or isinstance(palette, Palette):
        return palette
    if isinstance(palette, str):
        if palette.upper() in PALETTES:
            return PALETTES[palette.upper()]
        palette = _read_file(palette)
    if not isinstance(palette, Mapping) or not 2 <= len(palette) <= 255:
        raise UserError("it must map 2 to 255 classes to colours, such as {water: [0, 0, 255], …}", key="palette")
    classes: dict[str, Colour] = {}
    for name, colour in palette.items():
        checked = _checked_colour(str(name), colour)
        if checked in classes.values():
            raise UserError(
                f"the colour {checked} of {name} is that of another class", key="palette", fix="give each its own"
            )
        classes[str(name)] = checked
    return Palette(classes)


def _read_file(name: str) -> Any:
    import yaml

    if Path(name).suffix.lower() not in (".yaml", ".yml"):
        close = difflib.get_close_matches(name.upper(), PALETTES, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(
            f"{name!r} is unknown{hint}", key="palette", fix=f"use {', '.join(PALETTES)}, a mapping or a .yaml file"
        )
    try:
        return yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{name} cannot be read ({one_line(error)})", key="palette") from error


def _checked_colour(name: str, colour: Any) -> Colour:
    values = list(colour) if isinstance(colour, (list, tuple)) else []
    if len(values) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in values):
        raise UserError(
            f"{name}: {colour!r} is not a colour", key="palette", fix="give [red, green, blue], each 0..255"
        )
    return values[0], values[1], values[2]


def _codes(rgb: np.ndarray) -> np.ndarray:
    """uint8 (..., 3) -> int32 (...)."""
    red, green, blue = (rgb[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _colour(code: int) -> Colour:
    return code >> 16, code >> 8 & 255, code & 255
