"""Another input size for a SAM: position tables interpolated in place, and put back exactly."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UserError


ORIGINAL = "_hf_sam_adapt_original_size"


@dataclass
class OriginalSize:
    """The base model's own input size and tables, kept on the vision encoder while it is resized.

    A plain attribute: neither the state dict nor `.to()` sees it, deepcopy and pickle keep it.
    """

    image_size: int
    pos_embed: nn.Parameter | None
    rel_pos: dict[str, nn.Parameter] = field(default_factory=dict)


def find_vision_encoder(model: nn.Module) -> nn.Module | None:
    """Return the SAM vision encoder inside `model` (patch embedding, layers and neck), or None."""
    for module in model.modules():
        if hasattr(module, "patch_embed") and hasattr(module, "layers") and hasattr(module, "neck"):
            return module
    return None


def original_position_embedding(encoder: nn.Module) -> tuple[nn.Parameter | None, int]:
    """Return the absolute position table (1, h, w, C) and the input size in pixels that the base came with."""
    original = getattr(encoder, ORIGINAL, None)
    if original is not None:
        return original.pos_embed, original.image_size
    return encoder.pos_embed, encoder.config.image_size


def resize_input(model: nn.Module, image_size: int) -> None:
    """Make a SAM take another square input: `pos_embed` bicubic, global relative positions linear, in place.

    The tables of windowed layers do not depend on the input size. Numbers in the configs and sub-modules follow, so
    prompts are scaled and masks come out as for a model built at this size.

    Args:
        model: `SamModel` or `SamVisionModel` at its original size.
        image_size: side of the network input in pixels, a multiple of the patch size.

    Raises:
        UserError: if the model has no SAM encoder or the size is not a positive multiple of the patch size.
    """
    encoder = find_vision_encoder(model)
    if encoder is None:
        raise UserError(f"image_size={image_size}: {type(model).__name__} has no SAM vision encoder to resize")
    patch_size = encoder.config.patch_size
    if image_size < patch_size or image_size % patch_size:
        raise UserError(f"image_size={image_size} is not a multiple of the patch size {patch_size} of this model")
    grid = image_size // patch_size
    original = OriginalSize(encoder.config.image_size, encoder.pos_embed)
    if encoder.pos_embed is not None:
        replace_parameter(encoder, "pos_embed", resized_table(encoder.pos_embed, grid))
    for layer, attention in _global_attention(encoder):
        for name in ("rel_pos_h", "rel_pos_w"):
            table = getattr(attention, name)
            original.rel_pos[f"{layer}.{name}"] = table
            replace_parameter(attention, name, resized_table(table, 2 * grid - 1))
    setattr(encoder, ORIGINAL, original)
    _set_size(model, encoder, image_size)


def restore_input(model: nn.Module) -> None:
    """Undo `resize_input`: the original tables come back, on the device and in the dtype the model has now."""
    encoder = find_vision_encoder(model)
    original = getattr(encoder, ORIGINAL, None)
    if original is None:
        return
    if encoder.pos_embed is not None:
        encoder.pos_embed = placed_like(original.pos_embed, encoder.pos_embed)
    for layer, attention in _global_attention(encoder):
        for name in ("rel_pos_h", "rel_pos_w"):
            setattr(attention, name, placed_like(original.rel_pos[f"{layer}.{name}"], getattr(attention, name)))
    delattr(encoder, ORIGINAL)
    _set_size(model, encoder, original.image_size)


def _global_attention(encoder: nn.Module):
    """Yield (index, attention module) of the layers with relative positions over the whole grid."""
    for index, layer in enumerate(encoder.layers):
        if layer.window_size == 0 and layer.attn.use_rel_pos:
            yield index, layer.attn


def resized_table(table: nn.Parameter, size: int) -> nn.Parameter:
    """Interpolate (1, h, w, C) to (1, size, size, C), or (L, C) to (size, C), in fp32 as SAM itself does."""
    with torch.no_grad():
        if table.ndim == 4:
            channels_first = table.float().permute(0, 3, 1, 2)  # (1, C, h, w)
            new = F.interpolate(channels_first, size=(size, size), mode="bicubic", align_corners=False)
            new = new.permute(0, 2, 3, 1)
        else:
            new = F.interpolate(table.float().T[None], size=size, mode="linear")[0].T  # (1, C, L) -> (size, C)
    return nn.Parameter(new.to(table.dtype).contiguous(), requires_grad=table.requires_grad)


def replace_parameter(module: nn.Module, name: str, table: nn.Parameter) -> None:
    """Put `table` in the place of a module's parameter."""
    # By-passes register_parameter, which PEFT's low_cpu_mem_usage patches to move what is new to the meta device:
    # right for adapter weights that a file will fill, not for the base model's tables.
    module._parameters[name] = table


def placed_like(table: nn.Parameter, current: nn.Parameter) -> nn.Parameter:
    """`table` on the device, in the dtype and as trainable as `current`."""
    table.data = table.data.to(device=current.device, dtype=current.dtype)
    table.requires_grad_(current.requires_grad)
    return table


def _set_size(model: nn.Module, encoder: nn.Module, image_size: int) -> None:
    grid = image_size // encoder.config.patch_size
    patch_embed = encoder.patch_embed
    patch_embed = getattr(patch_embed, "base_layer", patch_embed)
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
