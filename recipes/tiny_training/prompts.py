"""Prompts of the pre-training, drawn from the masks of the objects."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from hf_sam_adapt.data.images import IGNORE
from hf_sam_adapt.prompts import Prompt, corrected, degrade

from .model import MASK, SIDE


def draw_prompts(masks: torch.Tensor, kind: str, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Arguments of SAM's prompt encoder for masks bool (B, P, 256, 256): boxes, points, or one degraded mask an image.

    Args:
        masks: none of them empty.
        kind: `box`, `point` or `mask`; `mask` prompts the first object of each image alone.
        rng: of the boxes' errors, the points' places and the masks' errors.
    """
    objects = [mask.numpy() for mask in masks.flatten(0, 1)]
    if kind == "box":
        boxes = torch.stack([_box(mask, rng) for mask in objects])
        return {"input_boxes": boxes.reshape(*masks.shape[:2], 4)}
    if kind == "point":
        points = torch.stack([_point(mask, rng) for mask in objects]).reshape(*masks.shape[:2], 1, 2)
        return {"input_points": points, "input_labels": torch.ones(points.shape[:3], dtype=torch.int64)}
    degraded = torch.stack([torch.from_numpy(degrade(mask[0].numpy(), rng)).float() for mask in masks])[:, None]
    return {"input_masks": 20 * (F.adaptive_avg_pool2d(degraded, MASK) > 0.5).float() - 10}


def _box(mask: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """The tight box, in a third of the cases with its sides moved by up to an eighth of the object."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
    if rng.random() < 0.35:
        extent = np.tile([box[2] - box[0], box[3] - box[1]], 2)
        box = box + 0.06 * extent * rng.normal(size=4).clip(-2, 2)
    return torch.from_numpy(box.clip(0, SIDE - 1)).float()


def _point(mask: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """(x, y): the pixel farthest from the border, or any pixel of the object."""
    from scipy import ndimage

    rows, columns = np.nonzero(mask)
    if rng.random() < 0.5:
        top, left = rows.min(), columns.min()
        inside = np.pad(mask[top : rows.max() + 1, left : columns.max() + 1], 1)
        distance = ndimage.distance_transform_edt(inside)[1:-1, 1:-1]
        row, column = np.unravel_index(distance.argmax(), distance.shape)
        return torch.tensor([float(left + column), float(top + row)])
    pick = rng.integers(len(rows))
    return torch.tensor([float(columns[pick]), float(rows[pick])])


def correct(
    prompts: dict[str, torch.Tensor],
    logits: torch.Tensor,
    truth: torch.Tensor,
    known: torch.Tensor,
    draw: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """SAM's next round for one object an image: the mask found, and one more point where it is wrong.

    Args:
        prompts: of the round before, boxes or points (B, 1, ...).
        logits: of the round before (B, 64, 64).
        truth, known: the objects and where they are known, bool (B, 64, 64).
        draw: which of the wrong pixels, in [0, 1) (B, 1).
    """
    targets = torch.where(known, truth.to(torch.uint8), IGNORE)
    found = corrected(Prompt("box", targets=targets, draws=draw), logits.detach().float(), 0)
    stride = SIDE // MASK
    points, labels = (found.points * stride + stride / 2)[:, None], found.point_labels[:, None]  # (B, 1, 1, ...)
    if "input_points" in prompts:
        points = torch.cat([prompts["input_points"], points], dim=2)
        labels = torch.cat([prompts["input_labels"], labels], dim=2)
    changed = {"input_points": points, "input_labels": labels, "input_masks": found.masks[:, None]}
    return prompts | changed
