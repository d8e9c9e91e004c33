"""The mixture's convolution, exact and without upsampled maps: gather, four matrix products, GELU.

For sample n with expert e of scale s it computes D_s(GELU(Conv_e(U_s(z_n)))) of the publication. Sizes are fixed by
the input's shape alone: nothing depends on which expert a sample takes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .routing import one_hot
from .sampling import KERNEL, sampling_tables


def expert_convolution(
    z: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, scales: tuple[float, ...]
) -> torch.Tensor:
    """Convolve each sample with its expert.

    Args:
        z: (N, H, W, r), fp32 or fp64.
        index: int64 (N,), the expert of each sample.
        weight: (M, r, r, 3, 3), out channels first.
        bias: (M, r).
        scales: of the M experts.

    Returns:
        (N, H, W, r). Only z, index and the weights are kept for backward, the rest is computed again.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_exporting():
        return _ExpertConvolution.apply(z, index, weight, bias, scales)
    return _forward(z, index, weight, bias, scales)


class _ExpertConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, index, weight, bias, scales):
        ctx.save_for_backward(z, index, weight, bias)
        ctx.scales = scales
        return _forward(z, index, weight, bias, scales)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return *_backward(grad, *ctx.saved_tensors, ctx.scales), None


def _select(z, index, weight, bias, scales):
    """Tables, kernel and bias of each sample, and the basis of the kernels."""
    _, height, width, _ = z.shape
    *tables, basis = sampling_tables(scales, height, width, z.device, z.dtype)
    tables = [table.index_select(0, index) for table in tables]
    kernel = row_kernels(weight, basis).index_select(0, index)  # (N, R r, 3 P r)
    return tables, kernel, bias.index_select(0, index), basis


def row_kernels(weight: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """The three rows of each kernel as matrices on R columns: (M, r, r, 3, 3), (3, R, P) -> (M, R r, 3 P r)."""
    # o, i: channels; y, x: taps; b: column; l: phase
    return torch.einsum("moiyx,xbl->mbiylo", weight, basis).flatten(3).flatten(1, 2)


def _before_activation(z, tables, kernel, bias):
    """Interpolated columns (N, H W, R r) and the phases' pre-activations (N, H P, W P r)."""
    samples, height, width, rank = z.shape
    rows, row_weights, columns, _ = tables
    phases = row_weights.shape[-1]
    across = z.transpose(1, 2).reshape(samples, width, height * rank)
    across = torch.bmm(columns, across)  # (N, W R, H r)
    across = across.view(samples, width, -1, height, rank).permute(0, 3, 1, 2, 4)  # (N, H, W, R, r)
    across = across.reshape(samples, height * width, -1)
    by_row = torch.bmm(across, kernel)  # (N, H W, 3 P r)
    by_row = by_row.view(samples, height, width, KERNEL, -1).permute(0, 3, 1, 2, 4)  # (N, 3, H, W, P r)
    by_row = by_row.reshape(samples, KERNEL * height, -1)
    shift = bias.repeat(1, width * phases)[:, None]  # (N, 1, W P r)
    return across, torch.baddbmm(shift, rows, by_row)


def _forward(z, index, weight, bias, scales):
    samples, height, width, rank = z.shape
    tables, kernel, bias, _ = _select(z, index, weight, bias, scales)
    _, row_weights, _, column_weights = tables
    phases = row_weights.shape[-1]
    _, before = _before_activation(z, tables, kernel, bias)
    active = F.gelu(before).view(samples * height, phases, -1)
    summed = torch.bmm(row_weights.view(samples * height, 1, phases), active)  # (N H, 1, W P r)
    summed = summed.view(samples, height, width, phases, rank)
    return (summed * column_weights[:, None, :, :, None]).sum(3)


def _backward(grad, z, index, weight, bias, scales):
    samples, height, width, rank = z.shape
    tables, kernel, shift, basis = _select(z, index, weight, bias, scales)
    rows, row_weights, columns, column_weights = tables
    across, before = _before_activation(z, tables, kernel, shift)
    phases = row_weights.shape[-1]
    grad = grad[:, :, :, None] * column_weights[:, None, :, :, None]  # (N, H, W, P, r)
    grad = grad.view(samples, height, 1, -1) * row_weights[..., None]  # (N, H, P, W P r)
    grad = torch.ops.aten.gelu_backward(grad.view(before.shape), before)
    grad_bias = grad.sum(1).view(samples, -1, rank).sum(1)  # (N, r)
    grad = torch.bmm(rows.mT, grad)  # (N, 3 H, W P r)
    grad = grad.view(samples, KERNEL, height, width, -1).permute(0, 2, 3, 1, 4)  # (N, H, W, 3, P r)
    grad = grad.reshape(samples, height * width, -1)
    grad_kernel = torch.bmm(across.mT, grad)  # (N, R r, 3 P r)
    grad = torch.bmm(grad, kernel.mT)  # (N, H W, R r)
    grad = grad.view(samples, height, width, -1, rank).permute(0, 2, 3, 1, 4)  # (N, W, R, H, r)
    grad = torch.bmm(columns.mT, grad.reshape(samples, -1, height * rank))  # (N, W, H r)
    grad_z = grad.view(samples, width, height, rank).transpose(1, 2)

    chosen = one_hot(index, len(weight)).to(z.dtype).mT  # (M, N); a product with it is deterministic on a GPU
    grad_bias = chosen @ grad_bias
    grad_kernel = (chosen @ grad_kernel.flatten(1)).view(len(weight), -1, rank, KERNEL, phases, rank)
    grad_weight = torch.einsum("mbiylo,xbl->moiyx", grad_kernel, basis)
    return grad_z, None, grad_weight, grad_bias
