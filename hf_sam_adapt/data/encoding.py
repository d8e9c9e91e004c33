"""What the values of a data set's masks mean: 0/255 pictures, or class indices with 255 = ignore."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from .images import IGNORE
from .palettes import Palette, to_labels


MASK_VALUES = ("auto", "binary", "index")


@dataclass(frozen=True)
class MaskEncoding:
    """Turns stored mask values into classes.

    Attributes:
        mask_values: "binary" (above 0 is foreground, above 127 in lossy files) or "index" (as stored, 255 = ignore).
        num_labels: number of classes with the background, None = 2.
        label_map: stored value -> value, applied first.
        exact: accept only 0 and 255 as binary values (they were found, not asked for).
        palette: turns the colours of RGB masks into classes before everything else.
        draws_ignored: 255 is ignored in "binary", too: the masks are drawn so, not stored.
    """

    mask_values: str
    num_labels: int | None = None
    label_map: Mapping[int, int] | None = None
    exact: bool = False
    palette: Palette | None = None
    draws_ignored: bool = False

    def decode(self, stored: np.ndarray, lossy: bool, name: str) -> np.ndarray:
        """Stored values to classes.

        Args:
            stored: uint8 (H, W), or in colours (H, W, 3), which takes a palette.
            lossy: whether it was stored lossily.
            name: what an error message calls it.

        Returns:
            uint8 (H, W) in {0..K-1, 255}.

        Raises:
            UserError: any other value.
        """
        if stored.ndim == 3 and self.palette is not None:
            if lossy:
                raise UserError(lossy_message(name))
            stored = to_labels(stored, self.palette)
        mask = stored if not self.label_map else _table(self.label_map)[stored]
        if self.mask_values == "binary":
            if self.exact and lossy:
                raise UserError(lossy_message(name))
            if self.exact and ((mask != 0) & (mask != 255)).any():
                value = int(mask[(mask != 0) & (mask != 255)][0])
                raise UserError(
                    f"{name}: mask value {value}, while other masks hold only 0 and 255; set mask_values to binary "
                    "(above 0 is foreground) or index (255 = ignore)"
                )
            found = (mask > (127 if lossy else 0)).astype(np.uint8)
            return np.where(stored == IGNORE, np.uint8(IGNORE), found) if self.draws_ignored else found
        if lossy:
            raise UserError(lossy_message(name))
        check_classes(present_values(mask), self.num_labels, name)
        return mask

    def classes(self, values: np.ndarray, lossy: bool, name: str) -> np.ndarray:
        """Which classes `decode` gives for the stored values that occur, bool (256,) -> bool (256,)."""
        stored = np.flatnonzero(values).astype(np.uint8)[None]
        return present_values(self.decode(stored, lossy, name))


def parse_label_map(label_map: Mapping | None) -> dict[int, int] | None:
    """`label_map` with int keys and values in 0..255. Raises `UserError` otherwise."""
    if not label_map:
        return None
    try:
        parsed = {int(old): int(new) for old, new in label_map.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"label_map: {label_map!r} must map stored values to classes, such as {{1: 0, 2: 1}}"
        ) from error
    wrong = [value for pair in parsed.items() for value in pair if not 0 <= value <= 255]
    if wrong:
        raise UserError(f"label_map: {wrong[0]} is outside 0..255")
    return parsed


def resolve_encoding(
    masks: Iterable[tuple[str, np.ndarray, bool]],
    mask_values: str,
    num_labels: int | None,
    label_map: Mapping[int, int] | None,
    palette: Palette | None = None,
    draws_ignored: bool = False,
) -> tuple[MaskEncoding, list[str]]:
    """Decide how the masks of a data set are read, and check every one of them.

    Args:
        masks: (name, values as bool (256,): which stored values occur, whether the file is lossy) per mask.
        mask_values: "auto", "binary" or "index".
        num_labels, label_map, palette, draws_ignored: see `MaskEncoding`; with a palette the values are its indices.

    Returns:
        The encoding, and one-line notes on what was found.

    Raises:
        UserError: lossy masks read as anything but binary, a value above the last class, or two encodings mixed.
    """
    if mask_values not in MASK_VALUES:
        raise UserError(f"mask_values: {mask_values!r} is unknown; choose from {', '.join(MASK_VALUES)}")
    if palette is not None:
        if mask_values == "binary":
            raise UserError("mask_values: binary, but a palette gives class indices; leave one of them out")
        mask_values = "index"
    if mask_values == "binary":
        return MaskEncoding("binary", num_labels, label_map, draws_ignored=draws_ignored), []
    found = []
    for name, values, lossy in masks:
        if lossy:
            raise UserError(lossy_message(name))
        found.append((name, map_present(values, label_map)))
    union = np.any([values for _, values in found], axis=0) if found else np.zeros(256, bool)
    # A label_map with the target 255 says itself that 255 means ignore.
    ignore_named = label_map is not None and IGNORE in label_map.values()
    if mask_values == "auto" and not ignore_named and union[IGNORE] and not union[1:IGNORE].any():
        note = "masks hold only {0, 255}: read as binary, 255 = foreground"
        return MaskEncoding("binary", num_labels, label_map, exact=True), [note]
    for name, values in found:
        check_classes(values, num_labels, name)
    if mask_values == "auto" and not ignore_named:
        _check_unmixed(found)
    return MaskEncoding("index", num_labels, label_map, palette=palette), _notes(found)


def _notes(found: list[tuple[str, np.ndarray]]) -> list[str]:
    """What is odd about masks of class indices; `UserError` where none of them holds a label."""
    unlabelled = [name for name, values in found if not values[:IGNORE].any()]
    if found and len(unlabelled) == len(found):
        raise UserError("all masks of the training data are 255 = ignore everywhere; check label_map and mask_values")
    notes = []
    if unlabelled:
        some = f"{len(unlabelled)} of {len(found)} masks are 255 = ignore everywhere, such as {unlabelled[0]}"
        notes.append(f"{some}: nothing is learned or measured there")
    return notes


def check_classes(values: np.ndarray, num_labels: int | None, name: str) -> None:
    """Raise `UserError` if `values` (bool (256,)) holds a value that is neither a class nor 255."""
    largest = (num_labels or 2) - 1
    wrong = np.flatnonzero(values[largest + 1 : IGNORE])
    if len(wrong):
        value = largest + 1 + int(wrong[0])
        labels = f"num_labels {num_labels} allows 0..{largest}" if num_labels else "a binary mask holds 0 and 1"
        raise UserError(
            f"{name}: mask value {value}, but {labels} and 255 = ignore; set mask_values to binary (everything above "
            f"0 is foreground), or to index with num_labels above {value} or a label_map"
        )


def present_values(mask: np.ndarray) -> np.ndarray:
    """Which of the 256 values occur in a uint8 array: bool (256,)."""
    return np.bincount(mask.ravel(), minlength=256) > 0


def map_present(values: np.ndarray, label_map: Mapping[int, int] | None) -> np.ndarray:
    """Which values occur after `label_map`, from those that occur before it: bool (256,)."""
    if not label_map:
        return values
    mapped = np.zeros(256, bool)
    mapped[_table(label_map)[np.flatnonzero(values)]] = True
    return mapped


def _table(label_map: Mapping[int, int]) -> np.ndarray:
    """uint8 (256,): the new value of every stored one; values that are not named stay."""
    table = np.arange(256, dtype=np.uint8)
    for old, new in label_map.items():
        table[old] = new
    return table


def _check_unmixed(found: list[tuple[str, np.ndarray]]) -> None:
    picture = next((name for name, values in found if values[IGNORE] and not values[1:IGNORE].any()), None)
    classes = next((name for name, values in found if values[1:IGNORE].any()), None)
    if picture and classes:
        raise UserError(
            f"two mask encodings are mixed: {picture} holds 255 and no class, {classes} holds class indices; set "
            "mask_values to index (255 = ignore) or binary (above 0 is foreground), or mend one of them"
        )


def lossy_message(name: str) -> str:
    return (
        f"{name}: a mask stored lossily (JPEG or the like), its values are not exact; set mask_values to binary "
        "(above 127 is foreground) or store masks as PNG"
    )
