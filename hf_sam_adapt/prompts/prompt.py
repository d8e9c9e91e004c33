"""The prompts of one image, of any kind, in image coordinates or in those of the network's input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError


if TYPE_CHECKING:
    import torch


@dataclass
class Prompt:
    """The prompts of one image: n objects of one kind.

    In image coordinates the fields are numpy arrays; `SamAdaptProcessor` returns a copy with tensors in the
    coordinates of the network's input. Pixel coordinates are (x, y), boxes inclusive (x1, y1, x2, y2). `box`, `point`,
    `clicks` and `mask` make a prompt of plain numbers. An object may have more than its kind says: a box corrected by
    points, and the logits of the round before as its mask.

    Attributes:
        kind: "none", "box", "point" or "mask". With "none" every other field may be None.
        boxes: float32 (n, 4).
        points: float32 (n, p, 2).
        point_labels: int64 (n, p), 1 = on the object, 0 = off it.
        masks: bool (n, H, W); from the processor float32 (n, 4 grid, 4 grid) logits of +-10.
        targets: bool (n, H, W), the true objects; from the processor uint8 (n, S, S) in {0, 1, 255 = ignore}.
        labels: int64 (n,), the class of each object.
        draws: float32 (n, rounds) in [0, 1): which wrong pixel each correction of a training shows, see `corrected`.
        left_out: objects of the mask that `derive_prompts` found too small, or too many, and their pixels.
    """

    kind: str
    boxes: np.ndarray | torch.Tensor | None = None
    points: np.ndarray | torch.Tensor | None = None
    point_labels: np.ndarray | torch.Tensor | None = None
    masks: np.ndarray | torch.Tensor | None = None
    targets: np.ndarray | torch.Tensor | None = None
    labels: np.ndarray | torch.Tensor | None = None
    draws: np.ndarray | torch.Tensor | None = None
    left_out: tuple[int, int] = (0, 0)

    @classmethod
    def box(cls, *boxes: Any) -> Prompt:
        """One object for each box (x0, y0, x1, y1) in pixels, both corners inside: `Prompt.box((40, 30, 180, 120))`.

        Raises:
            UserError: not four numbers, or corners in another order.
        """
        corners = _rows(boxes, 4)  # (n, 4)
        if corners is None or (corners[:, :2] > corners[:, 2:]).any():
            fix = "give x0 y0 x1 y1 with x0 <= x1 and y0 <= y1"
            raise UserError(f"{' '.join(map(str, boxes)) or 'nothing'} is not a box", key="box", fix=fix)
        return cls("box", boxes=corners)

    @classmethod
    def point(cls, *points: Any) -> Prompt:
        """One object for each point (x, y) in pixels: `Prompt.point((100, 80))`. Raises `UserError` for no pair."""
        places = _rows(points, 2)  # (n, 2)
        if places is None:
            raise UserError(f"{' '.join(map(str, points)) or 'nothing'} is not a point", key="point", fix="give x y")
        return cls("point", points=places[:, None], point_labels=np.ones((len(places), 1), np.int64))

    @classmethod
    def clicks(cls, points: Sequence[Any], labels: Sequence[int] | None = None) -> Prompt:
        """One object by p points (x, y) in pixels, with labels 1 = on the object (default), 0 = off it.

        Raises:
            UserError: no pairs, or other labels.
        """
        prompt = cls.point(*points)
        labels = [1] * len(prompt) if labels is None else list(labels)
        if len(labels) != len(prompt) or not set(labels) <= {0, 1}:
            raise UserError(f"labels {labels} of {len(prompt)} points", key="point", fix="give 1 or 0 for each point")
        together = np.asarray(prompt.points).reshape(1, -1, 2)  # (n, 1, 2) -> (1, p, 2)
        return cls("point", points=together, point_labels=np.array([labels], np.int64))

    @classmethod
    def mask(cls, *masks: Any) -> Prompt:
        """One object for each rough mask, bool (H, W) of the image's size.

        Raises:
            UserError: no mask, masks of several sizes, or other values.
        """
        arrays = [np.asarray(mask) for mask in masks]
        shapes = {array.shape for array in arrays}
        if len(shapes) != 1 or len(min(shapes)) != 2:
            found = ", ".join(map(str, sorted(shapes))) or "nothing"
            raise UserError(f"prompt mask: {found}", fix="give arrays (H, W) of the image's size, one an object")
        return cls("mask", masks=boolean_masks(np.stack(arrays)))

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


def _rows(values: Sequence[Any], length: int) -> np.ndarray | None:
    """`values` as float32 (n, length), one row without another bracket; None where they are none."""
    try:
        rows = np.asarray(values, np.float32)
    except (TypeError, ValueError):  # ragged, or no numbers
        return None
    return rows.reshape(-1, length) if rows.ndim and rows.shape[-1] == length else None
