"""AdamW and the learning-rate schedule, a function of the step (SAM-Adapter §4.1, per step instead of epoch)."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from ..config.recipe import ResolvedRecipe


# The published schedule falls from 2e-4 to 1e-7.
FINAL_FRACTION = 5e-4


def warmup_steps(warmup: float, total_steps: int) -> int:
    """The recipe's `warmup` in optimizer steps: below 1 it is a fraction of `total_steps`."""
    return min(total_steps, round(warmup * total_steps) if warmup < 1 else int(warmup))


def learning_rate_at(
    step: int,
    *,
    highest: float,
    total_steps: int,
    warmup: int = 0,
    scheduler: str = "cosine",
    lowest: float | None = None,
) -> float:
    """Learning rate of optimizer step `step` (from 0): a linear rise over `warmup` steps, then the fall.

    `cosine` and `linear` fall to `lowest`, None: 5e-4 of the highest. `step` divides it by ten after 10/24 and 20/24
    of the training, HQ-SAM's and MoDA's schedule (StepLR(10, 0.1) over 24 epochs), down to `lowest`.
    """
    if step < warmup:
        return highest * (step + 1) / warmup
    done, length = step - warmup, max(1, total_steps - warmup)
    if scheduler == "step":
        # In integers: 24 epochs of any length fall exactly at their ends.
        return max(lowest or 0.0, highest * 0.1 ** (done * 24 // (10 * length)))
    progress = done / length
    remaining = (1 + math.cos(math.pi * progress)) / 2 if scheduler == "cosine" else 1 - progress
    lowest = highest * FINAL_FRACTION if lowest is None else lowest
    return lowest + (highest - lowest) * remaining


def build_optimizer(
    parameters: Iterable[nn.Parameter], recipe: ResolvedRecipe, device: torch.device
) -> torch.optim.AdamW:
    """AdamW over the trainable ones of `parameters`, fused where torch has it; vectors do not decay.

    Those are biases and norms, for which zero is no better than another value.
    """
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    fused = device.type in ("cpu", "cuda")
    kinds = [(recipe.weight_decay, [p for p in trainable if p.ndim > 1]), (0.0, [p for p in trainable if p.ndim <= 1])]
    groups = [{"params": params, "weight_decay": decay} for decay, params in kinds if params]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=fused)
