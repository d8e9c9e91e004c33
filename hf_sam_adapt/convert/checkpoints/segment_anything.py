"""Whole SAMs under the names of Meta's segment-anything, written and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import SamConfig, SamModel

from ...errors import UserError
from ...files import follow_umask, whole_folder
from ...sam.families import encoder_shape, vision_encoder
from ...sam.input_channels import input_channels
from ...sam.processing import SamAdaptProcessor
from .checkpoint import Checkpoint, check_finite
from .engine import Request, Tensors, check_image_size, renamed, sam_config_of
from .meta_names import META_NAMES, POSITIONS, PROMPT_ENCODER_NAMES, PROMPT_POSITIONS, TO_META_NAMES


# What `sam_model_registry` builds: width, blocks, global blocks, heads; at 1024 pixels with patches of 16.
REGISTRY = {
    "vit_b": (768, 12, (2, 5, 8, 11), 12),
    "vit_l": (1024, 24, (5, 11, 17, 23), 16),
    "vit_h": (1280, 32, (7, 15, 23, 31), 16),
}


def meta_state(sam: nn.Module) -> Tensors:
    """The weights of a `SamModel` by segment-anything's names."""
    state = {name: value for name, value in sam.state_dict().items() if name != POSITIONS}
    return renamed(state, TO_META_NAMES)


def registry_name(sam: nn.Module) -> str | None:
    """The entry of `sam_model_registry` that builds a model of this SAM's sizes; None where none does."""
    shape = encoder_shape(sam)
    encoder: Any = vision_encoder(sam)
    sizes = (shape.hidden_size, shape.num_hidden_layers, shape.global_blocks, encoder.config.num_attention_heads)
    fits = shape.image_size == 1024 and shape.patch_size == 16 and input_channels(encoder) == 3
    return next((name for name, known in REGISTRY.items() if known == sizes and fits), None)


def sam_of_checkpoint(checkpoint: Checkpoint, config: Any = None) -> SamModel:
    """The `SamModel` that a checkpoint of segment-anything holds.

    Args:
        checkpoint: its tensors.
        config: of its sizes; None: that of the registry's model.

    Raises:
        UserError: no such checkpoint, or weights missing, unknown or of other sizes.
    """
    state = renamed(checkpoint.tensors, [*META_NAMES, *PROMPT_ENCODER_NAMES])
    if PROMPT_POSITIONS in state:
        state[POSITIONS] = state[PROMPT_POSITIONS]
    check_finite(state, checkpoint)
    config = _registry_config(state, checkpoint) if config is None else config
    with torch.device("meta"):
        sam = SamModel(config)
    expected = sam.state_dict()
    wrong = sorted(expected.keys() ^ state.keys())
    wrong += [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if wrong:
        raise UserError(
            f"{checkpoint}: {len(wrong)} weights are missing, unknown or of other sizes, the first is {wrong[0]}",
            key="checkpoint",
            fix="name a SAM of its sizes with --base",
        )
    sam.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    return sam.eval()


def convert_segment_anything(checkpoint: Checkpoint, folder: Path, request: Request) -> list[str]:
    """Write the model folder of a checkpoint of segment-anything; what was assumed, in sentences."""
    base = request.base
    if request.decoder is not None:
        raise UserError("a whole SAM has its decoder", key="decoder", fix="leave it out")
    sam = sam_of_checkpoint(checkpoint, None if base is None else base.model.config)
    shape = encoder_shape(sam)
    check_image_size(shape.image_size, request.image_size)
    processor = SamAdaptProcessor(shape.image_size, shape.patch_size) if base is None else base.processor
    with whole_folder(folder) as part:
        sam.save_pretrained(part)
        processor.save_pretrained(part)
        follow_umask(part)
    return [f"A SAM of the sizes of {registry_name(sam) or (base.name if base else 'no registry entry')}."]


def _registry_config(state: Tensors, checkpoint: Checkpoint) -> SamConfig:
    width = state.get("vision_encoder.patch_embed.projection.weight", torch.empty(0)).shape[0]
    known = next((known for known in REGISTRY.values() if known[0] == width), None)
    if known is None:
        raise UserError(
            f"{checkpoint} is no SAM of segment-anything's registry", key="checkpoint", fix="name its sizes by --base"
        )
    config = sam_config_of(state, width)
    vision: Any = config.vision_config
    vision.global_attn_indexes, vision.num_attention_heads, vision.mlp_dim = list(known[2]), known[3], 4 * width
    return config
