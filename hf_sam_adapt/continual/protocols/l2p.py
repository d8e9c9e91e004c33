"""Learning to prompt: one pool of prompts for all tasks, around a frozen SAM."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...config.recipe import Recipe
from ...errors import UserError
from .naive import Naive


if TYPE_CHECKING:
    from ..run import ContinualRun


@dataclass(frozen=True)
class L2pArgs:
    """Fields of `L2pConfig`."""

    pool_size: int = 40
    prompt_length: int = 5
    top_k: int = 5
    key_weight: float = 1.0


class L2p(Naive):
    """Naive, with the prompt pool as the only thing that is trained: the recipe's `method` plays no part."""

    args_cls = L2pArgs
    method = "l2p"  # type: ignore[assignment]

    def __init__(self, run: ContinualRun, args: L2pArgs) -> None:
        super().__init__(run, args)
        if run.recipe.adapter is not None:
            raise UserError("the prompts of l2p belong to a plain SAM", key="adapter", fix="leave adapter out")
        if run.recipe.method_args:
            given = next(iter(run.recipe.method_args))
            raise UserError(
                "protocol l2p takes no method", key=f"method_args.{given}", fix="set the prompts by protocol_args"
            )

    def recipe(self, task: int) -> Recipe:
        return dataclasses.replace(super().recipe(task), method="l2p", method_args={} if task else vars(self.args))
