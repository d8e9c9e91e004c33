"""The prompts of one image, of any kind, in image coordinates or in those of the network's input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError


if TYPE_CHECKING:
    import torch


PROMPT_KINDS = ("none", "box", "point", "mask")


@dataclass
class Prompt:
    """The prompts of one image: n objects of one kind.

    In image coordinates the fields are numpy arrays; `SamAdaptProcessor` returns a copy with tensors in the
    coordinates of the network's input. Pixel coordinates are (x, y), boxes inclusive (x1, y1, x2, y2). An object may
    have more than its kind says: a box corrected by points, and the logits of the round before as its mask.

    Attributes:
        kind: "none", "box", "point" or "mask". With "none" every other field may be None.
        boxes: float32 (n, 4).
        points: float32 (n, p, 2).
        point_labels: int64 (n, p), 1 = on the object, 0 = off it.
        masks: bool (n, H, W); from the processor float32 (n, 4 grid, 4 grid) logits of +-10.
        targets: bool (n, H, W), the true objects; from the processor uint8 (n, S, S) in {0, 1, 255 = ignore}.
        labels: int64 (n,), the class of each object.
        draws: float32 (n, rounds) in [0, 1): which wrong pixel each correction of a training shows, see `corrected`.
    """

    kind: str
    boxes: np.ndarray | torch.Tensor | None = None
    points: np.ndarray | torch.Tensor | None = None
    point_labels: np.ndarray | torch.Tensor | None = None
    masks: np.ndarray | torch.Tensor | None = None
    targets: np.ndarray | torch.Tensor | None = None
    labels: np.ndarray | torch.Tensor | None = None
    draws: np.ndarray | torch.Tensor | None = None

    def __len__(self) -> int:
        """Number of objects n; 0 for kind "none"."""
        field = {"box": self.boxes, "point": self.points, "mask": self.masks}.get(self.kind)
        return 0 if field is None else len(field)

    @property
    def rounds(self) -> int:
        """Corrections that follow in a training."""
        return 0 if self.draws is None else self.draws.shape[1]

    def __bool__(self) -> bool:
        # A prompt without objects is still a prompt.
        return True

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Prompt:
        """Copy with every tensor on `device`."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Prompt:
        """Copy with every tensor in page-locked memory, as a loader wants it."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def _mapped(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Prompt:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        tensors: dict[str, Any] = {name: function(value) for name, value in values.items() if hasattr(value, "to")}
        return dataclasses.replace(self, **tensors)

    def select(self, indices: list[int] | np.ndarray) -> Prompt:
        """Copy with only the objects `indices`."""
        names = ("boxes", "points", "point_labels", "masks", "targets", "labels", "draws")
        chosen = {name: getattr(self, name)[indices] for name in names if getattr(self, name) is not None}
        return dataclasses.replace(self, **chosen)


def boolean_masks(masks: np.ndarray) -> np.ndarray:
    """Masks of objects (n, H, W), of 0 and 1 or of 0 and 255, as bool. Raises `UserError` for other values."""
    if masks.dtype != bool and not any(np.isin(masks, (0, value)).all() for value in (1, 255)):
        raise UserError("prompt mask: values other than 0 and 1 (or 0 and 255)", fix="pass a boolean array")
    return masks > 0
