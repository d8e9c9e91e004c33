"""Losses on SAM's low-resolution logits: one channel (SAM-Adapter §4.2, PraNet) or K classes (CWSAM §3)."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.images import IGNORE
from ..errors import UserError
from ..names import DEFAULT_LOSS, parse_loss
from .points import point_losses


# Side of the window in which the structure loss looks for borders, in label pixels (PraNet).
_BORDER_WINDOW = 31
_FOCAL_GAMMA = 2


def segmentation_loss(
    logits: Tensor,
    labels: Tensor,
    loss: str | None = None,
    weights: Tensor | None = None,
    class_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Loss of segmentation logits, computed in fp32 at the resolution of the labels.

    Every term is a mean over the valid pixels of an image, then over images, so that the loss of a batch is the mean
    of the losses of its images. Only `bbce` balances foreground against background over the whole batch, as published.
    An image without foreground, without some of the classes, or without any valid pixel, gives finite values and
    gradients; without any valid pixel both are 0.

    One channel (binary):

    - `bce`: binary cross-entropy.
    - `bbce`: balanced binary cross-entropy (the paper's loss for shadows).
    - `iou`: cross-entropy + soft IoU, weights 1:1 (the paper's loss for camouflage and polyps).
    - `dice`: soft Dice alone.
    - `structure`: border-weighted cross-entropy + border-weighted soft IoU (PraNet).
    - `structure_unweighted`: its cross-entropy without the weights, as published code computes it (Conv-LoRA's, too).
    - `points`: cross-entropy + Dice at sampled points (HQ-SAM's and MoDA's loss), see `point_losses`.

    K channels (classes):

    - `ce`: softmax cross-entropy, a mean in which a pixel counts with the weight of its class.
    - `ce_official`: the same sum divided by the number of pixels, ignored ones included (CWSAM §3).
    - `dice`: soft Dice, a mean over the classes that the image's labels hold (every pixel has such a class, so a
      class wrongly predicted elsewhere still costs). Class weights do not scale it.
    - `focal`: `ce` with each pixel scaled by (1 - p)^2 (Lin et al. 2017, gamma 2).

    The pixels of a class of weight 0 do not count, in `dice` either, as if they were ignored.

    Args:
        logits: `(N, 1, h, w)` or `(N, K, h, w)`, any float dtype; upsampled bilinearly to the labels.
        labels: `(N, H, W)` integers, 255 ignored; one channel: 0 background, 1 foreground; K channels: 0..K-1. Labels
            of 0 and 255 alone, without foreground, give a warning.
        loss: one of the names above, or a sum such as `"ce+dice"`; default `structure`, of K channels `ce+dice`.
        weights: `(N,)` weight of each image, default 1/N.
        class_weights: `(K,)` weight of each class, not negative, default 1; K channels only.
        generator: draws the points of `points`; torch's own when None.

    Returns:
        fp32 scalar.

    Raises:
        UserError: `loss` is no loss for this number of channels, `class_weights` does not fit it, or a label is no
            class of the logits.
    """
    if logits.ndim != 4 or labels.ndim != 3 or len(logits) != len(labels):
        raise ValueError(
            f"expected logits (N,K,h,w) and labels (N,H,W), got {tuple(logits.shape)}, {tuple(labels.shape)}"
        )
    _check_labels(labels, logits.shape[1])
    return loss_of_labels(logits, labels, loss, weights, class_weights, generator)


def loss_of_labels(
    logits: Tensor,
    labels: Tensor,
    loss: str | None = None,
    weights: Tensor | None = None,
    class_weights: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`segmentation_loss` of labels that are known to be classes: without a check, for which a GPU would be waited."""
    channels = logits.shape[1]
    if loss is None:
        loss = DEFAULT_LOSS["binary" if channels == 1 else "classes"]
    terms = parse_loss(loss, channels)
    if class_weights is not None and (channels == 1 or class_weights.shape != (channels,)):
        raise UserError(
            f"{class_weights.numel()} values for {channels} channels",
            key="class_weights",
            fix="give one a class (binary: none)",
        )
    # (N,K,h,w) -> (N,K,H,W)
    scores = F.interpolate(logits.float(), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    valid = labels != IGNORE
    if weights is None:
        weights = scores.new_full((len(scores),), 1 / max(len(scores), 1))
    if channels == 1:
        target, known = (labels == 1).to(scores.dtype), valid.to(scores.dtype)
        losses = [_TERMS[term](scores[:, 0], target, known, weights) for term in terms if term != "points"]
        if "points" in terms:
            losses += point_losses(logits[:, 0].float(), target, known, generator)
    else:
        target = labels.masked_fill(~valid, 0).long()
        class_weights = scores.new_ones(channels) if class_weights is None else class_weights.to(scores)
        pixel_weights = class_weights[target] * valid  # (N,H,W)
        log_probability = F.log_softmax(scores, dim=1)
        losses = [_CLASS_TERMS[term](log_probability, target, pixel_weights) for term in terms]
    return (sum(losses[1:], start=losses[0]) * weights).sum()


def _check_labels(labels: Tensor, channels: int) -> None:
    """Raise `UserError` where labels are no classes; warn of binary ones that look like a picture of 0 and 255."""
    classes = max(2, channels)
    if labels.dtype == torch.bool:
        return
    wrong = (labels != IGNORE) & ((labels < 0) | (labels >= classes) | (labels % 1 != 0))
    if wrong.any():
        held = "one channel takes 0, 1" if channels == 1 else f"{channels} channels take 0..{channels - 1}"
        raise UserError(
            f"value {labels[wrong][0].item():g}, but {held} and 255 = ignore",
            key="labels",
            fix="pass labels > 0 for one class, or masks through SamAdaptProcessor",
        )
    if channels == 1 and (labels == IGNORE).any() and not (labels == 1).any():
        warnings.warn(
            "labels: 0 and 255 = ignore, and no foreground; if 255 is the object, pass labels > 0", stacklevel=3
        )


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
    probability, wanted = scores.sigmoid(), target * weight
    intersection, wanted_area = (probability * wanted).sum(dim=(1, 2)), wanted.sum(dim=(1, 2))
    areas = (probability * weight).sum(dim=(1, 2)) + wanted_area
    smooth = (wanted_area == 0).to(scores.dtype)
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
    """Mean over a 31 x 31 window, zeros outside the image: `(N,H,W)` of 0 and 1 -> `(N,H,W)`.

    Differences of running sums, in integers: exact, without the 961 additions a pixel, deterministic on a GPU.
    """
    window, counts = _BORDER_WINDOW, mask
    for _ in range(2):
        sums = F.pad(counts, (window // 2 + 1, window // 2)).cumsum(-1, dtype=torch.int32)
        counts = (sums[..., window:] - sums[..., :-window]).mT  # along columns, then along rows
    return counts.to(mask.dtype) / window**2


_TERMS = {
    "bce": _bce,
    "bbce": _bbce,
    "iou": _iou,
    "dice": _dice,
    "structure": _structure,
    "structure_unweighted": _structure_unweighted,
}


def _truth(log_probability: Tensor, target: Tensor) -> Tensor:
    """Log-probability of the true class of each pixel: `(N,K,H,W)`, `(N,H,W)` -> `(N,H,W)`."""
    return log_probability.gather(1, target[:, None])[:, 0]


def _ce(log_probability: Tensor, target: Tensor, pixel_weights: Tensor) -> Tensor:
    return _pixel_mean(-_truth(log_probability, target), pixel_weights)


def _ce_official(log_probability: Tensor, target: Tensor, pixel_weights: Tensor) -> Tensor:
    return (-_truth(log_probability, target) * pixel_weights).mean(dim=(1, 2))


def _focal(log_probability: Tensor, target: Tensor, pixel_weights: Tensor) -> Tensor:
    truth = _truth(log_probability, target)
    # (1 - p) = -expm1(log p), exact where p is near 1
    return _pixel_mean(-truth * torch.expm1(truth) ** _FOCAL_GAMMA, pixel_weights)


def _class_dice(log_probability: Tensor, target: Tensor, pixel_weights: Tensor) -> Tensor:
    counted = (pixel_weights > 0)[:, None]  # (N,1,H,W)
    classes = torch.arange(log_probability.shape[1], device=target.device)
    truth = (target[:, None] == classes[:, None, None]) & counted  # (N,K,H,W)
    truth_area = truth.sum(dim=(2, 3))  # (N,K)
    probability = log_probability.exp() * counted
    intersection = torch.where(truth, probability, 0).sum(dim=(2, 3))
    areas = probability.sum(dim=(2, 3)) + truth_area
    present = truth_area > 0
    dice = torch.where(present, 1 - 2 * intersection / areas.clamp(min=1), 0)
    return dice.sum(dim=1) / present.sum(dim=1).clamp(min=1)


_CLASS_TERMS = {"ce": _ce, "ce_official": _ce_official, "dice": _class_dice, "focal": _focal}
