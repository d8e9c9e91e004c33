"""The mixture's convolution, exact and without upsampled maps: gather, three matrix products, GELU.

For sample n with expert e of scale s it computes D_s(GELU(Conv_e(U_s(z_n)))) of the publication. Sizes are fixed by
the input's shape alone: nothing depends on which expert a sample takes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .sampling import KERNEL, Tables, sampling_tables


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
        # Whoever calls backward within autocast does not want the products rounded that forward computed exactly.
        with torch.autocast(grad.device.type, enabled=False):
            z_grad, weight_grad, bias_grad = _backward(grad, *ctx.saved_tensors, ctx.scales)
        return z_grad, None, weight_grad, bias_grad, None


def _select(z, index, weight, bias, scales):
    """The tables of the map with those of each sample's expert in place of all experts', and the samples' kernels."""
    _, height, width, rank = z.shape
    tables = sampling_tables(scales, height, width, rank, z.device, z.dtype)
    by_sample = (table.index_select(0, index) for table in tables[:4])
    weights = torch.cat([weight.flatten(2), bias[..., None]], dim=2)  # (M, r, 9 r + 1)
    kernel = (weights.flatten(0, 1) @ tables.kernels).view(len(weight), rank, KERNEL, -1)  # (M, r, 3, P (r + 1) R)
    kernel = kernel.transpose(1, 2).flatten(1).index_select(0, index)
    phases = tables.column_weights.shape[1]
    return Tables(*by_sample, *tables[4:]), kernel.view(
        z.shape[0], KERNEL * rank * phases, -1
    )  # (N, 3 r P, (r + 1) R)


def _before_activation(z, tables, kernel):
    """Interpolated columns (N, (r + 1) R, B K W) and the phases' pre-activations (N B, T P, r P W)."""
    samples, height, width, rank = z.shape
    _, tiles, _, window = tables.rows.shape
    window, halo = window // KERNEL, tables.halo
    step = window - 2 * halo
    # Beyond the map all rows have weight zero. The last channel, of ones, carries the bias.
    padded = z.new_ones(samples, tiles * step + 2 * halo, rank + 1, width)
    padded[:, halo : halo + height, :rank] = z.mT
    across = torch.bmm(padded.flatten(1, 2), tables.columns)  # (N, (B T + 2 halo) (r + 1), R W)
    across = across.view(samples, -1, rank + 1, tables.columns.shape[2] // width, width)
    across = across.unfold(1, window, step).permute(0, 2, 3, 1, 5, 4)  # (N, r + 1, R, B, K, W)
    across = across.reshape(samples, kernel.shape[2], -1)
    by_row = torch.bmm(kernel, across)  # (N, 3 r P, B K W)
    by_row = by_row.view(samples, KERNEL, -1, tiles, window, width).permute(0, 3, 1, 4, 2, 5)
    by_row = by_row.reshape(samples * tiles, KERNEL * window, -1)  # (N B, 3 K, r P W)
    return across, torch.bmm(tables.rows.flatten(0, 1), by_row)


def _forward(z, index, weight, bias, scales):
    samples, height, width, rank = z.shape
    tables, kernel = _select(z, index, weight, bias, scales)
    _, before = _before_activation(z, tables, kernel)
    phases = tables.column_weights.shape[1]
    active = torch.ops.aten.gelu_(before).view(-1, phases, before.shape[2])  # (N B T, P, r P W)
    summed = torch.bmm(tables.row_weights.view(-1, 1, phases), active)
    summed = summed.view(samples, -1, rank, phases, width)[:, :height]
    return (summed * tables.column_weights[:, None, None]).sum(3).mT


def _backward(grad, z, index, weight, bias, scales):
    samples, height, width, rank = z.shape
    tables, kernel = _select(z, index, weight, bias, scales)
    across, before = _before_activation(z, tables, kernel)
    _, tiles, _, window = tables.rows.shape
    window, phases = window // KERNEL, tables.column_weights.shape[1]
    token_rows = tables.row_weights.shape[1]  # B T
    grad = F.pad(grad.mT, (0, 0, 0, 0, 0, token_rows - height)) if token_rows > height else grad.mT.contiguous()
    grad = grad[:, :, :, None] * tables.column_weights[:, None, None]  # (N, B T, r, P, W)
    grad = grad.reshape(samples * token_rows, 1, -1).expand(-1, phases, -1)
    before = before.view(grad.shape)  # (N B T, P, r P W)
    grad = torch.ops.aten.gelu_backward.grad_input(grad, before, grad_input=before)
    rows = tables.rows * tables.row_weights.view(samples, tiles, -1, 1)
    grad = torch.bmm(rows.flatten(0, 1).mT, grad.view(samples * tiles, rows.shape[2], -1))  # (N B, 3 K, r P W)
    grad = grad.view(samples, tiles, KERNEL, window, rank * phases, width).permute(0, 2, 4, 1, 3, 5)
    grad = grad.reshape(samples, kernel.shape[1], -1)  # (N, 3 r P, B K W)
    grad_kernel = torch.bmm(grad, across.mT)  # (N, 3 r P, (r + 1) R)
    columns = tables.columns.shape[2] // width
    grad = torch.bmm(kernel[:, :, : rank * columns].mT, grad)  # (N, r R, B K W)
    grad = grad.view(samples, rank * columns, -1, width).transpose(1, 2).reshape(samples, tiles * window, -1)
    if tiles > 1:
        grad = torch.matmul(tables.fold, grad)  # (N, H, r R W)
    grad = torch.bmm(grad.reshape(samples, height * rank, -1), tables.columns.mT)  # (N, H r, W)
    grad_z = grad.view(samples, height, rank, width).mT

    # A product with who chose whom is deterministic on a GPU.
    experts = torch.arange(len(weight), device=z.device)
    chosen = (index == experts[:, None]).to(z.dtype)  # (M, N)
    grad_kernel = (chosen @ grad_kernel.flatten(1)).view(len(weight), KERNEL, rank, -1).transpose(1, 2)
    grad_weights = grad_kernel.flatten(2) @ tables.kernels.T  # (M, r, 9 r + 1)
    return grad_z, grad_weights[..., :-1].reshape(weight.shape), grad_weights[..., -1]
