"""SAM 2 and 2.1 on single images (arXiv 2408.00714): a Hiera encoder, and skip paths into the decoder: `Sam2Model`."""

import math
from typing import Any

import torch
from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .. import citations
from . import pyramid
from .family import EncoderShape, SamFamily


def _shape(encoder: nn.Module) -> EncoderShape:
    config = encoder.config.backbone_config
    grid = encoder.config.backbone_feature_sizes[-1][0]
    stride = config.patch_stride[0] * 2 ** (encoder.config.num_feature_levels - 1)
    side = grid * stride // config.patch_stride[0]  # of the patch embedding's map
    widths, grids = [], []
    for stage, blocks in enumerate(config.blocks_per_stage):
        for block in range(blocks):
            # A stage's first block takes the former stage's map and pools it, in the first stages.
            first = stage > 0 and block == 0
            widths.append(config.embed_dim_per_stage[stage - first])
            pooled = min(stage - first, config.num_query_pool_stages)
            grids.append(side // config.query_stride[0] ** pooled)
    return EncoderShape(
        image_size=grid * stride,
        patch_size=stride,
        hidden_size=config.hidden_size,
        num_hidden_layers=len(widths),
        output_channels=encoder.config.fpn_hidden_size,
        global_blocks=tuple(config.global_attention_blocks),
        widths=tuple(widths),
        grids=tuple(grids),
    )


def _size_step(encoder: nn.Module) -> int:
    """The window's position table is tiled over the first map, which is pooled, and upscaled again by the neck."""
    config = encoder.config.backbone_config
    pooling = config.query_stride[0] ** config.num_query_pool_stages
    return config.patch_stride[0] * math.lcm(config.window_size_per_stage[0], pooling)


def _embed(encoder: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    patches = encoder.backbone.patch_embed(pixel_values)
    return patches + encoder.backbone._get_pos_embed(patches.shape[1:3])


def _set_image_size(model: nn.Module, encoder: nn.Module, image_size: int) -> None:
    encoder.config.backbone_config.image_size = [image_size, image_size]
    pyramid.write_image_size(model, encoder, image_size, image_size // _shape(encoder).patch_size)


def _video_part(config: Any) -> dict[str, Any]:
    return {"config": pyramid.image_config(config, SAM2.model_class.config_class)}


SAM2 = SamFamily(
    title="SAM 2",
    model_type="sam2",
    encoder_type="sam2_vision_model",
    also_types=("sam2_video",),
    model_path="transformers:Sam2Model",
    video_part=_video_part,
    blocks="backbone.blocks",
    patch_embedding="backbone.patch_embed",
    encoder_config="config.backbone_config",
    attention="attn",
    attention_linears=("qkv",),
    projection="proj",
    patch_embedding_path="transformers.models.sam2.modeling_sam2:Sam2PatchEmbeddings",
    skips=2,
    embedding_parts=pyramid.PARTS,
    not_reached=pyramid.NOT_REACHED,
    never_trained=pyramid.NEVER_TRAINED,
    refused_decoders=pyramid.NO_HQ,
    processor={
        "resize": "squash",
        "arithmetic": "torchvision",
        "image_mean": IMAGENET_DEFAULT_MEAN,
        "image_std": IMAGENET_DEFAULT_STD,
    },
    shape=_shape,
    size_step=_size_step,
    embed=_embed,
    encode=pyramid.encode,
    decoder_inputs=pyramid.decoder_inputs,
    # Its table is stretched to any grid in the forward.
    position_embedding=lambda encoder: encoder.backbone.pos_embed,
    set_image_size=_set_image_size,
    license={"license": "apache-2.0"},
    citation=citations.SAM2,
)
