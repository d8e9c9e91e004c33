"""How many of the true objects an evaluation prompts: `derive_prompts` leaves out the smallest and the most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from operator import add
from typing import Any

import numpy as np

from ..prompts import Prompt


@dataclass(frozen=True)
class ObjectCount:
    """Objects (connected components of masks, by tiles those of each tile) and their pixels.

    Attributes:
        prompted, prompted_pixels: those that have a box, a point or a mask.
        left_out, left_out_pixels: those that have none, whose pixels are scored all the same.
    """

    prompted: int = 0
    prompted_pixels: int = 0
    left_out: int = 0
    left_out_pixels: int = 0

    @classmethod
    def of(cls, prompts: Mapping[str, Prompt]) -> ObjectCount:
        """Those of one mask, by its prompts of any kinds; the kinds prompt the same objects."""
        prompt = next((one for kind, one in prompts.items() if kind != "none"), None)
        if prompt is None:
            return cls()
        return cls(len(prompt), int(np.asarray(prompt.targets).sum()), *prompt.left_out)

    @classmethod
    def total(cls, counts: Iterable[ObjectCount]) -> ObjectCount:
        return sum(counts, cls())

    def __add__(self, other: ObjectCount) -> ObjectCount:
        return ObjectCount(*map(add, astuple(self), astuple(other)))

    def facts(self) -> dict[str, Any]:
        """The part `objects` of `metrics.json`: `prompted`, `left_out`, and the share of the foreground left out."""
        share = self.left_out_pixels / max(1, self.prompted_pixels + self.left_out_pixels)
        return {"prompted": self.prompted, "left_out": self.left_out, "left_out_share": round(share, 6)}
