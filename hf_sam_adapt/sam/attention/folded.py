"""The bias folded into the product of queries and keys, for kernels that take no bias: flash attention on GPUs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..constants import kept
from .positions import relative_scores


def folded_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v by `scaled_dot_product_attention` without a mask.

    q' = [q, q.H / scale, q.W / scale] and k' = [k, onehot(row), onehot(column)] have the product scale q' k'^T = scale
    q k^T + bias. Flash attention wants heads of one size, so values get zeros where it takes them (`flash_takes`); the
    memory-efficient kernel, which runs elsewhere, does not.

    Args:
        qkv: (B, S, 3, heads, d), S = height * width.
        table_h: (height, height, d), H of every query row and key row.
        table_w: (width, width, d), W of every query column and key column.
        scale: factor of q k^T; the bias is not scaled.

    Returns:
        (B, S, heads, d).
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, S, d)
    # Divided before they are rounded: as exact in 16 bits as the tables themselves.
    rel_h, rel_w = relative_scores(q, (table_h / scale).to(q.dtype), (table_w / scale).to(q.dtype))
    queries, keys = fold(q, k, rel_h, rel_w)
    width = v.shape[-1]
    if flash_takes(queries):
        v = F.pad(v, (0, queries.shape[-1] - width))
    attended = F.scaled_dot_product_attention(queries, keys, v, scale=scale)
    return attended[..., :width].transpose(1, 2)


def flash_takes(queries: Tensor) -> bool:
    """Whether flash attention runs on heads like `queries` (…, d'), forward and, where gradients are wanted, backward.

    16-bit heads up to 256 wide; on a GPU of capability 8.6, 8.9 or 12.x, whose shared memory is small, those of 193 to
    224 have no backward.
    """
    width = queries.shape[-1]
    if queries.dtype not in (torch.bfloat16, torch.float16) or width > 256:
        return False
    if queries.device.type != "cuda" or not 192 < width <= 224 or not queries.requires_grad:
        return True
    major, minor = _capability(queries.device)
    return (major, minor) not in ((8, 6), (8, 9)) and major < 12


@torch.compiler.assume_constant_result
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def fold(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor) -> tuple[Tensor, Tensor]:
    """q' and k' of heads that are a multiple of 8 long, which the kernels demand.

    Args:
        q: (B, heads, S, d), as k.
        k: the keys, row by row of the map.
        rel_h: (B, heads, S, h), what each row of keys adds to q k^T.
        rel_w: (B, heads, S, w), what each column of keys adds.
    """
    batch, heads, _, width = q.shape
    height, columns = rel_h.shape[-1], rel_w.shape[-1]
    fill = -(width + height + columns) % 8
    onehot = kept(_places, height, columns, fill, k.device, k.dtype)
    queries = torch.cat([q, rel_h.to(q.dtype), F.pad(rel_w.to(q.dtype), (0, fill))], dim=-1)
    return queries, torch.cat([k, onehot.expand(batch, heads, -1, -1)], dim=-1)


def _places(height: int, columns: int, fill: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(height columns, height + columns + fill): each key's row and column as one-hot, and zeros."""
    row = torch.eye(height, device=device, dtype=dtype).repeat_interleave(columns, dim=0)
    column = torch.eye(columns, columns + fill, device=device, dtype=dtype).repeat(height, 1)
    return torch.cat([row, column], dim=1)
