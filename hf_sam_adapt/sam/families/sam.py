"""The first SAM (ViT-B, -L, -H): `SamModel`."""

import re
from typing import Any

import torch
from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .. import citations
from ..image_embeddings import ImageEmbeddings
from . import vit
from .family import Runs, SamFamily


def _encode(sam: nn.Module, pixel_values: torch.Tensor) -> ImageEmbeddings:
    # `SamModel.get_image_embeddings` cannot be used for training: it runs under `no_grad`.
    return ImageEmbeddings(sam.vision_encoder(pixel_values.to(sam.dtype)).last_hidden_state)


def _encode_from_block(sam: nn.Module, hidden: torch.Tensor, block: int) -> ImageEmbeddings:
    for layer in sam.vision_encoder.layers[block:]:
        hidden = layer(hidden)
    return ImageEmbeddings(sam.vision_encoder.neck(hidden))


def _decoder_inputs(embeddings: ImageEmbeddings, owner: torch.Tensor, runs: Runs) -> dict[str, Any]:
    return {"image_embeddings": embeddings.maps[owner]}


SAM = SamFamily(
    title="SAM",
    model_type="sam",
    encoder_type="sam_vision_model",
    model_path="transformers:SamModel",
    blocks="layers",
    patch_embedding="patch_embed",
    attention="attn",
    attention_linears=("qkv",),
    projection="proj",
    attention_path="transformers.models.sam.modeling_sam:SamVisionAttention",
    sdpa_path="transformers.models.sam.modeling_sam:SamVisionSdpaAttention",
    patch_embedding_path="transformers.models.sam.modeling_sam:SamPatchEmbeddings",
    windows_removable=True,
    # Their outputs are discarded.
    not_reached=re.compile(r"iou_prediction_head\.|output_hypernetworks_mlps\.(?!0\.)"),
    never_trained=("prompt_encoder", "shared_image_embedding"),
    processor={"resize": "pad", "image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD},
    shape=vit.shape,
    size_step=vit.size_step,
    embed=vit.embed,
    encode=_encode,
    encode_from_block=_encode_from_block,
    decoder_inputs=_decoder_inputs,
    position_embedding=vit.position_embedding,
    position_tables=vit.position_tables,
    set_image_size=vit.set_image_size,
    license={"license": "apache-2.0"},
    citation=citations.SAM,
)
