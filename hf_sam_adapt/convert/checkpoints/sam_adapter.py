"""Checkpoints of SAM-Adapter (arXiv 2304.09148) and CWSAM (arXiv 2401.02326): `model_epoch_*.pth`, whole models.

CWSAM's code has variants that its file names do not tell apart, nor do its tensors: which frequencies the prompts see,
and whether they are added at all. Who converts one has to say so.

Both trained on a positional matrix and a `no_mask_embed` that their code draws at random (it looks for SAM's under
other names), so these belong to the decoder and are part of the adapter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...errors import UserError
from ...tuners.cwsam import CwsamConfig
from ...tuners.sam_adapter import SamAdapterConfig
from .checkpoint import Checkpoint
from .engine import (
    WAY_OUT,
    Adapter,
    Request,
    Rules,
    Tensors,
    class_names,
    renamed,
    sam_config_of,
    split,
    write_converted,
)
from .meta_names import META_NAMES


_BLOCK = r"vision_encoder\.layers\.(\d+)\."
_GENERATOR = r"vision_encoder\.prompt_generator\."
_POSITION = "shared_image_embedding"


_FEATURE = "vision_encoder.patch_embed.sam_adapter_feature."
_PROMPTS: Rules = [
    (rf"{_GENERATOR}shared_mlp\.", "vision_encoder.patch_embed.sam_adapter_up."),
    (rf"{_GENERATOR}embedding_generator\.", f"{_FEATURE}embedding."),
    (rf"{_GENERATOR}prompt_generator\.proj\.", f"{_FEATURE}frequencies."),
    (rf"{_GENERATOR}lightweight_mlp_(\d+)\.0\.", r"vision_encoder.layers.\1.sam_adapter_tune."),
]
# The prompts' frequencies in the official code's variants; with both, half of the convolution sees either.
_FREQUENCIES = (["embedding", "high"], ["embedding", "low"], ["embedding", "low", "high"])
_DECODER_RULES: Rules = [
    (r"mask_decoder\.cls_upscaling\.0\.", "mask_decoder.sam_adapter_class_head.up."),
    (r"mask_decoder\.cls_upscaling\.1\.", "mask_decoder.sam_adapter_class_head.norm."),
    (r"mask_decoder\.cls_upscaling\.3\.", "mask_decoder.sam_adapter_class_head.conv."),
    (r"mask_decoder\.", "mask_decoder.sam_adapter_weights."),
    (r"prompt_encoder\.no_mask_embed\.", "prompt_encoder.sam_adapter_weights.no_mask_embed."),
    (rf"{_POSITION}\.", f"{_POSITION}."),
]


@dataclass(frozen=True)
class _Format:
    title: str
    config: type[SamAdapterConfig]
    encoder: Rules
    untold: Sequence[str]
    ignored: Sequence[tuple[str, str]] = ()  # (start of the name, what it is)


SAM_ADAPTER_UNTOLD = ("features", "frequency_rate")
CWSAM_UNTOLD = ("features", "frequency_rate", "use_prompts", "adapter_scale", "adapter_act")
_SAM_ADAPTER = _Format("SAM-Adapter", SamAdapterConfig, _PROMPTS, SAM_ADAPTER_UNTOLD)
_CWSAM = _Format(
    "CWSAM",
    CwsamConfig,
    [
        *_PROMPTS,
        (rf"{_BLOCK}Space_Adapter\.D_fc1\.", r"vision_encoder.layers.\1.sam_adapter_space.down."),
        (rf"{_BLOCK}Space_Adapter\.D_fc2\.", r"vision_encoder.layers.\1.sam_adapter_space.up."),
        (rf"{_BLOCK}MLP_Adapter\.D_fc1\.", r"vision_encoder.layers.\1.sam_adapter_mlp.down."),
        (rf"{_BLOCK}MLP_Adapter\.D_fc2\.", r"vision_encoder.layers.\1.sam_adapter_mlp.up."),
    ],
    CWSAM_UNTOLD,
    [
        (rf"{_BLOCK}Depth_Adapter\.", "of the Depth_Adapters, which the official code never calls,"),
        (r"criterionBCE\.weight$", "of the loss (class weights)"),
    ],
)


def convert_sam_adapter(checkpoint: Checkpoint, folder: Path, request: Request) -> list[str]:
    """Write SAM-Adapter's adapter; arguments, result and errors as for `convert_conv_lora`."""
    return _convert(_SAM_ADAPTER, checkpoint, folder, request)


def convert_cwsam(checkpoint: Checkpoint, folder: Path, request: Request) -> list[str]:
    """Write CWSAM's adapter; arguments, result and errors as for `convert_conv_lora`."""
    return _convert(_CWSAM, checkpoint, folder, request)


def _convert(format: _Format, checkpoint: Checkpoint, folder: Path, request: Request) -> list[str]:
    state = renamed(checkpoint.tensors, META_NAMES)
    notes = []
    for pattern, meaning in format.ignored:
        kept = {name: value for name, value in state.items() if not re.match(pattern, name)}
        if len(kept) < len(state):
            notes.append(f"{len(state) - len(kept)} weights {meaning} left out.")
        state = kept
    tensors, rest = split(state, format.encoder)
    trained, frozen = split(rest, _DECODER_RULES)
    up = tensors.get("vision_encoder.patch_embed.sam_adapter_up.weight")
    if up is None or up.ndim != 2:
        missing = "image_encoder.prompt_generator.shared_mlp and so on"
        raise UserError(f"{checkpoint} has no {format.title} weights ({missing})", key="checkpoint")
    fields: dict[str, Any] = {"scale_factor": up.shape[0] // up.shape[1], "faithful": True} | request.fields
    if format is _CWSAM:
        fields |= _block_fields(tensors, up.shape[0])
        tensors, prompts_left_out = _without_unused_prompts(tensors, fields, checkpoint)
        notes += prompts_left_out
    if request.decoder is None:
        if not trained:
            raise UserError(f"{checkpoint} has no mask_decoder weights{WAY_OUT}", key="checkpoint")
        tensors |= trained
        fields["modules_to_save"] = [_POSITION]
        if format is _CWSAM:
            fields |= _class_fields(trained, str(checkpoint), request.classes)
            if fields["id2label"] is None:
                notes.append(f"{fields['num_labels']} classes without names, which --classes gives.")
    else:
        fields["decoder"] = "frozen"
        notes.append(f"{len(trained)} weights of the mask decoder and its embeddings left out, as asked.")
    config = format.config(**fields)
    if config.use_prompts:
        tensors = _with_frequencies(tensors, config.features, checkpoint)
    sizes = state | tensors
    if (convolution := tensors.get(f"{_FEATURE}{config.features[-1]}.weight")) is not None:  # as large as a patch
        sizes.setdefault("vision_encoder.patch_embed.projection.weight", convolution)
    sam_config = sam_config_of(sizes, up.shape[0]) if request.base is None else request.base.model.config
    adapter = Adapter(config, tensors, frozen, notes, format.untold)
    return write_converted(adapter, sam_config, folder, checkpoint, request, title=format.title)


def _with_frequencies(tensors: Tensors, features: list[str], checkpoint: Checkpoint) -> Tensors:
    """The convolution of the frequencies under the features' names; of both, each with the other's half zero."""
    if features not in _FREQUENCIES:
        known = " or ".join(str(names) for names in _FREQUENCIES)
        raise UserError(f"{features} is none of the official code's", key="method_args.features", fix=f"use {known}")
    result = {name: value for name, value in tensors.items() if not name.startswith(f"{_FEATURE}frequencies.")}
    for name, value in tensors.items():
        if name in result:
            continue
        kind = name.removeprefix(f"{_FEATURE}frequencies.")
        parts = [value]
        if len(features) > 2:
            if value.ndim == 0 or len(value) % 2:
                raise UserError(f"{checkpoint}: {checkpoint.name_of(name, value)} has no two halves", key="checkpoint")
            low, high = value.chunk(2)
            parts = [torch.cat([low, high.new_zeros(high.shape)]), torch.cat([low.new_zeros(low.shape), high])]
        result |= {f"{_FEATURE}{feature}.{kind}": part for feature, part in zip(features[1:], parts, strict=True)}
    return result


def _without_unused_prompts(
    tensors: Tensors, fields: dict[str, Any], checkpoint: Checkpoint
) -> tuple[Tensors, list[str]]:
    """The tensors but for those of prompts that are not added, and a sentence on these.

    Raises:
        UserError: the prompts were never trained and nobody said that they are not added.
    """
    prompts = [name for name in tensors if "sam_adapter_" in name and not re.search("_(space|mlp)[.]", name)]
    if "use_prompts" not in fields and not any(tensors[n].count_nonzero() for n in prompts if n.endswith(".bias")):
        raise UserError(
            f"{checkpoint}: all biases of the prompt_generator are zero, as before any training, so this may be a "
            "variant of the code that adds no prompts",
            key="checkpoint",
            fix="say so by --method_args.use_prompts false (or true)",
        )
    if fields.get("use_prompts", True):
        return tensors, []
    kept = {name: value for name, value in tensors.items() if name not in prompts}
    return kept, [f"{len(prompts)} weights of the prompts, which are not added, left out."]


def _block_fields(tensors: Tensors, width: int) -> dict[str, Any]:
    """Width of the blocks' adapters, or that there are none."""
    if not any("sam_adapter_space." in name or "sam_adapter_mlp." in name for name in tensors):
        return {"block_adapters": False}
    first = tensors.get("vision_encoder.layers.0.sam_adapter_space.down.weight")
    return {} if first is None else {"adapter_ratio": len(first) / width}  # what is missing is an error later


def _class_fields(trained: Tensors, source: str, classes: list[str] | None) -> dict[str, Any]:
    """Number of classes: the head's last convolution has c K channels, its first 2 c."""
    head = "mask_decoder.sam_adapter_class_head."
    first, last = trained.get(f"{head}up.weight"), trained.get(f"{head}conv.weight")
    if first is None or last is None:
        raise UserError(f"{source} has no class head (mask_decoder.cls_upscaling){WAY_OUT}", key="checkpoint")
    labels = 2 * len(last) // len(first)
    return {"num_labels": labels, "id2label": class_names(classes, labels)}
