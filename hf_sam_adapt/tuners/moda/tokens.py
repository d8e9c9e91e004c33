"""Global feature tokens: a few extra tokens that go through SAM's frozen blocks and describe the whole image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...errors import UserError
from ...sam.families import family_of


def global_tokens(width: int, count: int = 10, seed: int = 0) -> torch.Tensor:
    """Random tokens fp32 (1, count, width), as released: the first is read out, the others assist (CoSAM §3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, width, generator=generator)


class TokenProbe:
    """Lets tokens read the patches in every block of an encoder run, without the patches ever reading them.

    Per block, with the block's own weights, no window, no position and G for the tokens, X for the patches:

        n = LN1([G; X]),  G <- G + proj(softmax(Q_G K_n^T / sqrt(d)) V_n),  G <- G + MLP(LN2(G))

    The keys and values of the patches are those that the block computes anyway, so the image path is bit-equal to a
    run without the probe and one run serves both:

        with TokenProbe(encoder, tokens) as probe:
            embeddings = encoder(pixel_values).last_hidden_state
        probe.tokens  # (B, L, C)

    Of an encoder whose blocks grow wider (SAM 2's Hiera) the tokens go through those of the last stage.
    Tuner layers inside the blocks are read as they are: disable the adapters for tokens of the frozen encoder.

    Args:
        encoder: SAM's vision encoder.
        tokens: (1, L, C); gradients reach them.
        until: number of blocks that the tokens go through, for encoders whose later blocks are adapted; None = all.

    Attributes:
        tokens: (B, L, C) after the latest run, in the encoder's dtype; None before.
        embedding: the map (B, 256, grid, grid) of that run which the decoder takes, of SAM 2 and 3 the coarsest; None
            before, and if the run stopped at a block.
    """

    def __init__(self, encoder: nn.Module, tokens: torch.Tensor, until: int | None = None) -> None:
        self._encoder, self._family = encoder, family_of(encoder)
        self._blocks = probed_blocks(encoder)[:until]
        self._start = tokens
        self._handles: list = []
        self._eager = ExitStack()
        self._outputs: list[torch.Tensor] = []
        self.tokens: torch.Tensor | None = None
        self.embedding: torch.Tensor | None = None

    def __enter__(self) -> TokenProbe:
        self._eager.enter_context(uncompiled(self._encoder))
        for index, block in enumerate(self._blocks):
            for linear in self._family.linears_of(block):
                self._handles.append(linear.register_forward_hook(self._keep))
            self._handles.append(block.register_forward_hook(self._first if index == 0 else self._read))
        self._handles.append(self._encoder.register_forward_hook(self._keep_embedding))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._eager.close()

    def _keep(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self._outputs.append(output)

    def _keep_embedding(self, module: nn.Module, args: tuple, output: Any) -> None:
        levels = getattr(output, "fpn_hidden_states", None)  # of SAM 2 and 3, the finest first
        self.embedding = output.last_hidden_state if levels is None else levels[2]

    def _first(self, block: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self.tokens = self._start.to(args[0].device, args[0].dtype).expand(args[0].shape[0], -1, -1)
        self.embedding = None
        self._read(block, args, output)

    def _read(self, block: nn.Module, args: tuple, output: torch.Tensor) -> None:
        batch, height, width, _ = args[0].shape
        # Window after window: any order will do.
        outputs, self._outputs = [one.reshape(batch, -1, one.shape[-1]) for one in self._outputs], []
        patches = outputs[0].chunk(3, -1) if len(outputs) == 1 else outputs
        inside = None
        if patches[0].shape[1] > height * width:  # windows beyond the border
            inside = _inside(height, width, block.window_size, patches[0].device)
        attention = self._family.attention_of(block)
        # `forward`, not the modules' call: neither our own hook nor those of a tuner shall run for the tokens.
        normed = block.layer_norm1(self.tokens)
        own = [linear.forward(normed) for linear in self._family.linears_of(block)]
        own = own[0].chunk(3, -1) if len(own) == 1 else own
        attended = _attend_patches(*own, *patches[1:], inside, attention.num_attention_heads)
        tokens = self.tokens + self._family.projection_of(block).forward(attended)
        self.tokens = tokens + block.mlp.forward(block.layer_norm2(tokens))


@contextmanager
def uncompiled(encoder: nn.Module) -> Iterator[None]:
    """Within, what `torch.compile` made of an encoder or its parts is left aside: it knows no hooks set later."""
    compiled = {module: module._compiled_call_impl for module in encoder.modules()}
    for module in compiled:
        module._compiled_call_impl = None
    try:
        yield
    finally:
        for module, call in compiled.items():
            module._compiled_call_impl = call


def probed_blocks(encoder: nn.Module) -> list[nn.Module]:
    """The base's own blocks that global tokens go through: all, of Hiera those of its last stage but the pooling one.

    Raises:
        UserError: that stage has no other block.
    """
    blocks = [_base(block) for block in family_of(encoder).blocks_of(encoder)]
    wide = token_width(encoder)
    kept = [b for b in blocks if b.layer_norm1.normalized_shape[0] == b.layer_norm2.normalized_shape[0] == wide]
    if not kept:
        raise UserError(
            "the last stage of this encoder has one block, which pools: there is none for the router's tokens to read",
            key="router",
        )
    return kept


def token_width(encoder: nn.Module) -> int:
    """C of the global tokens: the width of the encoder's last block."""
    return _base(family_of(encoder).blocks_of(encoder)[-1]).layer_norm2.normalized_shape[0]


def _inside(height: int, width: int, size: int, device: torch.device) -> torch.Tensor:
    """Which tokens of a map in windows lie on it, bool (N,), window after window."""
    there = torch.ones(height, width, dtype=torch.bool, device=device)
    there = F.pad(there, (0, -width % size, 0, -height % size))
    return there.unflatten(1, (-1, size)).unflatten(0, (-1, size)).transpose(1, 2).flatten()


def joint_tokens(
    encoder: nn.Module, pixel_values: torch.Tensor, tokens: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The official computation: tokens and patches attend to one another in all blocks.

    Attention is global in every block, without window and relative position, so the image path is another than SAM's
    and masks need a second run of the encoder.

    Args:
        encoder: SAM's vision encoder, adapters disabled.
        pixel_values: (B, 3, S, S).
        tokens: (1, L, C); gradients reach them.

    Returns:
        The tokens (B, L, C) after the last block, and the output of the neck (B, 256, grid, grid).
    """
    family = family_of(encoder)
    patches = family.embed(encoder, pixel_values)
    batch, height, width, channels = patches.shape
    count = tokens.shape[1]
    tokens = tokens.to(patches.device, patches.dtype).expand(batch, -1, -1)
    states = torch.cat([tokens, patches.flatten(1, 2)], 1)  # (B, L + h w, C)
    for block in map(_base, family.blocks_of(encoder)):
        query, key, value = family.linears_of(block)[0].forward(block.layer_norm1(states)).chunk(3, -1)
        attended = _attend(query, key, value, family.attention_of(block).num_attention_heads)
        states = states + family.projection_of(block).forward(attended)
        states = states + block.mlp.forward(block.layer_norm2(states))
    patches = states[:, count:].reshape(batch, height, width, channels)
    return states[:, :count], family.neck_of(encoder)(patches)


def _attend_patches(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    patch_keys: torch.Tensor,
    patch_values: torch.Tensor,
    inside: torch.Tensor | None,
    heads: int,
) -> torch.Tensor:
    """Attention of L tokens over themselves and N patches, whose keys and values are read in place and once.

    With the queries as a block-diagonal matrix the scores of all heads are one product with the keys as they lie in
    memory; for a few tokens that costs less than a copy of the keys in the layout of an attention kernel.

    Args:
        query, key, value: of the tokens (B, L, C).
        patch_keys, patch_values: (B, N, C).
        inside: bool (N,), patches that are there; None: all.

    Returns:
        (B, L, C).
    """
    query, key, value = (part.unflatten(-1, (heads, -1)) for part in (query, key, value))  # (B, L, heads, d)
    query = query * query.shape[-1] ** -0.5
    diagonal = torch.eye(heads, dtype=query.dtype, device=query.device)
    columns = torch.einsum("blhd,hg->bhdgl", query, diagonal).flatten(3).flatten(1, 2)  # (B, C, heads L)
    own_scores = torch.einsum("bmhd,blhd->bmhl", key, query).flatten(2)  # (B, L, heads L)
    scores = torch.cat([own_scores, _products(patch_keys, columns)], 1)  # (B, L + N, heads L)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if inside is not None:
        outside = F.pad(~inside, (query.shape[1], 0))
        scores = scores.masked_fill(outside[:, None], -torch.inf)
    weights = scores.softmax(1).to(patch_values.dtype)
    own_weights, patch_weights = weights.split([query.shape[1], patch_keys.shape[1]], 1)
    every = _products(patch_weights.mT, patch_values).unflatten(1, (heads, -1)).unflatten(-1, (heads, -1))
    summed = every.diagonal(dim1=1, dim2=3).permute(0, 1, 3, 2)  # (B, heads, L, heads, d) -> (B, L, heads, d)
    summed = summed + torch.einsum("bmhl,bmhd->blhd", own_weights.unflatten(2, (heads, -1)), value)
    return summed.flatten(2)


def _products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right (B, ., .); a CPU's batched product of 16 bits would first copy what has gaps in memory."""
    if left.device.type == "cpu" and left.dtype.itemsize == 2:
        return torch.stack([one @ other for one, other in zip(left, right)])
    return left @ right


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Plain multi-head attention of (B, L, C) over (B, N, C)."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))  # (B, heads, ., d)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _base(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
