"""The first SAM (ViT-B, -L, -H): `SamModel`."""

import re
from collections.abc import Iterator

import torch
from torch import nn
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .family import EncoderShape, SamFamily


def _shape(encoder: nn.Module) -> EncoderShape:
    config = encoder.config
    return EncoderShape(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        output_channels=config.output_channels,
        global_blocks=tuple(config.global_attn_indexes),
    )


def _embed(encoder: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    patches = encoder.patch_embed(pixel_values)
    return patches if encoder.pos_embed is None else patches + encoder.pos_embed


def _encode(sam: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    # `SamModel.get_image_embeddings` cannot be used for training: it runs under `no_grad`.
    return sam.vision_encoder(pixel_values.to(sam.dtype)).last_hidden_state


def _encode_from_block(encoder: nn.Module, hidden: torch.Tensor, block: int) -> torch.Tensor:
    for layer in encoder.layers[block:]:
        hidden = layer(hidden)
    return encoder.neck(hidden)


def _position_tables(encoder: nn.Module, grid: int) -> Iterator[tuple[str, nn.Module, str, int]]:
    """The tables of windowed layers do not depend on the input size."""
    if encoder.pos_embed is not None:
        yield "pos_embed", encoder, "pos_embed", grid
    for index, layer in enumerate(encoder.layers):
        if layer.window_size == 0 and layer.attn.use_rel_pos:
            for name in ("rel_pos_h", "rel_pos_w"):
                yield f"{index}.{name}", layer.attn, name, 2 * grid - 1


def _set_image_size(model: nn.Module, encoder: nn.Module, image_size: int) -> None:
    grid = image_size // encoder.config.patch_size
    patch_embed = SAM.patch_embedding_of(encoder)
    patch_embed.image_size = (image_size, image_size)
    patch_embed.num_patches = grid * grid
    encoder.image_size = image_size
    encoder.config.image_size = image_size
    prompt_encoder = getattr(model, "prompt_encoder", None)
    if prompt_encoder is not None:
        prompt_encoder = getattr(prompt_encoder, "base_layer", prompt_encoder)
        prompt_encoder.image_embedding_size = (grid, grid)
        prompt_encoder.input_image_size = image_size
        model.config.vision_config.image_size = image_size
        model.config.prompt_encoder_config.image_size = image_size
        model.config.prompt_encoder_config.image_embedding_size = grid


SAM = SamFamily(
    model_type="sam",
    encoder_type="sam_vision_model",
    model_path="transformers:SamModel",
    encoder="vision_encoder",
    mask_decoder="mask_decoder",
    prompt_encoder="prompt_encoder",
    blocks="layers",
    patch_embedding="patch_embed",
    neck="neck",
    attention="attn",
    qkv="qkv",
    projection="proj",
    attention_path="transformers.models.sam.modeling_sam:SamVisionAttention",
    patch_embedding_path="transformers.models.sam.modeling_sam:SamPatchEmbeddings",
    # Their outputs are discarded.
    not_reached=re.compile(r"iou_prediction_head\.|output_hypernetworks_mlps\.(?!0\.)"),
    never_trained=("prompt_encoder", "shared_image_embedding"),
    processor={"resize": "pad", "image_mean": IMAGENET_DEFAULT_MEAN, "image_std": IMAGENET_DEFAULT_STD},
    shape=_shape,
    embed=_embed,
    encode=_encode,
    encode_from_block=_encode_from_block,
    position_tables=_position_tables,
    set_image_size=_set_image_size,
)
