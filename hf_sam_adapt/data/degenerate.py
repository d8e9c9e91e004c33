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
    labels = np.flatnonzero(np.any(masks, axis=0)[:IGNORE]).tolist()
    if not labels:
        return "nothing but 255 = ignore"
    if labels == [0]:
        return "no foreground"
    if len(labels) > 1:
        return None
    return "no background, every pixel is foreground" if encoding.num_labels is None else f"only the class {labels[0]}"


def unused_map_notes(label_map: Mapping[int, int] | None, mapped: Sequence[frozenset[int]]) -> list[str]:
    """A note where values that `label_map` names occur in none of the masks; `mapped` are those of each mask."""
    present = frozenset().union(*mapped)
    absent = [str(value) for value in label_map or () if mapped and value not in present]
    return [f"label_map: no mask that was looked at holds {', '.join(absent)}"] if absent else []
