"""Cross-entropy and Dice at sampled points, most of them where the mask is uncertain (PointRend; HQ-SAM's loss)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


NUM_POINTS = 112 * 112
OVERSAMPLING = 3
UNCERTAIN = 0.75  # share of the points that are the most uncertain ones of three times as many candidates


def point_losses(
    logits: Tensor, targets: Tensor, valid: Tensor | None = None, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy and Dice of each mask at 12,544 points of its own, bilinear between pixels.

    Outside a mask both logits and targets count as 0, as published, so a point within half a pixel of the border
    blends into 0.

    Args:
        logits: float (N, h, w).
        targets: float (N, H, W) in 0..1, of any size.
        valid: float (N, H, W), 0 where a target is to be ignored; None = nowhere.
        generator: of the points; torch's own when None.

    Returns:
        Two (N,): mean cross-entropy, and 1 - (2 sum(py) + 1) / (sum p + sum y + 1).
    """
    points = uncertain_points(logits, generator)
    scores, target = sample_points(logits, points), sample_points(targets, points)  # (N, P)
    # A point beside an ignored pixel has a part of it.
    return losses_at(scores, target, None if valid is None else (sample_points(1 - valid, points) == 0).float())


def losses_at(scores: Tensor, target: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cross-entropy and Dice (N,) of the values at P points a mask.

    Args:
        scores: logits (N, P).
        target: (N, P) in 0..1.
        weight: (N, P), 0 for points that do not count; None = all do.
    """
    weight = torch.ones_like(target) if weight is None else weight
    bce = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
    bce = (bce * weight).sum(1) / weight.sum(1).clamp(min=1)
    probability, target = scores.sigmoid() * weight, target * weight
    dice = 1 - (2 * (probability * target).sum(1) + 1) / (probability.sum(1) + target.sum(1) + 1)
    return bce, dice


@torch.no_grad()
def uncertain_points(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Points (N, 12544, 2), x and y in 0..1: three quarters with the smallest |logit|, the rest uniform.

    Args:
        logits: float (N, h, w).
    """
    uncertain = int(UNCERTAIN * NUM_POINTS)
    shape = (len(logits), OVERSAMPLING * NUM_POINTS, 2)
    candidates = torch.rand(shape, generator=generator, device=logits.device)
    order = sample_points(logits, candidates).abs().topk(uncertain, dim=1, largest=False).indices  # (N, P')
    chosen = candidates.gather(1, order[..., None].expand(-1, -1, 2))
    rest = torch.rand((len(logits), NUM_POINTS - uncertain, 2), generator=generator, device=logits.device)
    return torch.cat([chosen, rest], dim=1)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear values (N, P) of maps (N, h, w) at points (N, P, 2), x and y in 0..1 over the whole map."""
    grid = 2 * points[:, :, None] - 1  # (N, P, 1, 2) in -1..1
    return F.grid_sample(maps[:, None], grid, align_corners=False)[:, 0, :, 0]
