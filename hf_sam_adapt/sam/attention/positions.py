"""SAM's decomposed relative positions, as tables and as two small terms of each score.

The bias of query i at row r and column c for the key at (r', c') is q_i . H[r, r'] + q_i . W[c, c'] (MViTv2,
arXiv 2112.01526, section 4.1; `add_decomposed_rel_pos` of segment-anything): of 2 sqrt(S) terms for each query, not S.
"""

from typing import Any

import torch
from torch import Tensor

from ..constants import kept


def position_tables(attention: Any, height: int, width: int) -> tuple[Tensor, Tensor]:
    """H (height, height, d) and W (width, width, d) of a map of tokens; differentiable in the module's tables."""
    return _table(attention, attention.rel_pos_h, height), _table(attention, attention.rel_pos_w, width)


def _table(attention: Any, distances: Tensor, size: int) -> Tensor:
    """(size, size, d): the entry of `distances` (L, d) for each query's and key's place along one axis."""
    if len(distances) != 2 * size - 1:
        return attention.get_rel_pos(size, size, distances)  # interpolated
    return distances[kept(_offsets, size, distances.device)]


def _offsets(size: int, device: torch.device) -> Tensor:
    """int64 (size, size): the row of the distances for each query's and key's place."""
    place = torch.arange(size, device=device)
    return place[:, None] - place + (size - 1)


def relative_scores(q: Tensor, table_h: Tensor, table_w: Tensor) -> tuple[Tensor, Tensor]:
    """q . H and q . W: (B, heads, S, d) with (h, h, d) and (w, w, d) -> (B, heads, S, h) and (B, heads, S, w)."""
    batch, heads, length, width = q.shape
    maps = q.reshape(batch, heads, len(table_h), len(table_w), width)
    rel_h = torch.einsum("bnhwc,hkc->bnhwk", maps, table_h).reshape(batch, heads, length, -1)
    return rel_h, torch.einsum("bnhwc,wkc->bnhwk", maps, table_w).reshape(batch, heads, length, -1)
