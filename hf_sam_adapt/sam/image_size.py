"""Another input size for a SAM: position tables interpolated in place, and put back exactly."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import UserError
from ..names import check_image_size
from .families import family_of, find_vision_encoder


ORIGINAL = "_hf_sam_adapt_original_size"


@dataclass
class OriginalSize:
    """The base model's own input size and tables, kept on the vision encoder while it is resized.

    A plain attribute: neither the state dict nor `.to()` sees it, deepcopy and pickle keep it.
    """

    image_size: int
    tables: dict[str, nn.Parameter] = field(default_factory=dict)


def original_position_embedding(encoder: nn.Module) -> tuple[nn.Parameter | None, int]:
    """Return the absolute position table and the input size in pixels that the base came with."""
    original = getattr(encoder, ORIGINAL, None)
    if original is not None:
        return original.tables.get("pos_embed", family_of(encoder).position_embedding(encoder)), original.image_size
    family = family_of(encoder)
    return family.position_embedding(encoder), family.shape(encoder).image_size


def resize_input(model: nn.Module, image_size: int) -> None:
    """Make a SAM take another square input: `pos_embed` bicubic, global relative positions linear, in place.

    The tables of windowed layers do not depend on the input size, and SAM 2 and 3 stretch or tile theirs themselves.
    Numbers in the configs and sub-modules follow, so prompts are scaled and masks come out as for a model built at
    this size.

    Args:
        model: a SAM or its encoder, at its original size.
        image_size: side of the network input in pixels, a multiple of the family's step.

    Raises:
        UserError: if the model has no SAM encoder or cannot take the size.
    """
    encoder = find_vision_encoder(model)
    if encoder is None:
        raise UserError(f"image_size={image_size}: {type(model).__name__} has no SAM vision encoder to resize")
    family = family_of(encoder)
    shape = family.shape(encoder)
    check_image_size(image_size, family.size_step(encoder), family.title)
    original = OriginalSize(shape.image_size)
    for name, module, attribute, length in family.position_tables(encoder, image_size // shape.patch_size):
        original.tables[name] = table = getattr(module, attribute)
        replace_parameter(module, attribute, resized_table(table, length))
    setattr(encoder, ORIGINAL, original)
    family.set_image_size(model, encoder, image_size)


def restore_input(model: nn.Module) -> None:
    """Undo `resize_input`: the original tables come back, on the device and in the dtype the model has now."""
    encoder = find_vision_encoder(model)
    original = getattr(encoder, ORIGINAL, None)
    if original is None:
        return
    family = family_of(encoder)
    for name, module, attribute, _ in family.position_tables(encoder, family.shape(encoder).grid):
        setattr(module, attribute, placed_like(original.tables[name], getattr(module, attribute)))
    delattr(encoder, ORIGINAL)
    family.set_image_size(model, encoder, original.image_size)


def settle_input(model: nn.Module) -> None:
    """Make the size that `resize_input` gave a model its own: nothing is left to put back."""
    vars(find_vision_encoder(model)).pop(ORIGINAL, None)


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
