"""Correction rounds of a training (SAM, arXiv 2304.02643, appendix A, "Training algorithm")."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch

from ..data.images import IGNORE
from .centres import at_centres, centres
from .prompt import Prompt


def corrected(prompt: Prompt, logits: torch.Tensor, number: int) -> Prompt:
    """The prompt of the next round: one more point where the mask is wrong, and the mask itself.

    The point is drawn evenly from the wrong pixels of each object, positive where the object was missed and negative
    where it was claimed; of a mask without a wrong pixel from all pixels. Ignored pixels are never wrong. The logits
    take the place of an earlier mask; no gradient flows through them.

    SAM ends its rounds with two that show no new point; here every round shows one.

    Args:
        prompt: n > 0 objects in input coordinates, with `targets` uint8 (n, S, S) and `draws` (n, rounds).
        logits: (n, h, w) of the round before.
        number: of the round, 0 for the first correction: the column of `draws`.
    """
    targets, draws = cast(torch.Tensor, prompt.targets), cast(torch.Tensor, prompt.draws)
    height, width = logits.shape[-2:]
    truth = at_centres(targets, height, width).flatten(1)  # (n, h w)
    known = truth != IGNORE
    wrong = ((logits.flatten(1) > 0) != (truth == 1)) & known
    region = torch.where(wrong.any(1, keepdim=True), wrong, known)
    count = region.sum(1)
    rank = torch.minimum((draws[:, number] * count).long(), count - 1)
    # The place of the region's pixel number `rank`: that many places have fewer or as many pixels before and at them.
    place = (region.cumsum(1) <= rank[:, None]).sum(1)  # (n,)
    columns, rows = (centres(cells, targets.shape[-1], place.device) for cells in (width, height))
    points = torch.stack([columns[place % width], rows[place // width]], dim=-1)  # (n, 2)
    points, labels = points[:, None].float(), (truth.gather(1, place[:, None]) == 1).long()  # (n, 1, 2), (n, 1)
    fields: dict[str, Any] = {"points": points, "point_labels": labels}
    if prompt.points is not None:
        fields["points"] = torch.cat([cast(torch.Tensor, prompt.points), points], dim=1)
        fields["point_labels"] = torch.cat([cast(torch.Tensor, prompt.point_labels), labels], dim=1)
    return dataclasses.replace(prompt, masks=logits.detach().float(), **fields)
