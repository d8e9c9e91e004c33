"""Frozen weights in the precision that autocast would give them in each forward anyway."""

import torch
from torch import nn

from ..sam.families import family_of


_MATRICES = (nn.Linear, nn.Conv2d)


def cast_frozen_matrices(encoder: nn.Module, dtype: torch.dtype) -> None:
    """Store the frozen linear and convolution layers of an image encoder in the dtype of autocast, in place.

    Autocast rounds their weights in each forward, and keeps the rounded copies until backward; stored so, they give
    the same numbers bit for bit in half the memory. Norms, position tables and whatever is trained stay as they are.
    Under autocast of this dtype only.

    Args:
        encoder: of a SAM, with or without an adapter, with `requires_grad` as it shall be trained.
        dtype: torch.bfloat16 or torch.float16.
    """
    # The patch embedding stays, the features of SAM-Adapter are computed of what it is given.
    family = family_of(encoder)
    for part in (family.blocks_of(encoder), family.neck_of(encoder)):
        for module in part.modules():
            own = list(module.parameters(recurse=False))
            if isinstance(module, _MATRICES) and not any(parameter.requires_grad for parameter in own):
                module.to(dtype)
