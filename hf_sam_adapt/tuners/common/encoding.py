"""Image embeddings of a SAM with the adapters that are active in it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ...sam.families import family_of
from ...sam.image_embeddings import ImageEmbeddings
from .hq import EarlyMap, live_early_map


if TYPE_CHECKING:
    from transformers import SamModel


def encode_images(sam: SamModel, pixel_values: torch.Tensor) -> ImageEmbeddings:
    """Embeddings of `pixel_values` (B, 3, S, S), with gradients, and for an active `hq` decoder the early map."""
    early_map = live_early_map(sam)
    if early_map is not None:
        early_map.expect()
    return _with_early_map(family_of(sam).encode(sam, pixel_values), early_map)


def encode_from_block(sam: SamModel, hidden: torch.Tensor, block: int) -> ImageEmbeddings:
    """Embeddings of B images from the input (B, g, g, C) of a block."""
    early_map = live_early_map(sam)
    if early_map is not None:
        early_map.expect()
    encode = family_of(sam).encode_from_block
    assert encode is not None, "its decoder takes what former blocks return"
    return _with_early_map(encode(sam, hidden, block), early_map)


def _with_early_map(embeddings: ImageEmbeddings, early_map: EarlyMap | None) -> ImageEmbeddings:
    return embeddings if early_map is None else replace(embeddings, early=early_map.take()[0])
