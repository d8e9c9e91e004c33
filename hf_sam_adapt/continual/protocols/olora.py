"""O-LoRA: every task adds a LoRA whose rows are orthogonal to those of the tasks before, which stay as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...config.recipe import Recipe
from ...errors import UserError
from ...inference.loading import load_adapted
from ...tuners.stock import LORA_SIZE
from .naive import Naive


if TYPE_CHECKING:
    from ...training.loop import TrainingLoop
    from ..run import ContinualRun


@dataclass(frozen=True)
class OloraArgs:
    """Attributes:
    weight: of the sum of |A_old A_new^T| over all layers.
    """

    weight: float = 0.5


class Olora(Naive):
    """One plain LoRA, whose rank grows by the recipe's with each task: the LoRAs of all tasks side by side, so summed.

    The rows and columns of earlier tasks are frozen. What `modules_to_save` names, by default the mask decoder, has no
    such parts and is trained on.
    """

    args_cls = OloraArgs

    def __init__(self, run: ContinualRun, args: OloraArgs) -> None:
        super().__init__(run, args)
        recipe = run.recipe
        if recipe.method != "lora" or recipe.adapter is not None:
            raise UserError(
                f"olora adds up fresh LoRAs, not method {recipe.method}",
                key="protocol",
                fix="use method lora, without adapter",
            )
        for name in ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern"):
            if recipe.method_args.get(name):
                raise UserError(
                    "olora adds up LoRAs of one rank and one scaling",
                    key=f"method_args.{name}",
                    fix="leave it out, or use another protocol",
                )
        fields = LORA_SIZE | recipe.method_args
        self.rank, self.alpha = fields["r"], fields["lora_alpha"]

    def recipe(self, task: int) -> Recipe:
        recipe = self.run.recipe.task(self.run.domains[task], self.folder(task))
        # The same scaling alpha / r for all of them.
        grown = {"r": self.rank * (task + 1), "lora_alpha": self.alpha * (task + 1)}
        return dataclasses.replace(recipe, method_args=recipe.method_args | grown)

    def prepare(self, task: int, loop: TrainingLoop) -> None:
        if task == 0:
            return
        earlier = dict(load_adapted(str(self.folder(task - 1))).model.named_parameters())
        parts, rank = [], self.rank * task
        for name, value in loop.model.named_parameters():
            old = earlier[name].detach().to(value.device)
            if value.requires_grad:
                part = old_part(name, value, rank)
                part.copy_(old)
                if part.shape != value.shape:
                    parts.append((name, value, old))
                    value.register_hook(lambda gradient, name=name: without_old(name, gradient, rank))

        def restore(*_: Any) -> None:
            # Their gradient is zero, but weight decay moves them.
            for name, value, old in parts:
                old_part(name, value, rank).copy_(old)

        loop.optimizer.optimizer.register_step_post_hook(restore)
        down = [value for name, value, _ in parts if ".lora_A." in name]
        loop.regularizer = lambda batch, logits: self.args.weight * overlap_of_rows(down, rank)


def old_part(name: str, value: nn.Parameter, rank: int) -> Tensor:
    """A view of what earlier tasks left in a parameter: rows of A, columns of B, all of any other."""
    if ".lora_A." in name:
        return value.data[:rank]
    return value.data[:, :rank] if ".lora_B." in name else value.data


def without_old(name: str, gradient: Tensor, rank: int) -> Tensor:
    """The gradient with zeros in the part of earlier tasks."""
    mask = torch.ones_like(gradient)
    (mask[:rank] if ".lora_A." in name else mask[:, :rank]).zero_()
    return gradient * mask


def overlap_of_rows(down: Sequence[Tensor], rank: int) -> Tensor:
    """Sum over layers of |A_old A_new^T|, from matrices (rank of all tasks, D)."""
    return torch.stack([(value[:rank].detach() @ value[rank:].T).abs().sum() for value in down]).sum()
