"""Learning without forgetting: the model at the start of a task teaches what it knew, on the new images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import UserError
from ...inference.forward import segment
from ...inference.loading import load_adapted
from ...losses.points import losses_at, sample_points, uncertain_points
from .naive import Naive


if TYPE_CHECKING:
    from ...training.loop import TrainingLoop


@dataclass(frozen=True)
class LwfArgs:
    """Attributes:
    weight: of the distillation beside the loss, at least 0 (the official runs: 3).
    form: `soft` is the cross-entropy of all pixels with the teacher's probabilities, least where both agree.
        `official` is cross-entropy and Dice at the student's uncertain points; its Dice is not least where they agree.
    """

    weight: float = 3.0
    form: Literal["soft", "official"] = "soft"

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise UserError(f"weight {self.weight} must be at least 0", key="protocol_args")


class Lwf(Naive):
    """Naive, with distillation from the adapter of the task before."""

    args_cls = LwfArgs

    def prepare(self, task: int, loop: TrainingLoop) -> None:
        if task == 0:
            return
        teacher = load_adapted(str(self.folder(task - 1))).model.to(loop.accelerator.device).requires_grad_(False)

        def distil(batch: dict[str, Any], logits: list[Tensor]) -> Tensor:
            inputs = batch.get("pixel_values"), batch["prompts"]
            with torch.no_grad(), loop.accelerator.autocast():
                taught = segment(teacher, *inputs, image_embeddings=batch.get("image_embeddings"))
            # Behind the masks of the prompts are those of their corrections, which the teacher has not seen.
            logits = [maps[: len(one)] for maps, one in zip(logits, taught)]
            return self.args.weight * distillation(logits, taught, batch["weight"], self.args.form)

        loop.regularizer = distil


def distillation(logits: Sequence[Tensor], taught: Sequence[Tensor], weight: Tensor, form: str = "soft") -> Tensor:
    """Loss of a student against its teacher, a mean over images, each a mean over its objects.

    Args:
        logits: the student's, per image (n, h, w).
        taught: the teacher's, alike.
        weight: (B,) of the images.
        form: see `LwfArgs`.
    """
    per_object = torch.cat([one.expand(len(maps)) / len(maps) for one, maps in zip(weight, logits)])  # (R,)
    student, teacher = torch.cat(list(logits)).float(), torch.cat(list(taught)).float()  # (R, h, w)
    if form == "soft":
        losses = F.binary_cross_entropy_with_logits(student, teacher.sigmoid(), reduction="none").mean(dim=(1, 2))
    else:
        points = uncertain_points(student)
        terms = losses_at(sample_points(student, points), sample_points(teacher, points).sigmoid())
        losses = torch.stack(list(terms)).sum(0)
    return (losses * per_object).sum() / len(logits)
