"""The encoders of SAM 2 and SAM 3 and what the methods add to them, written down plainly: loops over blocks and
windows, softmax by hand, no hooks. Everything is computed image by image, so that no image can see another one.

A method is a set of callbacks for an image: `before(block, x)` returns the block's input, `linear(block, name, module,
x)` the output of an attention's linear, `after_attention(block, y)` the attention's output, `beside_mlp(block, z)`
what is added to the MLP's output.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from reference_sam import complex_frequency_component, norm
from torch import nn


def base(module: nn.Module) -> nn.Module:
    """The module inside a tuner's layers around it."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


class Plain:
    """No method: the base."""

    def before(self, block: int, x: torch.Tensor) -> torch.Tensor:
        return x

    def linear(self, block: int, name: str, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, base(module).weight, base(module).bias)

    def after_attention(self, block: int, y: torch.Tensor) -> torch.Tensor:
        return y

    def beside_mlp(self, block: int, z: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(z)


Method = Callable[[torch.Tensor], Plain]  # of an image (3, S, S)


def plain(image: torch.Tensor) -> Plain:
    return Plain()


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, heads: int) -> torch.Tensor:
    """Of (Q, C) over (N, C), head by head."""
    size = query.shape[-1] // heads
    parts = []
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        scores = query[:, own] @ key[:, own].T / size**0.5
        weights = (scores - scores.amax(1, keepdim=True)).exp()
        parts.append(weights / weights.sum(1, keepdim=True) @ value[:, own])
    return torch.cat(parts, 1)


def pool(x: torch.Tensor, stride: int) -> torch.Tensor:
    """The largest of each stride x stride cells: (h, w, C) -> (h / s, w / s, C)."""
    rows = [x[i::stride, j::stride] for i in range(stride) for j in range(stride)]
    return torch.stack(rows).amax(0)


def windows(x: torch.Tensor, size: int, function: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """`function` of each window of a map (h, w, C) that zeros fill up, put together and cut to the map's share."""
    height, width, _ = x.shape
    if not size:
        return function(x)
    padded = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    rows = []
    for top in range(0, padded.shape[0], size):
        rows.append(
            [function(padded[top : top + size, left : left + size]) for left in range(0, padded.shape[1], size)]
        )
    whole = torch.cat([torch.cat(row, 1) for row in rows])
    part = size // rows[0][0].shape[0]
    return whole[: height // part, : width // part]


def hiera_stages(backbone: nn.Module, image: torch.Tensor, method: Plain) -> list[torch.Tensor]:
    """Outputs (h, w, C) of SAM 2's stages for one image (3, S, S)."""
    patch = base(backbone.patch_embed).projection
    x = F.conv2d(image[None], patch.weight, patch.bias, stride=patch.stride, padding=patch.padding)[0].permute(1, 2, 0)
    position = F.interpolate(backbone.pos_embed, size=x.shape[:2], mode="bicubic")[0]
    window = backbone.pos_embed_window[0]
    for row in range(x.shape[0]):
        for column in range(x.shape[1]):
            place = position[:, row, column] + window[:, row % window.shape[1], column % window.shape[2]]
            x = x.clone()
            x[row, column] += place
    stages = []
    for index, layer in enumerate(backbone.blocks):
        block = base(layer)
        x = method.before(index, x)
        stride = block.query_stride[0] if block.query_stride else 1
        normed = norm(x, block.layer_norm1, 1e-6)

        def attention(cell: torch.Tensor, block=block, stride=stride, index=index) -> torch.Tensor:
            qkv = method.linear(index, "qkv", block.attn.qkv, cell)
            query, key, value = qkv.chunk(3, -1)
            query = pool(query, stride)
            flat = [part.reshape(-1, part.shape[-1]) for part in (query, key, value)]
            attended = attend(*flat, block.attn.num_attention_heads).reshape(query.shape)
            return method.after_attention(index, F.linear(attended, block.attn.proj.weight, block.attn.proj.bias))

        shortcut = x
        if block.dim != block.dim_out:
            shortcut = pool(F.linear(normed, block.proj.weight, block.proj.bias), stride)
        x = shortcut + windows(normed, block.window_size, attention)
        normed = norm(x, block.layer_norm2, 1e-6)
        hidden = F.gelu(F.linear(normed, block.mlp.proj_in.weight, block.mlp.proj_in.bias))
        added = method.beside_mlp(index, normed)
        x = x + F.linear(hidden, block.mlp.proj_out.weight, block.mlp.proj_out.bias) + added
        if index in backbone.stage_ends:
            stages.append(x)
    return stages


def hiera_maps(encoder: nn.Module, images: torch.Tensor, method: Method = plain) -> list[torch.Tensor]:
    """The three finest maps (B, C, h, w) of SAM 2's neck, the finest first."""
    per_image = []
    for image in images:
        stages = hiera_stages(encoder.backbone, image, method(image))
        coarse, levels = None, []
        for level in (3, 2, 1, 0):
            conv = encoder.neck.convs[3 - level]
            lateral = torch.einsum("oc,hwc->ohw", conv.weight[:, :, 0, 0], stages[level]) + conv.bias[:, None, None]
            if level == 2:  # of the levels with a path from above, 2 and 3, the first
                lateral = lateral + coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)
            coarse = lateral
            levels.append(lateral)
        per_image.append(levels[::-1][:3])
    return [torch.stack(maps) for maps in zip(*per_image)]


def rotate(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, heads: int) -> torch.Tensor:
    """SAM 3's axial RoPE of (N, C): in each head the first half turns with the column, the second with the row."""
    count, width = x.shape
    size = width // heads
    pairs = size // 4
    frequency = 1 / 10000 ** (torch.arange(pairs) * 4 / size)
    angles = torch.cat([columns[:, None] * frequency, rows[:, None] * frequency], 1)  # (N, size / 2)
    even, odd = x.reshape(count, heads, size // 2, 2).unbind(-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(count, width)


def sam3_maps(encoder: nn.Module, images: torch.Tensor, method: Method = plain) -> list[torch.Tensor]:
    """The three finest maps (B, C, h, w) of SAM 3's neck, the finest first."""
    backbone = encoder.backbone
    per_image = []
    for image in images:
        callbacks = method(image)
        patch = base(backbone.embeddings.patch_embeddings).projection
        x = F.conv2d(image[None], patch.weight, stride=patch.stride)[0].permute(1, 2, 0)
        side = round(backbone.embeddings.position_embeddings.shape[1] ** 0.5)
        table = backbone.embeddings.position_embeddings.reshape(side, side, -1)
        rows = [[table[i % side, j % side] for j in range(x.shape[1])] for i in range(x.shape[0])]
        x = x + torch.stack([torch.stack(row) for row in rows])
        x = norm(x, backbone.layer_norm, 1e-6)
        for index, layer in enumerate(backbone.layers):
            block = base(layer)
            x = callbacks.before(index, x)
            scale = 1 if block.window_size else backbone.config.window_size / x.shape[1]

            def attention(
                cell: torch.Tensor, block=block, scale=scale, index=index, callbacks=callbacks
            ) -> torch.Tensor:
                places = torch.arange(cell.shape[0] * cell.shape[1])
                rows, columns = places // cell.shape[1] * scale, places % cell.shape[1] * scale
                heads = block.attention.num_attention_heads
                parts = []
                for name in ("q_proj", "k_proj", "v_proj"):
                    part = callbacks.linear(index, name, getattr(block.attention, name), cell)
                    parts.append(part.reshape(-1, part.shape[-1]))
                query, key = (rotate(part, rows, columns, heads) for part in parts[:2])
                attended = attend(query, key, parts[2], heads).reshape(cell.shape)
                out = block.attention.o_proj
                return callbacks.after_attention(index, F.linear(attended, out.weight, out.bias))

            x = x + windows(norm(x, block.layer_norm1, 1e-6), block.window_size, attention)
            normed = norm(x, block.layer_norm2, 1e-6)
            hidden = F.gelu(F.linear(normed, block.mlp.fc1.weight, block.mlp.fc1.bias))
            added = callbacks.beside_mlp(index, normed)
            x = x + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias) + added
        flat = x.permute(2, 0, 1)[None]
        per_image.append([layer(flat)[0] for layer in encoder.neck.fpn_layers[:3]])
    return [torch.stack(maps) for maps in zip(*per_image)]


class HieraPrompts(Plain):
    """SAM-Adapter on Hiera for one image (3, S, S): prompts before the blocks of each group of input widths.

    Args:
        backbone: with the adapter `default` in it.
        image: one.
        keep: `"high"` or `"low"`.
        absolute: of the frequencies.
    """

    def __init__(self, backbone: nn.Module, image: torch.Tensor, keep: str = "high", absolute: bool = True):
        patch = backbone.patch_embed
        self.tune = [layer.sam_adapter_tune["default"] for layer in backbone.blocks]
        self.up = patch.sam_adapter_up["default"]
        self.embedding = patch.sam_adapter_feature["default"]["embedding"]
        self.widths = [base(layer).dim for layer in backbone.blocks]
        self.group, self.guidance = -1, None
        self.maps = []
        x = complex_frequency_component(image[None], 0.25, keep, absolute)
        for number, embed in enumerate(patch.sam_adapter_feature["default"][keep]):
            stride, padding = (4, 3) if number == 0 else (2, 1)
            x = F.conv2d(x, embed.proj.weight, embed.proj.bias, stride=stride, padding=padding)
            tokens = norm(x.permute(0, 2, 3, 1), embed.norm, 1e-5)
            x = tokens.permute(0, 3, 1, 2)
            self.maps.append(tokens[0])

    def before(self, block: int, x: torch.Tensor) -> torch.Tensor:
        if block == 0 or self.widths[block] != self.widths[block - 1]:
            self.group += 1
            self.guidance = self._affine(self.embedding[str(self.group)], x) + self.maps[self.group]
        hidden = F.gelu(self._affine(self.tune[block], self.guidance))
        return x + self._affine(self.up[str(self.group)], hidden)

    @staticmethod
    def _affine(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        return x @ linear.weight.T + linear.bias
