"""What decides, beside a data set itself, how its images and masks are read and split."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .palettes import Palette


@dataclass(frozen=True)
class Reading:
    """Arguments of `load_segmentation_dataset`, which says what they mean, and keys of a recipe."""

    mask_suffix: str | None = None
    mask_values: str = "auto"
    mask_threshold: float | None = None
    label_map: Mapping[int, int] | None = None
    num_labels: int | None = None
    id2label: Mapping[int, str] | None = None
    group_by: str | None = None
    channels: int | None = None
    palette: str | Mapping[str, Any] | Palette | None = None
    slice_axis: str | None = None
    window: Sequence[float] | None = None
    neighbours: int | None = None
    seed: int = 0


READ_KEYS = tuple(field.name for field in dataclasses.fields(Reading))
