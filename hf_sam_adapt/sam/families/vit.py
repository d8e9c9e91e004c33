"""SAM's image encoder, a ViT with windows and relative positions, which SAM-HQ has too."""

from collections.abc import Iterator

import torch
from torch import nn

from .family import EncoderShape


def shape(encoder: nn.Module) -> EncoderShape:
    config = encoder.config
    depth = config.num_hidden_layers
    return EncoderShape(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=depth,
        output_channels=config.output_channels,
        global_blocks=tuple(config.global_attn_indexes),
        widths=(config.hidden_size,) * depth,
        grids=(config.image_size // config.patch_size,) * depth,
    )


def size_step(encoder: nn.Module) -> int:
    return encoder.config.patch_size


def embed(encoder: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    patches = encoder.patch_embed(pixel_values)
    return patches if encoder.pos_embed is None else patches + encoder.pos_embed


def position_embedding(encoder: nn.Module) -> nn.Parameter | None:
    return encoder.pos_embed


def position_tables(encoder: nn.Module, grid: int) -> Iterator[tuple[str, nn.Module, str, int]]:
    """The tables of windowed layers do not depend on the input size."""
    if encoder.pos_embed is not None:
        yield "pos_embed", encoder, "pos_embed", grid
    for index, layer in enumerate(encoder.layers):
        if layer.window_size == 0 and layer.attn.use_rel_pos:
            for name in ("rel_pos_h", "rel_pos_w"):
                yield f"{index}.{name}", layer.attn, name, 2 * grid - 1


def set_image_size(model: nn.Module, encoder: nn.Module, image_size: int) -> None:
    grid = image_size // encoder.config.patch_size
    patch_embed = getattr(encoder.patch_embed, "base_layer", encoder.patch_embed)
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
