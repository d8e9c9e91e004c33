"""Which low-resolution tokens an expert of scale s reads: its resampling as small dense tables.

Published, an expert upsamples by s (bicubic), convolves 3x3 with zero padding, applies GELU and downsamples (bicubic).
Without antialiasing the downsampling reads one pixel of the upsampled map per token for odd s, four a side for even s,
with fixed weights; and upsampling is linear. So per axis token i needs the pre-activations of at most P = 4 upsampled
pixels ("phases"), each of which the convolution makes from 3 rows out of R = P + 2 consecutive ones. `interpolation`
holds those rows, `reduction` the weights of the phases.

A map of many rows is cut into tiles, so that the dense tables do not grow with the square of its height.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ...errors import UserError
from ...sam.constants import kept


KERNEL = 3  # taps a side of the convolution
TILE = 16  # token rows of a tile, where a map has more than two
_REACH = 3  # tokens to either side that upsampling and convolution read; scale 1/d reads d
_CUBIC = -0.75  # Keys' parameter in F.interpolate(mode="bicubic")
_EVEN_TAPS = (-3 / 32, 19 / 32, 19 / 32, -3 / 32)  # bicubic weights half-way between two pixels


def check_scales(scales: list[float]) -> None:
    """Raise `UserError` unless each scale is a whole number (upsampling) or 1/d (taps d tokens apart)."""
    for scale in scales:
        ratio = scale if scale >= 1 else 1 / scale if scale > 0 else math.nan
        if not abs(ratio - round(ratio)) < 1e-3:
            raise UserError(
                f"{scale} is neither a whole number (upsampling) nor 1/d (taps d tokens apart)", key="expert_scales"
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


class Tables(NamedTuple):
    """What `expert_convolution` multiplies with on one size of map; M experts, W columns, r channels.

    Attributes:
        rows: (M, B, P T, 3 K), for phase k of token row t of tile b the three rows that the kernel's rows meet.
        row_weights: (M, B T, P).
        columns: (M, W, R W).
        column_weights: (M, P, W).
        kernels: (9 r + 1, 3 P (r + 1) R), of `kernel_basis`.
        fold: (H, B K), which token row a row of a tile is.
        halo: rows that a tile of K = T + 2 halo rows shares with either neighbour.
    """

    rows: torch.Tensor
    row_weights: torch.Tensor
    columns: torch.Tensor
    column_weights: torch.Tensor
    kernels: torch.Tensor
    fold: torch.Tensor
    halo: int


def kernel_basis(phases: int, rank: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """0/1 matrix that makes the rows of kernels of their weights and bias, (9 r + 1, 3 P (r + 1) R).

    Row (i, y, x), or the last one for the bias; column (y, phase l, i, column b of R): tap x of the kernel's row y
    meets column b = l + x in phase l. Channel i = r of the map is 1 everywhere, and the bias its weight in the middle.
    """
    columns, device_and_dtype = phases + KERNEL - 1, {"device": device, "dtype": dtype}
    tap, column, phase = (torch.arange(n, device=device) for n in (KERNEL, columns, phases))
    meets = (column[:, None] - phase == tap[:, None, None]).to(dtype)  # (x, b, l)
    channel, row = torch.eye(rank + 1, **device_and_dtype), torch.eye(KERNEL, **device_and_dtype)
    basis = torch.einsum("ij,yz,xbl->iyxzljb", channel, row, meets).flatten(3).flatten(0, 2)
    last = KERNEL * KERNEL * rank
    middle = last + KERNEL * KERNEL // 2
    return torch.cat([basis[:last], basis[middle : middle + 1]])


def sampling_tables(
    scales: tuple[float, ...], height: int, width: int, rank: int, device: torch.device, dtype: torch.dtype
) -> Tables:
    """The tables of a map, kept for the next call."""
    return kept(_make_tables, scales, height, width, rank, device, dtype, exported=True)


def _make_tables(scales, height, width, rank, device, dtype):
    experts, tiles = len(scales), math.ceil(height / TILE) if height > 2 * TILE else 1
    length = math.ceil(height / tiles)  # T
    halo = max(_REACH, *(round(1 / scale) for scale in scales)) if tiles > 1 else 0
    below = tiles * length - height  # rows of the last tile that the map lacks
    window = length + 2 * halo  # K
    interpolation, row_weights = axis_tables(scales, height, device, dtype)  # (M, H, R, H), (M, H, P)
    phases = row_weights.shape[-1]
    rows = torch.stack([interpolation[:, :, tap : tap + phases] for tap in range(KERNEL)], dim=3)  # (M, H, P, 3, H)
    rows = F.pad(rows, (halo, halo + below, 0, 0, 0, 0, 0, below))  # (M, B T, P, 3, B T + 2 halo)
    starts = range(0, tiles * length, length)
    rows = torch.stack([rows[:, start : start + length, ..., start : start + window] for start in starts], dim=1)
    columns, column_weights = axis_tables(scales, width, device, dtype)  # (M, W, R, W), (M, W, P)
    source = torch.arange(window, device=device) + torch.tensor(starts, device=device)[:, None] - halo  # (B, K)
    fold = torch.arange(height, device=device)[:, None] == source.flatten()
    return Tables(
        rows.reshape(experts, tiles, length * phases, KERNEL * window),
        F.pad(row_weights, (0, 0, 0, below)),
        columns.permute(0, 3, 2, 1).flatten(2),  # (M, W, R W)
        column_weights.mT.contiguous(),
        kernel_basis(phases, rank, device, dtype),
        fold.to(dtype),
        halo,
    )
