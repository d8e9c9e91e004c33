"""Masks that teach or measure nothing, though every file is in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .encoding import MaskEncoding
from .images import IGNORE


def degenerate(masks: Sequence[np.ndarray], encoding: MaskEncoding) -> str | None:
    """Why a constant answer would be right for all of the masks; None where none would.

    Args:
        masks: per mask which classes occur in it, bool (256,).
        encoding: how they were read.
    """
    found = np.flatnonzero(np.any(masks, axis=0)[:IGNORE]).tolist()
    if not found:
        return "nothing but 255 = ignore"
    if found == [0]:
        return "no foreground"
    if len(found) > 1:
        return None
    return "no background, every pixel is foreground" if encoding.num_labels is None else f"only the class {found[0]}"


def unused_map_notes(label_map: Mapping[int, int] | None, masks: Sequence[np.ndarray]) -> list[str]:
    """A note where values that `label_map` names occur in none of the masks (bool (256,), stored values)."""
    present = np.any(masks, axis=0) if masks else np.ones(256, bool)
    absent = [str(value) for value in label_map or () if not present[value]]
    return [f"label_map: no mask that was looked at holds {', '.join(absent)}"] if absent else []
