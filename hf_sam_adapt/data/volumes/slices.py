"""Slices of volumes as images: which way a volume is cut, and how its values become those of an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import UserError
from .stack import AXES, Stack


@dataclass(frozen=True)
class SliceKeys:
    """How volumes are cut; keys of recipes, and kept with a model's processor.

    Attributes:
        slice_axis: "axial", "coronal" or "sagittal"; None = across the largest voxels, see `open_grid`.
        window: [level, width] in the units of the volume that become 0 to 255; None = its 1st to 99th percentile.
        neighbours: slices on each side that are further channels (2.5-D); the last one is repeated at the ends.
        channels: of the images, their values as they are stored; None = 8 bits and three colours.
    """

    slice_axis: str | None = None
    window: tuple[float, float] | None = None
    neighbours: int = 0
    channels: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], channels: int | None = None) -> SliceKeys:
        """Of the keys `slice_axis`, `window` and `neighbours`, each unset or None for its default.

        Args:
            channels: as given, None for images of 8 bits and three colours.

        Raises:
            UserError: a value outside its range, or neighbours that make other channels than `channels`.
        """
        axis, window, neighbours = (values.get(key) for key in KEYS)
        if axis is not None and axis not in AXES:
            raise UserError(f"{axis!r} is unknown", key="slice_axis", fix=f"choose from {', '.join(AXES)}")
        if window is not None:
            if len(window) != 2 or not np.isfinite(window).all() or not window[1] > 0:
                raise UserError(
                    f"{' '.join(map(str, window))} is not a level and a width above 0",
                    key="window",
                    fix="such as 40 400 for the abdomen in CT",
                )
            if channels is not None:
                raise UserError("values are kept as they are stored with channels", key="window", fix="leave one out")
            window = (float(window[0]), float(window[1]))
        neighbours = neighbours or 0
        if neighbours < 0:
            raise UserError(f"{neighbours} is below 0", key="neighbours")
        wanted = 2 * neighbours + 1
        if channels is None and neighbours > 1:
            fix = f"set channels to {wanted}, or neighbours to 1, the three colours"
            raise UserError(f"{neighbours} on each side make {wanted} channels", key="neighbours", fix=fix)
        if channels not in (None, wanted):
            problem = f"{neighbours} on each side make {wanted} channels, but channels is {channels}"
            raise UserError(problem, key="neighbours", fix="make them agree")
        return cls(axis, window, neighbours, channels)

    def plain(self) -> dict[str, Any]:
        """The keys, for JSON and YAML."""
        window = None if self.window is None else list(self.window)
        return dict(zip(KEYS, (self.slice_axis, window, self.neighbours)))

    def image(self, stack: Stack, number: int) -> np.ndarray:
        """A slice as an image: uint8 (H, W, 3), or with `channels` float32 (H, W, C) of the stored values."""
        last = len(stack.values) - 1
        around = range(number - self.neighbours, number + self.neighbours + 1)
        planes = np.stack([stack.read(min(max(place, 0), last)) for place in around], axis=-1)
        if self.channels is not None:
            return planes
        if self.window is None:
            low, high = stack.usual_range
        else:
            low, high = self.window[0] - self.window[1] / 2, self.window[0] + self.window[1] / 2
        levels = (np.clip((planes - low) / (high - low), 0, 1) * 255).round().astype(np.uint8)
        return levels if self.neighbours else np.repeat(levels, 3, axis=2)


KEYS = ("slice_axis", "window", "neighbours")
