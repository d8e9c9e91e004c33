"""Checkpoints of SAM-Adapter (arXiv 2304.09148) and CWSAM (arXiv 2401.02326): `model_epoch_*.pth`, whole models.

Both trained on a positional matrix and a `no_mask_embed` that their code draws at random (it looks for SAM's under
other names), so these belong to the decoder and are part of the adapter.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..tuners.cwsam import CwsamConfig
from ..tuners.sam_adapter import SamAdapterConfig
from .engine import WAY_OUT, Adapter, Base, Rules, Tensors, renamed, sam_config_of, split, write_converted
from .meta_names import META_NAMES


_BLOCK = r"vision_encoder\.layers\.(\d+)\."
_GENERATOR = r"vision_encoder\.prompt_generator\."
_POSITION = "shared_image_embedding"


def _prompt_rules(feature: str) -> Rules:
    return [
        (rf"{_GENERATOR}shared_mlp\.", "vision_encoder.patch_embed.sam_adapter_up."),
        (rf"{_GENERATOR}embedding_generator\.", "vision_encoder.patch_embed.sam_adapter_feature.embedding."),
        (rf"{_GENERATOR}prompt_generator\.proj\.", f"vision_encoder.patch_embed.sam_adapter_feature.{feature}."),
        (rf"{_GENERATOR}lightweight_mlp_(\d+)\.0\.", r"vision_encoder.layers.\1.sam_adapter_tune."),
    ]


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
    encoder: Rules
    ignored: Sequence[tuple[str, str]] = ()  # (start of the name, what it is)


_SAM_ADAPTER = _Format("SAM-Adapter", _prompt_rules("high"))
_CWSAM = _Format(
    "CWSAM",
    [
        *_prompt_rules("low"),
        (rf"{_BLOCK}Space_Adapter\.D_fc1\.", r"vision_encoder.layers.\1.sam_adapter_space.down."),
        (rf"{_BLOCK}Space_Adapter\.D_fc2\.", r"vision_encoder.layers.\1.sam_adapter_space.up."),
        (rf"{_BLOCK}MLP_Adapter\.D_fc1\.", r"vision_encoder.layers.\1.sam_adapter_mlp.down."),
        (rf"{_BLOCK}MLP_Adapter\.D_fc2\.", r"vision_encoder.layers.\1.sam_adapter_mlp.up."),
    ],
    [
        (rf"{_BLOCK}Depth_Adapter\.", "of the Depth_Adapters, which the official code never calls,"),
        (r"criterionBCE\.weight$", "of the loss (class weights)"),
    ],
)


def convert_sam_adapter(state: Tensors, folder: Path, **arguments: Any) -> list[str]:
    """Write SAM-Adapter's adapter; arguments, result and errors as for `convert_conv_lora`."""
    return _convert(_SAM_ADAPTER, state, folder, **arguments)


def convert_cwsam(state: Tensors, folder: Path, **arguments: Any) -> list[str]:
    """Write CWSAM's adapter; arguments, result and errors as for `convert_conv_lora`."""
    return _convert(_CWSAM, state, folder, **arguments)


def _convert(
    format: _Format,
    state: Tensors,
    folder: Path,
    *,
    source: str,
    decoder: str | None,
    base: Base | None,
    image_size: int | None,
) -> list[str]:
    state = renamed(state, META_NAMES)
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
        raise UserError(
            f"checkpoint: {source} has no {format.title} weights (image_encoder.prompt_generator.shared_mlp and so on)"
        )
    fields: dict[str, Any] = {"scale_factor": up.shape[0] // up.shape[1], "faithful": True}
    if format is _CWSAM:
        fields |= _block_fields(tensors, up.shape[0], source)
    if decoder is None:
        if not trained:
            raise UserError(f"checkpoint: {source} has no mask_decoder weights{WAY_OUT}")
        tensors |= trained
        fields |= {"modules_to_save": [_POSITION]} | (_class_fields(trained, source) if format is _CWSAM else {})
    else:
        fields["decoder"] = "frozen"
        notes.append(f"{len(trained)} weights of the mask decoder and its embeddings left out, as asked.")
    config = (CwsamConfig if format is _CWSAM else SamAdapterConfig)(**fields)
    sam_config = sam_config_of(state, up.shape[0]) if base is None else base.model.config
    adapter = Adapter(config, tensors, frozen, notes)
    return write_converted(
        adapter, sam_config, folder, source=source, title=format.title, base=base, image_size=image_size
    )


def _block_fields(tensors: Tensors, width: int, source: str) -> dict[str, Any]:
    first = tensors.get("vision_encoder.layers.0.sam_adapter_space.down.weight")
    if first is None:
        raise UserError(f"checkpoint: {source} has no CWSAM adapters in its blocks (Space_Adapter and MLP_Adapter)")
    return {"adapter_ratio": len(first) / width}


def _class_fields(trained: Tensors, source: str) -> dict[str, Any]:
    """Number of classes: the head's last convolution has c K channels, its first 2 c."""
    head = "mask_decoder.sam_adapter_class_head."
    first, last = trained.get(f"{head}up.weight"), trained.get(f"{head}conv.weight")
    if first is None or last is None:
        raise UserError(f"checkpoint: {source} has no class head (mask_decoder.cls_upscaling){WAY_OUT}")
    return {"num_labels": 2 * len(last) // len(first)}
