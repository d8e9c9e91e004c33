"""Segmentation losses on SAM's low-resolution logits (SAM-Adapter §4.2, PraNet's structure loss)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .data.images import IGNORE
from .errors import UserError


LOSSES = ("bce", "bbce", "iou", "dice", "structure", "structure_unweighted")

# Side of the window in which the structure loss looks for borders, in label pixels (PraNet).
_BORDER_WINDOW = 31


def parse_loss(loss: str) -> list[str]:
    """Split a loss name such as `"bce+dice"` into its terms; an unknown term is a `UserError`."""
    terms = [term.strip() for term in loss.split("+")]
    for term in terms:
        if term not in LOSSES:
            raise UserError(
                f"loss: unknown term '{term}' in '{loss}'; use one of {', '.join(LOSSES)} or a sum like bce+dice."
            )
    return terms


def segmentation_loss(
    logits: Tensor, labels: Tensor, loss: str = "structure", weights: Tensor | None = None
) -> Tensor:
    """Loss of binary segmentation logits, computed in fp32 at the resolution of the labels.

    Every term is a mean over the valid pixels of an image, then over images, so that the loss of a batch is the mean
    of the losses of its images. Only `bbce` balances foreground against background over the whole batch, as published.
    An image without foreground, or without any valid pixel, gives finite values and gradients.

    - `bce`: binary cross-entropy.
    - `bbce`: balanced binary cross-entropy (the paper's loss for shadows).
    - `iou`: cross-entropy + soft IoU, weights 1:1 (the paper's loss for camouflage and polyps).
    - `dice`: soft Dice alone.
    - `structure`: border-weighted cross-entropy + border-weighted soft IoU (PraNet).
    - `structure_unweighted`: its cross-entropy without the weights, as published code computes it (Conv-LoRA's, too).

    Args:
        logits: `(N, 1, h, w)`, any float dtype; upsampled bilinearly to the labels.
        labels: `(N, H, W)` integers: 0 background, 1 foreground, 255 ignored.
        loss: one of the names above, or a sum such as `"bce+dice"`.
        weights: `(N,)` weight of each image, default 1/N.

    Returns:
        fp32 scalar.
    """
    terms = parse_loss(loss)
    if logits.ndim != 4 or logits.shape[1] != 1 or labels.ndim != 3 or len(logits) != len(labels):
        raise ValueError(
            f"expected logits (N,1,h,w) and labels (N,H,W), got {tuple(logits.shape)}, {tuple(labels.shape)}"
        )
    # (N,1,h,w) -> (N,H,W)
    scores = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    valid = (labels != IGNORE).to(scores.dtype)
    target = (labels == 1).to(scores.dtype)
    if weights is None:
        weights = scores.new_full((len(scores),), 1 / max(len(scores), 1))
    per_image = sum(_TERMS[term](scores, target, valid, weights) for term in terms)
    return (per_image * weights).sum()


def _pixel_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the pixels of each image, 0 where every weight is 0: `(N,H,W)` -> `(N,)`."""
    total = weight.sum(dim=(1, 2))
    return (values * weight).sum(dim=(1, 2)) / torch.where(total > 0, total, torch.ones_like(total))


def _bce(scores: Tensor, target: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    return _pixel_mean(F.binary_cross_entropy_with_logits(scores, target, reduction="none"), valid)


def _bbce(scores: Tensor, target: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    used = valid * (weights > 0)[:, None, None]
    total = used.sum().clamp(min=1)
    positive = (target * used).sum() / total
    negative = 1 - positive
    # = n+/n BCE(pos_weight = n-/n+), written without the division by n+
    loss = -(negative * target * F.logsigmoid(scores) + positive * (1 - target) * F.logsigmoid(-scores))
    return _pixel_mean(loss, valid)


def _overlap(scores: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted soft intersection, sum of both areas, and the smoothing of each image: three `(N,)`.

    The published ratios have no smoothing and are 0/0 for an image that is all background, so that image alone gets
    one pixel of it.
    """
    probability = scores.sigmoid()
    intersection = (probability * target * weight).sum(dim=(1, 2))
    areas = ((probability + target) * weight).sum(dim=(1, 2))
    smooth = ((target * weight).sum(dim=(1, 2)) == 0).to(scores.dtype)
    return intersection, areas, smooth


def _iou(scores: Tensor, target: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    intersection, areas, smooth = _overlap(scores, target, valid)
    soft_iou = (intersection + smooth) / (areas - intersection + smooth)
    return _bce(scores, target, valid, weights) + 1 - soft_iou


def _dice(scores: Tensor, target: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    intersection, areas, smooth = _overlap(scores, target, valid)
    return 1 - (2 * intersection + smooth) / (areas + smooth)


def _structure(scores: Tensor, target: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    border = _border_weight(target, valid)
    bce = _pixel_mean(F.binary_cross_entropy_with_logits(scores, target, reduction="none"), border)
    return bce + _border_iou(scores, target, border)


def _structure_unweighted(scores: Tensor, target: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    return _bce(scores, target, valid, weights) + _border_iou(scores, target, _border_weight(target, valid))


def _border_weight(target: Tensor, valid: Tensor) -> Tensor:
    return valid * (1 + 5 * (_box_mean(target * valid) - target).abs())


def _border_iou(scores: Tensor, target: Tensor, border: Tensor) -> Tensor:
    intersection, areas, _ = _overlap(scores, target, border)
    return 1 - (intersection + 1) / (areas - intersection + 1)


def _box_mean(mask: Tensor) -> Tensor:
    """Mean over a 31 x 31 window, zeros outside the image: `(N,H,W)` -> `(N,H,W)`. Two passes of 31 instead of 961."""
    window, padding = _BORDER_WINDOW, _BORDER_WINDOW // 2
    rows = F.avg_pool2d(mask[:, None], (window, 1), stride=1, padding=(padding, 0))
    return F.avg_pool2d(rows, (1, window), stride=1, padding=(0, padding))[:, 0]


_TERMS = {
    "bce": _bce,
    "bbce": _bbce,
    "iou": _iou,
    "dice": _dice,
    "structure": _structure,
    "structure_unweighted": _structure_unweighted,
}
