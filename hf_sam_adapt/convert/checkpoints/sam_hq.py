"""Checkpoints of SAM-HQ (arXiv 2306.01567): the HQ head beside SAM's frozen decoder becomes an adapter of SAM.

The authors' `sam_hq_vit_*.pth`, or the `model.safetensors` of a `SamHQModel`. Both hold all of SAM beside the head, as
it was. transformers' own `SamHQModel` upscales the image maps of before the decoder's attention; here the head sees
those behind it, as in the authors' code.
"""

from __future__ import annotations

from pathlib import Path

from ...errors import UserError
from ...tuners.sam_decoder import SamDecoderConfig
from .checkpoint import Checkpoint
from .cosam import HEAD, HEAD_RULES
from .engine import Adapter, Request, Rules, renamed, sam_config_of, split, write_converted
from .meta_names import META_NAMES, PROMPT_ENCODER_NAMES


# The names of transformers' `SamHQMaskDecoder`.
_TRANSFORMERS: Rules = [
    (rf"^mask_decoder\.{theirs}\.", f"mask_decoder.{ours}.")
    for theirs, ours in (
        ("hq_token", "hf_token"),
        ("hq_mask_mlp", "hf_mlp"),
        ("compress_vit_conv1", "compress_vit_feat.0"),
        ("compress_vit_norm", "compress_vit_feat.1"),
        ("compress_vit_conv2", "compress_vit_feat.3"),
        ("encoder_conv1", "embedding_encoder.0"),
        ("encoder_norm", "embedding_encoder.1"),
        ("encoder_conv2", "embedding_encoder.3"),
        ("mask_conv1", "embedding_maskfeature.0"),
        ("mask_norm", "embedding_maskfeature.1"),
        ("mask_conv2", "embedding_maskfeature.3"),
    )
]


def convert_sam_hq(checkpoint: Checkpoint, folder: Path, request: Request) -> list[str]:
    """Write the HQ head of a checkpoint as an adapter; result and errors as `convert_conv_lora`."""
    if request.decoder is not None:
        raise UserError(
            "what a checkpoint of sam-hq adds to SAM is in the decoder", key="decoder", fix="leave it unset"
        )
    state = renamed(checkpoint.tensors, [*META_NAMES, *PROMPT_ENCODER_NAMES, *_TRANSFORMERS])
    tensors, frozen = split(state, HEAD_RULES)
    early = tensors.get(f"{HEAD}compress_vit_feat.0.weight")
    if early is None or early.ndim != 4:
        raise UserError(f"{checkpoint} has no HQ head (hf_token, compress_vit_feat and so on)", key="checkpoint")
    sam_config = sam_config_of(state, len(early)) if request.base is None else request.base.model.config
    notes = ["The masks are those of the HQ token alone, which SAM-HQ trains; its demo adds SAM's own logits to them."]
    adapter = Adapter(SamDecoderConfig(decoder="hq"), tensors, frozen, notes, processor={"resize": "pad"})
    return write_converted(adapter, sam_config, folder, checkpoint, request, title="the HQ head")
