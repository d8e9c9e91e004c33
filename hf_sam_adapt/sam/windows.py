"""A SAM whose encoder attends globally in every block, as CoSAM's code runs it, and its windows put back exactly."""

from dataclasses import dataclass, field

from torch import nn

from ..errors import UserError
from .families import SAM, family_of, find_vision_encoder
from .image_size import placed_like, replace_parameter, resized_table


ORIGINAL = "_hf_sam_adapt_original_windows"


@dataclass
class OriginalWindows:
    """The windows that a base model came with, kept on the vision encoder while it has none.

    A plain attribute: neither the state dict nor `.to()` sees it, deepcopy and pickle keep it.
    """

    global_attn_indexes: list[int]
    sizes: dict[int, int] = field(default_factory=dict)
    rel_pos: dict[str, nn.Parameter] = field(default_factory=dict)


def windows_removed(encoder: nn.Module) -> bool:
    """Whether `remove_windows` acted on this encoder."""
    return hasattr(encoder, ORIGINAL)


def remove_windows(model: nn.Module) -> None:
    """Give every block of a SAM's encoder global attention, in place.

    The relative positions of blocks that had windows are stretched linearly to the whole grid, which is what SAM's
    code does with a table of another size.

    Args:
        model: `SamModel` or `SamVisionModel`, at the input size that it shall run at.

    Raises:
        UserError: the model has no SAM encoder, or one of a family whose windows stay.
    """
    encoder = find_vision_encoder(model)
    if encoder is None:
        raise UserError(f"{type(model).__name__} has no SAM vision encoder", key="global_attention")
    family = family_of(encoder)
    if not family.windows_removable:
        raise UserError(
            f"the windows of {family.title} cannot be taken away",
            key="global_attention",
            fix=f"leave it out, or take a checkpoint of {SAM.title}",
        )
    grid = family.shape(encoder).grid
    original = OriginalWindows(list(encoder.config.global_attn_indexes))
    for index, block in enumerate(family.blocks_of(encoder)):
        if not block.window_size:
            continue
        original.sizes[index], block.window_size = block.window_size, 0
        attention = family.attention_of(block)
        for name in ("rel_pos_h", "rel_pos_w") if attention.use_rel_pos else ():
            original.rel_pos[f"{index}.{name}"] = table = getattr(attention, name)
            replace_parameter(attention, name, resized_table(table, 2 * grid - 1))
    setattr(encoder, ORIGINAL, original)
    _set_indexes(model, encoder, list(range(len(family.blocks_of(encoder)))))


def restore_windows(model: nn.Module) -> None:
    """Undo `remove_windows`: the original tables come back, on the device and in the dtype the model has now."""
    encoder = find_vision_encoder(model)
    original = getattr(encoder, ORIGINAL, None)
    if original is None:
        return
    family = family_of(encoder)
    blocks = family.blocks_of(encoder)
    for index, size in original.sizes.items():
        blocks[index].window_size = size
    for place, table in original.rel_pos.items():
        index, _, name = place.partition(".")
        attention = family.attention_of(blocks[int(index)])
        setattr(attention, name, placed_like(table, getattr(attention, name)))
    delattr(encoder, ORIGINAL)
    _set_indexes(model, encoder, original.global_attn_indexes)


def settle_windows(model: nn.Module) -> None:
    """Make it a model's own that `remove_windows` took its windows: nothing is left to put back."""
    vars(find_vision_encoder(model)).pop(ORIGINAL, None)


def _set_indexes(model: nn.Module, encoder: nn.Module, indexes: list[int]) -> None:
    encoder.config.global_attn_indexes = indexes
    if hasattr(model.config, "vision_config"):
        model.config.vision_config.global_attn_indexes = indexes
