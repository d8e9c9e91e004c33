"""Global feature tokens: a few extra tokens that go through SAM's frozen blocks and describe the whole image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def global_tokens(width: int, count: int = 10, seed: int = 0) -> torch.Tensor:
    """Random tokens fp32 (1, count, width), as released: the first is read out, the others assist (CoSAM §3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, width, generator=generator)


class TokenProbe:
    """Lets tokens read the patches in every block of an encoder run, without the patches ever reading them.

    Per block, with the block's own weights, no window, no relative position and G for the tokens, X for the patches:

        n = LN1([G; X]),  G <- G + proj(softmax(Q_G K_n^T / sqrt(d)) V_n),  G <- G + MLP(LN2(G))

    The keys and values of the patches are those that the block computes anyway, so the image path is bit-equal to a
    run without the probe and one run serves both:

        with TokenProbe(encoder, tokens) as probe:
            embeddings = encoder(pixel_values).last_hidden_state
        probe.tokens  # (B, L, C)

    Tuner layers inside the blocks are read as they are: disable the adapters for tokens of the frozen encoder.

    Args:
        encoder: SAM's vision encoder.
        tokens: (1, L, C); gradients reach them.
        until: number of blocks that the tokens go through, for encoders whose later blocks are adapted; None = all.

    Attributes:
        tokens: (B, L, C) after the latest run, in the encoder's dtype; None before.
        embedding: the image embedding (B, 256, grid, grid) of that run; None before, and if it stopped at a block.
    """

    def __init__(self, encoder: nn.Module, tokens: torch.Tensor, until: int | None = None) -> None:
        self._blocks = [_base(layer) for layer in encoder.layers][:until]
        self._neck = encoder.neck
        self._start = tokens
        self._handles: list = []
        self._qkv: torch.Tensor | None = None
        self.tokens: torch.Tensor | None = None
        self.embedding: torch.Tensor | None = None

    def __enter__(self) -> TokenProbe:
        for index, block in enumerate(self._blocks):
            self._handles.append(block.attn.qkv.register_forward_hook(self._keep))
            self._handles.append(block.register_forward_hook(self._first if index == 0 else self._read))
        self._handles.append(self._neck.register_forward_hook(self._keep_embedding))
        return self

    def __exit__(self, *exception: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _keep(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self._qkv = output

    def _keep_embedding(self, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self.embedding = output

    def _first(self, block: nn.Module, args: tuple, output: torch.Tensor) -> None:
        self.tokens = self._start.to(args[0].device, args[0].dtype).expand(len(args[0]), -1, -1)
        self.embedding = None
        self._read(block, args, output)

    def _read(self, block: nn.Module, args: tuple, output: torch.Tensor) -> None:
        batch, height, width, channels = args[0].shape
        patches, self._qkv = self._qkv, None
        patches = patches[..., channels:]  # keys and values
        if patches.shape[:-1].numel() > batch * height * width:  # windows beyond the border
            side = block.window_size
            padded = -(-height // side) * side, -(-width // side) * side
            patches = block.window_unpartition(patches, side, padded, (height, width))
        patches = patches.reshape(batch, height * width, 2 * channels)  # window after window: any order will do
        # `forward`, not the modules' call: neither our own hook nor those of a tuner shall run for the tokens.
        query, own = block.attn.qkv.forward(block.layer_norm1(self.tokens)).split([channels, 2 * channels], -1)
        key, value = torch.cat([own, patches], 1).chunk(2, -1)  # (B, L + h w, C) each
        attended = _attend(query, key, value, block.attn.num_attention_heads)
        tokens = self.tokens + block.attn.proj.forward(attended)
        self.tokens = tokens + block.mlp.forward(block.layer_norm2(tokens))


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
    patches = encoder.patch_embed(pixel_values)
    if encoder.pos_embed is not None:
        patches = patches + encoder.pos_embed
    batch, height, width, channels = patches.shape
    count = tokens.shape[1]
    tokens = tokens.to(patches.device, patches.dtype).expand(batch, -1, -1)
    states = torch.cat([tokens, patches.flatten(1, 2)], 1)  # (B, L + h w, C)
    for block in map(_base, encoder.layers):
        query, key, value = block.attn.qkv.forward(block.layer_norm1(states)).chunk(3, -1)
        states = states + block.attn.proj.forward(_attend(query, key, value, block.attn.num_attention_heads))
        states = states + block.mlp.forward(block.layer_norm2(states))
    patches = states[:, count:].reshape(batch, height, width, channels)
    return states[:, :count], encoder.neck(patches)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Plain multi-head attention of (B, L, C) over (B, N, C)."""
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))  # (B, heads, ., d)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _base(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if isinstance(layer, BaseTunerLayer) else layer
