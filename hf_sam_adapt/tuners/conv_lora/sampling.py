"""Which low-resolution tokens an expert of scale s reads: its resampling as small dense tables.

Published, an expert upsamples by s (bicubic), convolves 3x3 with zero padding, applies GELU and downsamples (bicubic).
Without antialiasing the downsampling reads one pixel of the upsampled map per token for odd s, four a side for even s,
with fixed weights; and upsampling is linear. So per axis token i needs the pre-activations of at most P = 4 upsampled
pixels ("phases"), each of which the convolution makes from 3 rows out of R = P + 2 consecutive ones. `interpolation`
holds those rows, `reduction` the weights of the phases.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from ...errors import UserError


KERNEL = 3  # taps a side of the convolution
_CUBIC = -0.75  # Keys' parameter in F.interpolate(mode="bicubic")
_EVEN_TAPS = (-3 / 32, 19 / 32, 19 / 32, -3 / 32)  # bicubic weights half-way between two pixels


def check_scales(scales: list[float]) -> None:
    """Raise `UserError` unless each scale is a whole number (upsampling) or 1/d (taps d tokens apart)."""
    for scale in scales:
        ratio = scale if scale >= 1 else 1 / scale if scale > 0 else math.nan
        if not abs(ratio - round(ratio)) < 1e-3:
            raise UserError(
                f"expert_scales: {scale} is neither a whole number (upsampling) nor 1/d (taps d tokens apart)"
            )


def num_phases(scales: tuple[float, ...]) -> int:
    """P: 4 if a scale is even, else 1."""
    return 4 if any(scale >= 1 and round(scale) % 2 == 0 for scale in scales) else 1


def axis_tables(
    scales: tuple[float, ...], length: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tables of one axis, for all scales.

    Args:
        scales: of the M experts; s >= 1 upsamples, s = 1/d puts the taps d tokens apart, with zeros outside.
        length: tokens along the axis.

    Returns:
        `interpolation` (M, length, P + 2, length) and `reduction` (M, length, P).
    """
    phases = num_phases(scales)
    factor = torch.tensor([max(round(scale), 1) for scale in scales], device=device)[:, None, None]
    gap = torch.tensor([0 if scale >= 1 else round(1 / scale) for scale in scales], device=device)[:, None, None]
    token = torch.arange(length, device=device)[None, :, None]
    row = torch.arange(phases + KERNEL - 1, device=device)
    even = factor % 2 == 0
    # First upsampled pixel that the downsampling reads; the convolution starts one before.
    first = factor * token + torch.where(even, factor // 2 - 2, (factor - 1) // 2)  # (M, L, 1)
    pixel = torch.where(gap > 0, token + (row - 1) * gap, first - 1 + row)  # (M, L, R)
    inside = (pixel >= 0) & (pixel < factor * length)  # the convolution pads with zeros
    position = (pixel.double() + 0.5) / factor - 0.5
    start = position.floor()
    tap = torch.arange(-1, KERNEL, device=device)
    source = (start[..., None].long() + tap).clamp(0, length - 1)  # (M, L, R, 4)
    weight = _cubic((position - start)[..., None] - tap) * inside[..., None]
    every = torch.arange(length, device=device)
    interpolation = ((source[..., None] == every) * weight[..., None]).sum(3)  # (M, L, R, L)

    # Scale 2 reads beyond the map at its ends, where F.interpolate clamps.
    read = (first + torch.arange(4, device=device)).clamp(min=0)
    read = torch.minimum(read, factor * length - 1) - first  # (M, L, 4)
    taps = torch.tensor(_EVEN_TAPS, device=device, dtype=torch.float64)
    phase = torch.arange(phases, device=device)
    reduction = ((read[..., None] == phase) * taps[:, None]).sum(2)  # (M, L, P)
    single = (phase == 0).double().expand_as(reduction)
    return interpolation.to(dtype), torch.where(even & (gap == 0), reduction, single).to(dtype)


def _cubic(distance: torch.Tensor) -> torch.Tensor:
    """Keys' kernel, for distances up to 2."""
    x = distance.abs()
    near = ((_CUBIC + 2) * x - (_CUBIC + 3)) * x * x + 1
    far = ((_CUBIC * x - 5 * _CUBIC) * x + 8 * _CUBIC) * x - 4 * _CUBIC
    return torch.where(x <= 1, near, far)


def kernel_basis(phases: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """0/1 tensor (3 taps, R columns, P phases): which tap of a row of the kernel meets column b in phase l."""
    tap, column, phase = (torch.arange(n, device=device) for n in (KERNEL, phases + KERNEL - 1, phases))
    return (column[:, None] - phase == tap[:, None, None]).to(dtype)


def sampling_tables(
    scales: tuple[float, ...], height: int, width: int, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The tables of a grid.

    Returns:
        rows: (M, P H, 3 H), for phase k of token row h the three rows that the kernel's rows meet.
        row_weights: (M, H, P).
        columns: (M, R W, W).
        column_weights: (M, W, P).
        basis: of `kernel_basis`.
    """
    # A compiler computes them in its graph: tensors made while it traces must not stay in a cache.
    make = _make_tables if torch.compiler.is_compiling() else _cached_tables
    return make(scales, height, width, device, dtype)


def _make_tables(scales, height, width, device, dtype):
    interpolation, row_weights = axis_tables(scales, height, device, dtype)  # (M, H, R, H), (M, H, P)
    phases = row_weights.shape[-1]
    rows = torch.stack([interpolation[:, :, tap : tap + phases] for tap in range(KERNEL)], dim=3)  # (M, H, P, 3, H)
    rows = rows.reshape(len(scales), height * phases, KERNEL * height)
    columns, column_weights = axis_tables(scales, width, device, dtype)
    return rows, row_weights, columns.flatten(1, 2), column_weights, kernel_basis(phases, device, dtype)


_cached_tables = lru_cache(maxsize=32)(_make_tables)
