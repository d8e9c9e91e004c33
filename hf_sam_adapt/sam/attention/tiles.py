"""Attention with decomposed relative positions on a CPU: tile by tile, the bias of one tile at a time.

The bias of the whole map has as many entries as the attention itself, and autograd keeps them. Here a tile's bias lies
in a buffer that is used again, the kernel is PyTorch's flash attention for CPUs, and backward computes the
probabilities anew from the saved logarithms of their sums: O(S) memory instead of O(S^2).
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .positions import relative_scores


_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

# Scores of a tile per thread. Forward: the kernel takes longer blocks of tiles of 768 rows or more. Backward: two
# buffers of a tile stay near the processor.
_FORWARD_SCORES = 2**22
_BACKWARD_SCORES = 2**20


def tiled_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v, differentiable in every tensor; one operation to autograd and `torch.compile`.

    Args:
        qkv: (B, S, 3, heads, d), S = height * width.
        table_h: (height, height, d), H of every query row and key row (see `positions`), of any float dtype.
        table_w: (width, width, d), W of every query column and key column.
        scale: factor of q k^T; the bias is not scaled.

    Returns:
        (B, S, heads, d).
    """
    return _forward(qkv, table_h, table_w, scale)[0]


# Without autocast: it would round the terms of the bias.
@torch.library.custom_op("hf_sam_adapt::tiled_attention", mutates_args=())
@torch.autocast("cpu", enabled=False)
def _forward(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, S, d)
    batch, heads, length, _ = q.shape
    wide = _wide(q.dtype)
    rel_h, rel_w = relative_scores(q.to(wide), table_h.to(wide), table_w.to(wide))
    out = torch.empty_like(qkv[:, :, 0], memory_format=torch.contiguous_format)  # (B, S, heads, d)
    logsum = torch.empty((batch, heads, length), dtype=wide)
    buffer = logsum.new_empty(0)
    budget = _FORWARD_SCORES * torch.get_num_threads()
    for images, some in _groups(batch, heads, length, budget):
        for rows in _cuts(length, max(1, budget // length)):
            here = (images, some, rows)
            bias = _tile_bias(rel_h[here], rel_w[here], buffer)
            attended, logsum[here] = _flash(q[here], k[images, some], v[images, some], attn_mask=bias, scale=scale)
            out[images, rows, some] = attended.transpose(1, 2)
    return out, logsum


@_forward.register_fake
def _(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    batch, length, _, heads, width = qkv.shape
    logsum = qkv.new_empty((batch, heads, length), dtype=_wide(qkv.dtype))
    return qkv.new_empty((batch, length, heads, width)), logsum


@torch.library.custom_op("hf_sam_adapt::tiled_attention_backward", mutates_args=())
@torch.autocast("cpu", enabled=False)
def _backward(
    grad: Tensor, qkv: Tensor, table_h: Tensor, table_w: Tensor, out: Tensor, logsum: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    q = qkv[:, :, 0].transpose(1, 2).to(logsum.dtype)  # (B, heads, S, d)
    table_h, table_w = table_h.to(q.dtype), table_w.to(q.dtype)
    rel_h, rel_w = relative_scores(q, table_h, table_w)
    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    grad_h, grad_w = _tile_gradients(grad.contiguous(), qkv, rel_h, rel_w, out, logsum, scale, grad_qkv)
    # rel_h is (B, heads, height, width, height) of q against table_h (height, height, d); rel_w alike.
    batch, heads, length, width = q.shape
    grid = (batch, heads, len(table_h), len(table_w))
    grad_h, grad_w, maps = grad_h.view(*grid, -1), grad_w.view(*grid, -1), q.reshape(*grid, width)
    through = torch.einsum("bnhwk,hkc->bnhwc", grad_h, table_h) + torch.einsum("bnhwk,wkc->bnhwc", grad_w, table_w)
    grad_qkv[:, :, 0] += through.reshape(batch, heads, length, width).transpose(1, 2)
    grad_table_h = torch.einsum("bnhwk,bnhwc->hkc", grad_h, maps)
    grad_table_w = torch.einsum("bnhwk,bnhwc->wkc", grad_w, maps)
    return grad_qkv, grad_table_h.contiguous(), grad_table_w.contiguous()


@_backward.register_fake
def _(
    grad: Tensor, qkv: Tensor, table_h: Tensor, table_w: Tensor, out: Tensor, logsum: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), table_h.new_empty(table_h.shape), table_w.new_empty(table_w.shape)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor, None]:
    return *_backward(grad, *ctx.saved_tensors, ctx.scale), None


_forward.register_autograd(_differentiate, setup_context=_save)
OPERATION = torch.ops.hf_sam_adapt.tiled_attention.default


def _tile_gradients(
    grad: Tensor,
    qkv: Tensor,
    rel_h: Tensor,
    rel_w: Tensor,
    out: Tensor,
    logsum: Tensor,
    scale: float,
    grad_qkv: Tensor,
) -> tuple[Tensor, Tensor]:
    """Fill `grad_qkv` but for the way through the tables; returns the gradients of `rel_h` and `rel_w`.

    Scores, probabilities and sums are of fp32 at least, for a product of 16-bit matrices would round them; what is
    multiplied once more is rounded to the dtype of `qkv`, as flash attention does.
    """
    batch, length, _, heads, _ = qkv.shape
    budget = _BACKWARD_SCORES * torch.get_num_threads()
    grad_h, grad_w = torch.empty_like(rel_h), torch.empty_like(rel_w)
    tensors = (*qkv.permute(2, 0, 3, 1, 4), grad.transpose(1, 2), out.transpose(1, 2))  # each (B, heads, S, d)
    p_buffer, s_buffer = logsum.new_empty(0), logsum.new_empty(0)
    for group in _groups(batch, heads, length, budget):
        # n = images * heads of the group.
        narrow = [tensor[group].flatten(0, 1) for tensor in tensors]  # (n, S, d)
        q, k, v, slopes, attended = (tensor.to(logsum.dtype) for tensor in narrow)
        bias_h, bias_w, sums = (tensor[group].flatten(0, 1) for tensor in (rel_h, rel_w, logsum))
        # Constant along the keys, hence joined to the bias: exp(score - logsum) are the probabilities.
        bias_h = bias_h - sums[..., None]
        delta = (slopes * attended).sum(-1, keepdim=True)  # (n, S, 1)
        own_h, own_w = torch.empty_like(bias_h), torch.empty_like(bias_w)
        grads = [torch.zeros_like(k) for _ in range(3)]
        for rows in _cuts(length, max(1, budget // length)):
            p = _tile_bias(bias_h[:, rows], bias_w[:, rows], p_buffer)  # (n, t, S)
            p.baddbmm_(q[:, rows], k.mT, alpha=scale).exp_()
            grads[2] += torch.bmm(p.to(qkv.dtype).mT, narrow[3][:, rows])
            s = torch.bmm(slopes[:, rows], v.mT, out=s_buffer.resize_(p.shape))
            s.sub_(delta[:, rows]).mul_(p)  # gradient of the scores
            cells = s.unflatten(-1, (bias_h.shape[-1], bias_w.shape[-1]))  # (n, t, h, w)
            own_h[:, rows], own_w[:, rows] = cells.sum(3), cells.sum(2)
            s = s.mul_(scale).to(qkv.dtype)
            grads[0][:, rows] = torch.bmm(s, narrow[1])
            grads[1] += torch.bmm(s.mT, narrow[0][:, rows])
        for target, value in zip(grad_qkv.permute(2, 0, 3, 1, 4), grads):
            target[group] = value.view_as(target[group])
        grad_h[group], grad_w[group] = own_h.view_as(grad_h[group]), own_w.view_as(grad_w[group])
    return grad_h, grad_w


def _tile_bias(rel_h: Tensor, rel_w: Tensor, buffer: Tensor) -> Tensor:
    """The bias for every key: (..., t, h) and (..., t, w) -> (..., t, h w), written to `buffer`."""
    shape = (*rel_h.shape, rel_w.shape[-1])
    buffer.resize_(shape)
    return torch.add(rel_h[..., :, None], rel_w[..., None, :], out=buffer).flatten(-2)


def _groups(batch: int, heads: int, length: int, scores: int) -> Iterator[tuple[slice, slice]]:
    """Slices of images and heads with about `scores` entries of attention in all, at least one head of one image."""
    for images in _cuts(batch, max(1, scores // (heads * length**2))):
        for some in _cuts(heads, max(1, scores // length**2)):
            yield images, some


def _cuts(length: int, step: int) -> Iterator[slice]:
    """Slices of `range(length)`, as even as can be and at most `step` long."""
    pieces = math.ceil(length / step)
    ends = [length * index // pieces for index in range(pieces + 1)]
    return map(slice, ends[:-1], ends[1:])


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the flash kernel sums."""
    return dtype if dtype == torch.float64 else torch.float32
