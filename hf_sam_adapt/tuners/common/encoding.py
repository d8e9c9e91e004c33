"""Image embeddings of a SAM with the adapters that are active in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ...sam.families import family_of, find_vision_encoder
from ...sam.image_embeddings import ImageEmbeddings
from .hq import live_early_map


if TYPE_CHECKING:
    from transformers import SamModel


def encode_images(sam: SamModel, pixel_values: torch.Tensor) -> ImageEmbeddings:
    """Embeddings of `pixel_values` (B, 3, S, S), with gradients, and for an active `hq` decoder the early map."""
    early_map = live_early_map(sam)
    if early_map is not None:
        early_map.expect()
    maps = family_of(sam).encode(sam, pixel_values)
    return ImageEmbeddings(maps, None if early_map is None else early_map.take()[0])


def encode_from_block(sam: SamModel, hidden: torch.Tensor, block: int) -> ImageEmbeddings:
    """Embeddings of B images from the input (B, g, g, C) of a block."""
    early_map = live_early_map(sam)
    if early_map is not None:
        early_map.expect()
    maps = family_of(sam).encode_from_block(find_vision_encoder(sam), hidden, block)
    return ImageEmbeddings(maps, None if early_map is None else early_map.take()[0])
