"""Image embeddings of a batch of several domains: what the domains share is computed once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from ...files import BASE
from ...sam.families import family_of, find_vision_encoder
from ...sam.image_embeddings import ImageEmbeddings
from ..common.encoding import encode_from_block, encode_images
from ..common.hq import live_early_map
from .dispatch import ADAPTER_LAYERS, groups_of, restore_order
from .tokens import TokenProbe, uncompiled


if TYPE_CHECKING:
    from .model import ModaModel


def encode_domains(pool: ModaModel, pixel_values: torch.Tensor, domain: str | list[str]) -> ImageEmbeddings:
    """Embeddings of a batch, each by the adapter of its domain, with the names of the domains.

    The frozen encoder runs once over the whole batch where anything needs it: the router, images of the base, the
    blocks before the first adapted one; with adapters in the decoder alone that is all there is to run.

    Args:
        pixel_values: float (B, 3, S, S).
        domain: `"auto"`, a name, or a list of B names.
    """
    model, encoder, router = pool.model, find_vision_encoder(pool.model), pool.router
    pixel_values = pixel_values.to(model.dtype)
    names = None if domain == "auto" else pool.checked(domain, len(pixel_values))
    first = first_adapted_block(encoder)
    # An adapter in the decoder does not reach the encoder, but one has to be active for HQ's early map.
    active = pool.domains[0] if first is None and pool.domains else BASE
    shared = _shared_blocks(pool, first)
    base = hidden = scores = None
    if first is None or shared or names is None or BASE in names:
        probing = TokenProbe(encoder, router.tokens) if names is None and router.mode == "probe" else nullcontext()
        capturing = captured_input(encoder, shared) if shared else nullcontext()
        with pool.activated(active), probing as probe, capturing as hidden:
            base = encode_images(model, pixel_values)
        if names is None:
            features = pool.router_features(pixel_values) if probe is None else router.read(probe)
            names, scores = pool.names_of(router.route(features)), router.scores(features)
    if first is None:
        return dataclasses.replace(base, domains=pool.indices_of(names), router_scores=scores)
    parts, order = [], []
    for name, rows in groups_of(names).items():
        order += rows
        with pool.activated(name):
            if name == BASE:
                part = base[rows]
            elif shared:
                part = encode_from_block(model, hidden[0][rows], shared)
            else:
                part = encode_images(model, pixel_values[rows])
        parts.append(dataclasses.replace(part, domains=pool.indices_of([name] * len(rows))))
    early = next((part.early for part in parts if part.early is not None), None)
    if early is not None:  # plain SAM does not look at it
        parts = [
            dataclasses.replace(part, early=early.new_zeros(len(part), *early.shape[1:]))
            if part.early is None
            else part
            for part in parts
        ]
    ordered = ImageEmbeddings.cat(parts)[restore_order(order)]
    return dataclasses.replace(ordered, router_scores=scores)


def first_adapted_block(encoder: nn.Module) -> int | None:
    """Index of the first block with an adapter in it: 0 also for one before the blocks, None without any."""
    family = family_of(encoder)
    indices = []
    for name, module in encoder.named_modules():
        if isinstance(module, ADAPTER_LAYERS):
            behind = len(family.blocks_of(encoder)) if f"{name}.".startswith(f"{family.neck}.") else 0
            block = family.block_index(name)
            indices.append(behind if block is None else block)
    return min(indices, default=None)


def _shared_blocks(pool: ModaModel, first: int | None) -> int:
    """Number of blocks whose output does not depend on the domain and is not looked at either."""
    if not first or family_of(pool.model).encode_from_block is None:
        return 0
    with pool.activated(pool.domains[0]):
        early_map = live_early_map(pool.model)
    return first if early_map is None else min(first, early_map.layer)


@contextmanager
def captured_input(encoder: nn.Module, block: int) -> Iterator[list[torch.Tensor]]:
    """The input (B, g, g, C) of a block in the encoder run within, as the one entry of a list."""
    found: list[torch.Tensor] = []
    family = family_of(encoder)
    module = [*family.blocks_of(encoder), family.neck_of(encoder)][block]
    handle = module.register_forward_pre_hook(lambda module, args: found.append(args[0]))
    try:
        with uncompiled(encoder):
            yield found
    finally:
        handle.remove()
