"""What the values of a data set's masks mean: 0/255 pictures, or class indices with 255 = ignore."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from ..errors import UserError
from ..names import MaskValues
from .images import IGNORE
from .notes import Note
from .palettes import Palette, to_labels


MASK_VALUES = get_args(MaskValues)
LOSSY_THRESHOLD = 127
COUNTED_AT_ONCE = 2**24  # pixels
SOFT_VALUES = 8  # so many values between 0 and the largest are soft edges rather than classes


@dataclass(frozen=True)
class MaskEncoding:
    """Turns stored mask values into classes.

    Attributes:
        mask_values: "binary" (above 0 is foreground, above 127 in lossy files), "alpha" (the same of the opacity) or
            "index" (as stored, 255 = ignore).
        num_labels: number of classes with the background, None = 2.
        label_map: stored value -> value, applied first.
        threshold: of "binary" and "alpha", in place of 0 and 127.
        exact: accept only 0 and 255 as binary values (they were found, not asked for).
        palette: turns the colours of RGB masks into classes before everything else.
        draws_ignored: 255 is ignored in "binary", too: the masks are drawn so, not stored.
    """

    mask_values: str
    num_labels: int | None = None
    label_map: Mapping[int, int] | None = None
    threshold: float | None = None
    exact: bool = False
    palette: Palette | None = None
    draws_ignored: bool = False

    def decode(self, stored: np.ndarray, lossy: bool, name: str) -> np.ndarray:
        """Stored values to classes.

        Args:
            stored: (H, W) of any real type, or in colours uint8 (H, W, 3), which takes a palette.
            lossy: whether it was stored lossily.
            name: what an error message calls it.

        Returns:
            uint8 (H, W) in {0..K-1, 255}.

        Raises:
            UserError: any other value.
        """
        if stored.ndim == 3 and self.palette is not None:
            if lossy:
                raise lossy_mask(name)
            stored = to_labels(stored, self.palette)
        mask = map_values(stored, self.label_map)
        if self.mask_values in ("binary", "alpha"):
            if self.exact and lossy:
                raise lossy_mask(name)
            if self.exact and ((mask != 0) & (mask != 255)).any():
                value = mask[(mask != 0) & (mask != 255)][0]
                raise UserError(
                    f"mask value {value:g}, while other masks hold only 0 and 255",
                    where=name,
                    fix=f"{_SOFT_HINT}, or to index (255 = ignore)",
                    code="mask-values",
                )
            if mask.dtype != np.uint8 and mask.min(initial=0) < 0:
                raise UserError(
                    f"mask value {mask.min():g}, below 0",
                    where=name,
                    fix=f"say what it means with label_map, such as {{{mask.min():g}: 0}}",
                    code="mask-values",
                )
            threshold = (LOSSY_THRESHOLD if lossy else 0) if self.threshold is None else self.threshold
            found = (mask > threshold).astype(np.uint8)
            return np.where(stored == IGNORE, np.uint8(IGNORE), found) if self.draws_ignored else found
        if lossy:
            raise lossy_mask(name)
        check_classes(present_values(mask, name), self.num_labels, name)
        return mask

    def classes(self, values: np.ndarray, lossy: bool, name: str) -> np.ndarray:
        """Which classes the values that occur after `label_map` become, bool (256,) -> bool (256,)."""
        mapped = np.flatnonzero(values).astype(np.uint8)[None]
        return present_values(dataclasses.replace(self, label_map=None).decode(mapped, lossy, name), name)


def decode_masks(masks: Sequence[tuple[np.ndarray, bool]], mask_values: str = "auto") -> list[np.ndarray]:
    """Masks that come from Python, by the rule of a data set: those of 0 and 255 alone are pictures of the foreground.

    Args:
        masks: stored values (H, W) of any real type, and whether they were stored lossily.
        mask_values: "auto", "binary" (above 0 is foreground) or "index" (as stored, 255 = ignore), which says that
            255 is no foreground.

    Returns:
        uint8 (H, W) each, classes and 255 = ignore.

    Raises:
        UserError: values that are no classes, or two encodings in one batch.
    """
    names = [f"masks[{place}]" for place in range(len(masks))]
    if mask_values == "binary":
        encoding = resolve_encoding([], mask_values, None, None)[0]
    else:
        found = [(name, present_values(stored, name), lossy) for name, (stored, lossy) in zip(names, masks)]
        if mask_values == "auto" and not any(values[0] for _, values, _ in found):
            mask_values = "index"  # 255 everywhere is ignored everywhere
        if mask_values == "index" and not any(lossy for _, _, lossy in found):
            return [stored for stored, _ in masks]
        encoding, notes = resolve_encoding(found, mask_values, IGNORE, None)
        if encoding.mask_values == "binary":
            warnings.warn(f"{notes[0]}; pass mask_values='index' where 255 means ignore", stacklevel=4)
    return [encoding.decode(stored, lossy, name) for name, (stored, lossy) in zip(names, masks)]


def parse_label_map(label_map: Mapping | None) -> dict[int, int] | None:
    """`label_map` with int keys, and values in 0..255. Raises `UserError` otherwise."""
    if not label_map:
        return None
    try:
        parsed = {int(old): int(new) for old, new in label_map.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{label_map!r} must map stored values to classes, such as {{1: 0, 2: 1}}", key="label_map"
        ) from error
    wrong = [value for value in parsed.values() if not 0 <= value <= 255]
    if wrong:
        raise UserError(f"{wrong[0]} is outside 0..255", key="label_map")
    return parsed


def resolve_encoding(
    masks: Iterable[tuple[str, np.ndarray, bool]],
    mask_values: str,
    num_labels: int | None,
    label_map: Mapping[int, int] | None,
    palette: Palette | None = None,
    draws_ignored: bool = False,
    threshold: float | None = None,
) -> tuple[MaskEncoding, list[str]]:
    """Decide how the masks of a data set are read, and check every one of them.

    Args:
        masks: (name, values as bool (256,): which occur after `label_map`, whether the file is lossy) per mask.
        mask_values: "auto", "binary", "index" or "alpha".
        num_labels, label_map, palette, draws_ignored, threshold: see `MaskEncoding`; with a palette the values are its
            indices.

    Returns:
        The encoding, and one-line notes on what was found.

    Raises:
        UserError: lossy masks read as anything but binary, a value above the last class, or two encodings mixed.
    """
    if mask_values not in MASK_VALUES:
        raise UserError(f"{mask_values!r} is unknown", key="mask_values", fix=f"choose from {', '.join(MASK_VALUES)}")
    if palette is not None:
        if mask_values == "binary":
            raise UserError(
                "binary, but a palette gives class indices", key="mask_values", fix="leave one of them out"
            )
        mask_values = "index"
    mask_values = check_threshold(threshold, mask_values)
    if mask_values in ("binary", "alpha"):
        encoding = MaskEncoding(mask_values, num_labels, label_map, threshold, draws_ignored=draws_ignored)
        both = [name for name, values, _ in masks if np.flatnonzero(values[1:]).tolist() == [0, IGNORE - 1]]
        if not both or threshold is not None or draws_ignored:
            return encoding, []
        said = f"{len(both)} masks hold both 1 and 255, such as {both[0]}: both are foreground"
        return encoding, [f"{said}; mask_values: index has 255 ignored"]
    lossless = []
    for name, values, lossy in masks:
        if lossy:
            raise lossy_mask(name)
        lossless.append((name, values))
    union = np.any([values for _, values in lossless], axis=0) if lossless else np.zeros(256, bool)
    # A label_map with the target 255 says itself that 255 means ignore.
    ignore_named = label_map is not None and IGNORE in label_map.values()
    if mask_values == "auto" and not ignore_named and union[IGNORE] and not union[1:IGNORE].any():
        note = "masks hold only {0, 255}: read as binary, 255 = foreground"
        return MaskEncoding("binary", num_labels, label_map, exact=True), [note]
    for name, values in lossless:
        check_classes(values, num_labels, name)
    if mask_values == "auto" and not ignore_named:
        _check_unmixed(lossless)
    return MaskEncoding("index", num_labels, label_map, palette=palette), _notes(lossless)


def _notes(masks: list[tuple[str, np.ndarray]]) -> list[str]:
    """What is odd about masks of class indices; `UserError` where none of them holds a label."""
    unlabelled = [name for name, values in masks if not values[:IGNORE].any()]
    if masks and len(unlabelled) == len(masks):
        raise UserError(
            "all masks of the training data are 255 = ignore everywhere", fix="check label_map and mask_values"
        )
    notes: list[str] = []
    if unlabelled:
        count = f"{len(unlabelled)} of {len(masks)} masks are 255 = ignore everywhere"
        cost = "nothing is learned or measured there"
        notes.append(Note(f"{count}, such as {unlabelled[0]}: {cost}", f"{count}: {cost}"))
    return notes


def check_threshold(threshold: float | None, mask_values: str) -> str:
    """What `mask_values` is with a threshold: that makes "auto" "binary".

    Raises:
        UserError: a threshold of class indices, or one that is not a number of at least 0.
    """
    if threshold is None:
        return mask_values
    if mask_values == "index":
        raise UserError(
            "class indices have none", key="mask_threshold", fix="leave it out, or set mask_values to binary"
        )
    if not 0 <= threshold < np.inf:
        raise UserError(f"{threshold:g} is not a number of at least 0", key="mask_threshold")
    return "binary" if mask_values == "auto" else mask_values


def middle_of_edges(mask: np.ndarray) -> float | None:
    """The threshold that cuts soft edges in the middle; None for a mask (H, W) without them.

    Soft are fractions, and integers with the largest value of their 8 or 16 bits and eight or more below it.
    """
    if mask.dtype.kind == "f" and (mask % 1).any():
        return float(mask.max()) / 2
    largest = int(mask.max(initial=0))
    if largest not in (255, 65535) or mask.min() < 0:
        return None
    steps = np.count_nonzero(np.bincount(mask.ravel().astype(np.uint16), minlength=largest + 1)[1:largest])
    return float(largest // 2) if steps >= SOFT_VALUES else None


def check_classes(values: np.ndarray, num_labels: int | None, name: str) -> None:
    """Raise `UserError` if `values` (bool (256,)) holds a value that is neither a class nor 255."""
    largest = (num_labels or 2) - 1
    wrong = np.flatnonzero(values[largest + 1 : IGNORE])
    if len(wrong):
        value = largest + 1 + int(wrong[0])
        labels = f"num_labels {num_labels} allows 0..{largest}" if num_labels else "a binary mask holds 0 and 1"
        raise UserError(
            f"mask value {value}, but {labels} and 255 = ignore",
            where=name,
            fix=f"{_SOFT_HINT}, or to index with num_labels above {value} or a label_map",
            code="mask-values",
        )


def present_values(mask: np.ndarray, name: str) -> np.ndarray:
    """Which of the 256 values occur in a mask: bool (256,). Raises `UserError` if it holds others."""
    if mask.dtype not in (bool, np.uint8):
        wrong = mask[~((mask >= 0) & (mask <= 255) & (mask % 1 == 0))]
        if not len(wrong):
            return value_counts(mask.astype(np.uint8)) > 0
        raise UserError(
            f"mask value {wrong[0]:g}, class indices are integers in 0..254 and 255 = ignore",
            where=name,
            fix=f"{_SOFT_HINT}, or say with label_map what it means",
            code="mask-values",
        )
    return value_counts(mask) > 0


def value_counts(mask: np.ndarray) -> np.ndarray:
    """How often each value occurs in uint8 (H, W): int64 (256,)."""
    # numpy.bincount makes eight bytes of each; of a large mask some rows at a time.
    rows = max(1, COUNTED_AT_ONCE // max(1, mask.shape[-1]))
    parts = (mask[start : start + rows] for start in range(0, len(mask), rows))
    return sum((np.bincount(part.ravel(), minlength=256) for part in parts), np.zeros(256, np.int64))


def map_values(mask: np.ndarray, label_map: Mapping[int, int] | None) -> np.ndarray:
    """The values of a mask after `label_map`; those that it does not name stay. uint8 where all of them fit."""
    if not label_map:
        return mask
    if mask.dtype == np.uint8:
        table = np.arange(256, dtype=np.uint8)
        for old, new in label_map.items():
            if 0 <= old <= 255:
                table[old] = new
        return table[mask]
    mapped = mask.astype(np.float64)
    for old, new in label_map.items():
        mapped[mask == old] = new
    fits = (mapped >= 0) & (mapped <= 255) & (mapped % 1 == 0)
    return mapped.astype(np.uint8) if fits.all() else mapped


def _check_unmixed(found: list[tuple[str, np.ndarray]]) -> None:
    picture = next((name for name, values in found if values[IGNORE] and not values[1:IGNORE].any()), None)
    classes = next((name for name, values in found if values[1:IGNORE].any()), None)
    if picture and classes:
        raise UserError(
            f"two mask encodings are mixed: {picture} holds 255 and no class, {classes} holds class indices",
            fix="set mask_values to index (255 = ignore) or binary (above 0 is foreground), or fix one of them",
            code="mixed-encoding",
        )


_SOFT_HINT = "set mask_values to binary (everything above 0 is foreground; of soft edges what is above mask_threshold)"


def lossy_mask(name: str) -> UserError:
    """The error for a mask whose values a lossy format may have changed."""
    return UserError(
        "a mask stored lossily (JPEG or the like), its values are not exact",
        where=name,
        fix="set mask_values to binary (above 127 is foreground) or store masks as PNG",
        code="lossy-mask",
    )
