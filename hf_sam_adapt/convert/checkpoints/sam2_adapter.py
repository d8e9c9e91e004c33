"""Checkpoints of SAM2-Adapter (arXiv 2408.04579): `model_epoch_*.pth`, whole models of Hiera-L and a decoder.

The decoder that its code builds is not SAM 2's: two mask tokens, of which the second gives the mask; no point in the
place of no prompt; zeros for the embedding of no memory; a positional matrix and a `no_mask_embed` drawn at random;
and its weights were trained from random ones, conv_s0 and conv_s1 with them. The adapter holds all of that: the second
token stands first, and what the base's embedding of no memory adds is taken off `no_mask_embed`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from ...tuners.common.decoder import SAM2_ADAPTER_TOKENS
from ...tuners.sam_adapter import SamAdapterConfig
from ...tuners.sam_adapter.staged import Group, block_groups
from .checkpoint import Checkpoint
from .engine import WAY_OUT, Adapter, Request, Rules, Tensors, renamed, split, write_converted


UNTOLD = ("frequency_rate",)
NORMALIZATION = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}  # not SAM 2's
# Its transformer is SAM's in some versions of the code, SAM 2's in others.
SAM2_NAMES: Rules = [
    (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
    (r"^vision_encoder\.backbone\.patch_embed\.proj\.", "vision_encoder.backbone.patch_embed.projection."),
    (r"^(vision_encoder\.backbone\.blocks\.\d+)\.norm", r"\1.layer_norm"),
    (r"^(vision_encoder\.backbone\.blocks\.\d+\.mlp)\.layers\.0\.", r"\1.proj_in."),
    (r"^(vision_encoder\.backbone\.blocks\.\d+\.mlp)\.layers\.1\.", r"\1.proj_out."),
    (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
    (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
    (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
    (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    (r"^(mask_decoder\.output_hypernetworks_mlps\.\d+)\.layers\.0\.", r"\1.proj_in."),
    (r"^(mask_decoder\.output_hypernetworks_mlps\.\d+)\.layers\.2\.", r"\1.proj_out."),
    (r"^(mask_decoder\.output_hypernetworks_mlps\.\d+)\.layers\.1\.", r"\1.layers.0."),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm", r"\1.layer_norm"),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.(?:lin1|layers\.0)\.", r"\1.proj_in."),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp)\.(?:lin2|layers\.1)\.", r"\1.proj_out."),
    (r"^(mask_decoder\.transformer\..*)\.out_proj\.", r"\1.o_proj."),
    (r"^mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
    (r"^pe_layer\.positional_encoding_gaussian_matrix$", "shared_image_embedding.positional_embedding"),
    (r"^no_mask_embed\.", "prompt_encoder.no_mask_embed."),
]
_PATCHES = "vision_encoder.backbone.patch_embed."
_GENERATOR = re.compile(r"vision_encoder\.backbone\.prompt_generator\.(.*)")
_TUNE = re.compile(r"lightweight_mlp(\d)_(\d+)\.0\.(weight|bias)$")
_SHARED = (
    (re.compile(r"shared_mlp(\d)\.(weight|bias)$"), "sam_adapter_up.{}.{}"),
    (re.compile(r"embedding_generator(\d)\.(weight|bias)$"), "sam_adapter_feature.embedding.{}.{}"),
    (re.compile(r"handcrafted_generator(\d)\.((?:proj|norm)\.(?:weight|bias))$"), "sam_adapter_feature.high.{}.{}"),
)
# (start of the name, what it is)
_IGNORED = (
    (r"vision_encoder\.backbone\.patch_embed[1-4]\.", "of patch embeddings that the official code never calls"),
    (r"mask_decoder\.(iou_prediction_head|pred_obj_score_head)\.", "of heads that its loss does not reach"),
    (
        r"mask_decoder\.output_hypernetworks_mlps\.0\.",
        "of the first mask token's MLP, whose masks it does not return,",
    ),
)
_POSITION = "shared_image_embedding"
_NO_MASK = "prompt_encoder.no_mask_embed.weight"


def convert_sam2_adapter(checkpoint: Checkpoint, folder: Path, request: Request) -> list[str]:
    """Write SAM2-Adapter's adapter; arguments, result and errors as for `convert_conv_lora`."""
    if request.base is None:
        raise UserError(
            "a checkpoint of sam2-adapter needs its SAM 2, whose embedding of no memory its code leaves out",
            key="base",
            fix="name it, facebook/sam2-hiera-large for the published ones",
        )
    model: Any = request.base.model
    state, notes = renamed(checkpoint.tensors, SAM2_NAMES), []
    for pattern, meaning in _IGNORED:
        kept = {name: value for name, value in state.items() if not re.match(pattern, name)}
        if len(kept) < len(state):
            notes.append(f"{len(state) - len(kept)} weights {meaning} left out.")
        state = kept
    groups = block_groups(model.vision_encoder.backbone.blocks)
    tensors, rest, unused = _prompts(state, groups)
    ups = [tensors.get(f"{_PATCHES}sam_adapter_up.{group}.weight") for group in range(len(groups))]
    last = ups[-1]
    if last is None or any(up is None or up.ndim != 2 for up in ups):
        raise UserError(
            f"{checkpoint} has no SAM2-Adapter weights for {len(groups)} stages (image_encoder.trunk.prompt_generator."
            "shared_mlp1 and so on)",
            key="checkpoint",
        )
    if unused:
        notes.append(f"{unused} weights of prompts for blocks beyond those of a stage left out.")
    fields: dict[str, Any] = {"faithful": True, "scale_factor": last.shape[0] // last.shape[1]} | request.fields
    trained, frozen = split(rest, [(r"mask_decoder\.", "mask_decoder."), (_NO_MASK, _NO_MASK), (_POSITION, _POSITION)])
    if request.decoder is None:
        if _NO_MASK not in trained or "mask_decoder.mask_tokens.weight" not in trained:
            raise UserError(f"{checkpoint} has no mask_decoder weights{WAY_OUT}", key="checkpoint")
        tensors |= _decoder(trained, model.no_memory_embedding.detach(), checkpoint)
        fields["modules_to_save"] = [_POSITION]
    else:
        fields["decoder"] = "frozen"
        notes.append(f"{len(trained)} weights of the mask decoder and its embeddings left out, as asked.")
    adapter = Adapter(SamAdapterConfig(**fields), tensors, frozen, notes, UNTOLD, NORMALIZATION)
    return write_converted(adapter, model.config, folder, checkpoint, request, title="SAM2-Adapter")


def _prompts(state: Tensors, groups: list[Group]) -> tuple[Tensors, Tensors, int]:
    """The tensors of the prompts by their names here, the rest, and how many are of blocks beyond their group's."""
    tensors, rest, unused = {}, {}, 0
    for name, value in state.items():
        match = _GENERATOR.match(name)
        own = _own_name(match[1], groups) if match else None
        if own is None:
            rest[name] = value
        elif own:
            tensors[own] = value
        else:
            unused += 1
    return tensors, rest, unused


def _own_name(theirs: str, groups: list[Group]) -> str | None:
    """What a tensor of the prompt generator is called here; empty for one of a block that there is not."""
    if (tune := _TUNE.match(theirs)) and int(tune[1]) <= len(groups):
        group, block = groups[int(tune[1]) - 1], int(tune[2])
        if group.first + block > group.last:
            return ""
        return f"vision_encoder.backbone.blocks.{group.first + block}.sam_adapter_tune.{tune[3]}"
    for pattern, ours in _SHARED:
        if (match := pattern.match(theirs)) and int(match[1]) <= len(groups):
            return _PATCHES + ours.format(int(match[1]) - 1, match[2])
    return None


def _decoder(trained: Tensors, no_memory: torch.Tensor, checkpoint: Checkpoint) -> Tensors:
    """The decoder's tensors and its embeddings, as the overlays of the adapter hold them."""
    tensors = {}
    for name, value in trained.items():
        if name == "mask_decoder.mask_tokens.weight":
            if len(value) != SAM2_ADAPTER_TOKENS:
                raise UserError(
                    f"{checkpoint}: {len(value)} mask tokens, SAM2-Adapter has {SAM2_ADAPTER_TOKENS}", key="checkpoint"
                )
            value = value.flip(0)
        elif name == _NO_MASK:
            value = value - no_memory.reshape(1, -1).to(value)
        owner, _, inside = name.replace("hypernetworks_mlps.1.", "hypernetworks_mlps.0.").partition(".")
        tensors[name if owner == _POSITION else f"{owner}.sam_adapter_weights.{inside}"] = value
    return tensors
