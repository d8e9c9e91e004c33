"""FlexAttention that adds the bias from the two small terms while it computes the scores."""

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from ...errors import UserError
from .positions import relative_scores


@lru_cache(maxsize=1)
def _compiled():
    return torch.compile(flex_attention, dynamic=False)


def flexible_attention(qkv: Tensor, table_h: Tensor, table_w: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T + bias) v.

    Args:
        qkv: (B, S, 3, heads, d), S = height * width.
        table_h: (height, height, d), H of every query row and key row.
        table_w: (width, width, d), W of every query column and key column.
        scale: factor of q k^T; the bias is not scaled.

    Returns:
        (B, S, heads, d).

    Raises:
        UserError: gradients are wanted on a CPU, where FlexAttention has none.
    """
    tensors = (qkv, table_h, table_w)
    if qkv.device.type == "cpu" and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise UserError("flex has no gradients on a CPU", key="attention", fix="use auto or folded")
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, S, d)
    rel_h, rel_w = relative_scores(q, table_h.to(q.dtype), table_w.to(q.dtype))
    columns = len(table_w)

    def add_bias(score: Tensor, image: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + rel_h[image, head, query, key // columns] + rel_w[image, head, query, key % columns]

    # Uncompiled it would make the whole attention and its bias.
    run = flex_attention if torch.compiler.is_compiling() else _compiled()
    return run(q, k, v, score_mod=add_bias, scale=scale).transpose(1, 2)
