"""Which experts a sample takes, and the loss that keeps them in balance (paper §3.2; Shazeer et al. 2017)."""

import math

import torch
import torch.nn.functional as F


NOISE_FLOOR = 0.01  # least standard deviation of the routing noise


def one_hot(index: torch.Tensor, count: int) -> torch.Tensor:
    """bool (…, count) of int64 (…,); F.one_hot looks at the values, for which a GPU would wait."""
    return index[..., None] == torch.arange(count, device=index.device)


def top_experts(logits: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The `top_k` experts of each sample, their share among themselves, and the logits of the last one and the next.

    (N, M) -> int64 (N, k), float (N, k), float (N, 2), or (N, 1) where there is no next one.
    """
    values, index = logits.topk(min(top_k + 1, logits.shape[1]), dim=1)
    return index[:, :top_k], values[:, :top_k].softmax(dim=1), values[:, top_k - 1 :]


def noise_scale(pooled: torch.Tensor, w_noise: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the noise on each logit: (N, r), (r, M) -> (N, M)."""
    return F.softplus(pooled @ w_noise) + NOISE_FLOOR


def balance_loss(
    logits: torch.Tensor,
    noisy: torch.Tensor,
    scale: torch.Tensor,
    index: torch.Tensor,
    gates: torch.Tensor,
    border: torch.Tensor,
) -> torch.Tensor:
    """CV^2 of importance plus CV^2 of load of one layer as a scalar, or of several alike as (L,).

    Args: for several layers each with L before its dimensions.
        logits: of the gate, without noise (N, M).
        noisy: the logits that chose the experts (N, M).
        scale: standard deviation of the noise (N, M).
        index: the experts chosen (N, k).
        gates: their shares (N, k).
        border: noisy logits of the last expert chosen and of the first one not chosen (N, 2), of `top_experts`.
    """
    importance = _sum_by_expert(index, gates, logits.shape[-1])
    if border.shape[-1] == 1:
        return squared_variation(importance)
    if_out, if_in = border[..., :1], border[..., 1:]
    threshold = torch.where(noisy > if_in, if_in, if_out)
    load = torch.special.ndtr((logits - threshold) / scale).sum(-2)
    return squared_variation(torch.stack([importance, load])).sum(0)


def _sum_by_expert(index: torch.Tensor, gates: torch.Tensor, experts: int) -> torch.Tensor:
    """(..., N, k), (..., N, k) -> (..., M); a GPU adds in the same order each time, which scatter_add would not."""
    return torch.where(one_hot(index, experts), gates[..., None], 0).sum((-3, -2))


def squared_variation(values: torch.Tensor) -> torch.Tensor:
    """Squared coefficient of variation with the unbiased variance, (..., M) -> (...); 0 for a single value."""
    if values.shape[-1] == 1:
        return values.new_zeros(values.shape[:-1])
    variance, mean = torch.var_mean(values, dim=-1)
    return variance / (mean.square() + 1e-10)


def normalised_entropy(counts: torch.Tensor) -> float:
    """Entropy of how often each expert was taken (M,), from 0 (always the same) to 1 (all alike)."""
    share = counts.double() / counts.sum().clamp(min=1)
    if len(share) == 1:
        return 0.0
    return float(-(share * share.clamp(min=1e-12).log()).sum() / math.log(len(share)))
