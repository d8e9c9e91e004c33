"""Conv-LoRA literally, as the spec's sections 1.2 to 1.4 state it: real upsampling, a loop over experts, gathers."""

import torch
import torch.nn.functional as F
from torch.distributions import Normal


def expert(z: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, scale: int) -> torch.Tensor:
    """D_s(GELU(Conv(U_s(z)))) for z (N, H, W, r), weight (r, r, 3, 3), bias (r,)."""
    maps = z.permute(0, 3, 1, 2)
    size = maps.shape[-2:]
    if scale > 1:
        maps = F.interpolate(maps, scale_factor=scale, mode="bicubic")
    maps = F.gelu(F.conv2d(maps, weight, bias, padding=1))
    if scale > 1:
        maps = F.interpolate(maps, size=size, mode="bicubic")
    return maps.permute(0, 2, 3, 1)


def mixture(z: torch.Tensor, index: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Each sample through its expert: those of an expert are gathered, computed, and put back."""
    out = torch.zeros_like(z)
    for number in range(len(weight)):
        mine = (index == number).nonzero()[:, 0]
        if len(mine):
            out = out.index_copy(0, mine, expert(z[mine], weight[number], bias[number], number + 1))
    return out


class Layer:
    """One adapted Linear with the tensors of a `hf_sam_adapt` layer, as published (router "faithful", top 1)."""

    def __init__(self, layer, adapter_name: str = "default"):
        self.base = layer.get_base_layer()
        self.A, self.B = layer.lora_A[adapter_name].weight, layer.lora_B[adapter_name].weight
        self.scaling = layer.scaling[adapter_name]
        experts = layer.lora_experts[adapter_name]
        self.weight, self.bias = experts.weight, experts.bias
        self.w_gate, self.w_noise = experts.w_gate, experts.w_noise

    def __call__(self, x: torch.Tensor, training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Output (N, H, W, out) and the balance loss."""
        z = x @ self.A.T
        pooled = z.mean((1, 2))
        logits = pooled @ self.w_gate
        noisy, scale = logits, None
        if training:
            scale = F.softplus(pooled @ self.w_noise) + 0.01
            noisy = logits + torch.randn_like(logits) * scale
        index = noisy.argmax(1)
        moved = z + mixture(z, index, self.weight, self.bias)
        out = self.base(x) + self.scaling * (moved @ self.B.T)
        return out, 0.01 * balance(logits, noisy, scale, index)


def balance(logits: torch.Tensor, noisy: torch.Tensor, scale: torch.Tensor | None, index: torch.Tensor):
    """Section 1.4, sample by sample and expert by expert; `scale=None` is the form in evaluation."""
    samples, experts = logits.shape
    importance = torch.stack([(index == e).sum().to(logits.dtype) for e in range(experts)])
    load = importance
    if scale is not None:
        rows = []
        for n in range(samples):
            first, second = noisy[n].sort(descending=True).values[:2]
            bars = [second if noisy[n, e] > second else first for e in range(experts)]
            rows.append(Normal(0.0, 1.0).cdf((logits[n] - torch.stack(bars)) / scale[n]))
        load = torch.stack(rows).sum(0)
    return squared_variation(importance) + squared_variation(load)


def squared_variation(values: torch.Tensor) -> torch.Tensor:
    return values.var() / (values.mean() ** 2 + 1e-10)
