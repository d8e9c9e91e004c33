"""How unsure a model is of what it finds in an image, to say which images a person should look at first."""

from __future__ import annotations

import numpy as np
import torch

from .instances import OFFSET, stability
from .predictor import Prediction, logit_of


def uncertainty(prediction: Prediction, threshold: float = 0.5) -> dict[str, float]:
    """Two measures of how unsure a prediction is, 0 = sure.

    Args:
        threshold: probability above which a pixel is foreground.

    Returns:
        `entropy`: of the probabilities, mean over the pixels in parts of that of an even choice, 0..1. Of one class
        also `instability`: 1 - the IoU of the masks whose logits are above and below the threshold by at least 1
        (`stability`), 0..1; 0 where neither has a pixel, 1 where something is nearly found.
    """
    logits = torch.from_numpy(prediction.logits)
    if prediction.classes is not None:
        chances = logits.softmax(dim=0)
        nats = torch.special.entr(chances).sum(dim=0).mean()
        return {"entropy": float(nats / np.log(len(chances)))}
    chances = logits.sigmoid()
    nats = (torch.special.entr(chances) + torch.special.entr(1 - chances)).mean()
    moved = (logits - logit_of(threshold))[None]  # (1, H, W)
    stable = float(stability(moved, OFFSET)) if (moved > -OFFSET).any() else 1.0
    return {"instability": 1 - stable, "entropy": float(nats / np.log(2))}


def rank_key(measures: dict[str, float]) -> tuple[float, float]:
    """By what images are ranked, the least sure last: the instability of one class, then the entropy."""
    return measures.get("instability", 0.0), measures["entropy"]
