"""Gradient checkpointing of SAM's encoder: whole blocks, or all of a block but its attention."""

from __future__ import annotations

from typing import Any, Literal

import torch
from peft import PeftModel
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts
from transformers import SamModel

from .attention import tiles
from .families import vision_encoder


_aten = torch.ops.aten
# What backward needs of them is their output and its logarithms of sums: little memory for a third of a block's time.
ATTENTION = frozenset(
    {
        tiles.OPERATION,
        _aten._scaled_dot_product_flash_attention_for_cpu.default,
        _aten._scaled_dot_product_flash_attention.default,
        _aten._scaled_dot_product_efficient_attention.default,
        _aten._scaled_dot_product_cudnn_attention.default,
    }
)


def enable_checkpointing(model: SamModel | PeftModel, kind: Literal[True, "selective"]) -> None:
    """Let the encoder's blocks keep little for backward and compute the rest again.

    Args:
        model: the model to train.
        kind: True keeps the blocks' inputs; "selective" what their attention returns, too, where it is one of
            `ATTENTION` (not the bias of all pairs in `eager` and `sdpa`).
    """
    how: dict[str, Any] = {"use_reentrant": False}
    if kind == "selective":
        how["context_fn"] = _contexts
    sam: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    sam.supports_gradient_checkpointing = True  # SAM 2's and 3's classes do not say so, yet their blocks can
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=how)
    # Not SAM 2's and 3's decoders: an adapter's weights stand in for the base's during the call alone, and what is
    # computed again would see the base's.
    encoder = set(vision_encoder(model).modules())
    for module in model.modules():
        if vars(module).get("gradient_checkpointing", False) and module not in encoder:
            vars(module)["gradient_checkpointing"] = False


def _contexts() -> tuple[Any, Any]:
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in ATTENTION else CheckpointPolicy.PREFER_RECOMPUTE
