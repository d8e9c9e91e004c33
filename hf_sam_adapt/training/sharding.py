"""Weights that FSDP2 keeps in shards: gathered for what needs them whole, and put back."""

from __future__ import annotations

import copy

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from ..config.recipe import Recipe
from ..errors import UserError


class WholeModel:
    """The model that is trained, with all its weights: to score, to draw and to save it.

    Where FSDP2 shards it, a copy on the same device: the wrapper gathers weights for the forward of the whole alone,
    but scoring calls encoder and decoder apart. The copy costs one more set of the weights on each device, and none of
    gradients, optimizer states or activations.

    Args:
        model: before it is sharded.
        accelerator: that shards it.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator) -> None:
        self._model, self._copy = model, None
        if accelerator.distributed_type == DistributedType.FSDP:
            self._copy = copy.deepcopy(model).to(accelerator.device)

    def current(self) -> nn.Module:
        """The model with the weights that it has now; every process has to ask for it."""
        if self._copy is None:
            return self._model
        sharded = dict(self._model.named_parameters())
        with torch.no_grad():
            for name, value in self._copy.named_parameters():
                if value.requires_grad:
                    value.copy_(gathered(sharded[name]))
        return self._copy.train(self._model.training)


def gathered(value: torch.Tensor) -> torch.Tensor:
    """A tensor as a whole; of one in shards every process has to ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def write_into(parameter: nn.Parameter, value: torch.Tensor) -> None:
    """Give a parameter, whole or in shards, the values of a whole tensor that every process has."""
    if isinstance(parameter, DTensor):
        value = value.to(parameter.device, parameter.dtype)
        value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    parameter.copy_(value)


def check_sharding(accelerator: Accelerator) -> None:
    """Refuse ways of sharding that leave no whole weights where this package reads them.

    Raises:
        UserError: FSDP1, or DeepSpeed's ZeRO 3.
    """
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError(
            "FSDP1 flattens the weights, so that trained and frozen ones are not told apart any more",
            key="fsdp_version",
            where="the launch file",
            fix="use fsdp_version: 2, as recipes/accelerate/fsdp2.yaml does",
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        plugin = accelerator.state.deepspeed_plugin
        if plugin.zero_stage == 3:
            raise UserError(
                "ZeRO 3 leaves empty tensors in the place of the weights, which scoring and checkpoints read",
                key="zero_stage",
                where="the launch file",
                fix="use zero_stage: 2, or FSDP2 with recipes/accelerate/fsdp2.yaml",
            )


def tell_deepspeed(accelerator: Accelerator, recipe: Recipe) -> None:
    """Give DeepSpeed the recipe's batch size, which Accelerate would ask of a loader that it does not prepare."""
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        settings = accelerator.state.deepspeed_plugin.deepspeed_config
        settings["train_micro_batch_size_per_gpu"] = recipe.batch_size
        settings["gradient_accumulation_steps"] = recipe.gradient_accumulation_steps
