"""Other numbers of input channels for a SAM: the patch embedding inflated from its three, and put back exactly."""

import torch
from torch import nn

from ..errors import UserError
from .families import family_of, find_vision_encoder
from .image_size import placed_like, replace_parameter


ORIGINAL = "_hf_sam_adapt_original_projection"


def input_channels(encoder: nn.Module) -> int:
    """Channels that the patch embedding takes now."""
    return family_of(encoder).config_of(encoder).num_channels


def original_channels(encoder: nn.Module) -> int:
    """Channels that the base model came with."""
    kept = getattr(encoder, ORIGINAL, None)
    return input_channels(encoder) if kept is None else kept.shape[1]


def inflate_channels(model: nn.Module, channels: int) -> None:
    """Make a SAM take images of `channels` channels, in place.

    An image whose channels are all alike is embedded as the same grey photograph is. With more than three channels
    each takes the kernel of red, green and blue in turn, with fewer the mean of the three.

    Args:
        model: a SAM or its encoder, with its original patch embedding.
        channels: at least 1.

    Raises:
        UserError: the model has no SAM encoder.
    """
    encoder = find_vision_encoder(model)
    if encoder is None:
        raise UserError(f"in_channels={channels}: {type(model).__name__} has no SAM vision encoder")
    weight = _projection(encoder).weight
    with torch.no_grad():
        new = inflated(weight.float(), channels).to(weight.dtype)
    # A plain attribute: neither the state dict nor `.to()` sees it, deepcopy and pickle keep it.
    vars(encoder)[ORIGINAL] = weight  # `setattr` would register it
    _set_weight(model, encoder, nn.Parameter(new, requires_grad=weight.requires_grad), channels)


def inflated(weight: torch.Tensor, channels: int) -> torch.Tensor:
    """Kernels (D, 3, p, p) -> (D, channels, p, p) with the same sum over the channels."""
    own = weight.shape[1]
    if channels < own:
        return weight.sum(1, keepdim=True).repeat(1, channels, 1, 1) / channels
    source = torch.arange(channels, device=weight.device) % own
    uses = torch.bincount(source, minlength=own).to(weight.dtype)  # of each of the three kernels
    return weight[:, source] / uses[source][:, None, None]


def restore_channels(model: nn.Module) -> None:
    """Undo `inflate_channels`: the original kernels come back, on the device and in the dtype the model has now."""
    encoder = find_vision_encoder(model)
    original = getattr(encoder, ORIGINAL, None)
    if original is None:
        return
    placed_like(original, _projection(encoder).weight)
    delattr(encoder, ORIGINAL)
    _set_weight(model, encoder, original, original.shape[1])


def settle_channels(model: nn.Module) -> None:
    """Make the channels that `inflate_channels` gave a model its own: nothing is left to put back."""
    vars(find_vision_encoder(model)).pop(ORIGINAL, None)


def _projection(encoder: nn.Module) -> nn.Conv2d:
    return family_of(encoder).patch_embedding_of(encoder).projection


def _set_weight(model: nn.Module, encoder: nn.Module, weight: nn.Parameter, channels: int) -> None:
    projection = _projection(encoder)
    replace_parameter(projection, "weight", weight)
    projection.in_channels = channels
    family = family_of(encoder)
    family.patch_embedding_of(encoder).num_channels = channels
    family.config_of(encoder).num_channels = channels  # the model's config holds the same object
