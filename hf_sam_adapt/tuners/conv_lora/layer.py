"""The mathematics of Conv-LoRA in one adapted Linear."""

from __future__ import annotations

import math

import torch
from peft.tuners.lora.layer import LoraLayer, LoraVariant
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...errors import UserError
from . import routing
from .config import ConvLoraConfig
from .convolution import expert_convolution


Routing = tuple[torch.Tensor, ...]  # of a layer, the arguments of `routing.balance_loss`
PREFIX_TOKENS = (0, 1, 2, 5)  # none; class; class and distillation; class and four registers


class ConvExperts(nn.Module):
    """The mixture of convolution experts of one layer and adapter: z -> z + E_e(z) for each sample.

    Args:
        rank: channels of z.
        config: experts, router and grid.
    """

    def __init__(self, rank: int, config: ConvLoraConfig):
        super().__init__()
        self.config = config
        experts, kernel = config.num_experts, config.conv_kernel_size
        self.scales = tuple(float(scale) for scale in config.scales)
        self.weight = nn.Parameter(torch.empty(experts, rank, rank, kernel, kernel))
        self.bias = nn.Parameter(torch.empty(experts, rank))
        if experts > 1:
            self.w_gate = nn.Parameter(torch.empty(rank, experts))
            self.w_noise = nn.Parameter(torch.empty(rank, experts))
        self.last_routing: Routing | None = None
        self._last_choice: tuple[torch.Tensor, torch.Tensor] | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As published: PyTorch's default for convolutions, bias and gates zero; `init_weights=False`: all random."""
        nn.init.uniform_(self.weight, -1, 1)
        self.weight.div_(math.sqrt(self.weight[0, 0].numel()))  # (r, k, k) inputs of an output channel
        for name, parameter in self.named_parameters():
            if name != "weight" and self.config.init_weights is False:
                nn.init.normal_(parameter, std=0.5)
            elif name != "weight":
                nn.init.zeros_(parameter)

    def _apply(self, fn, recurse: bool = True) -> ConvExperts:
        # With `memory_format=torch.channels_last`, `to` takes tensors of four or five dimensions for images, and
        # fails on five: of the kernels, which are none, it sees three.
        def flat(tensor: torch.Tensor) -> torch.Tensor:
            return fn(tensor.flatten(2)).unflatten(2, tensor.shape[2:]) if tensor.dim() == 5 else fn(tensor)

        return super()._apply(flat, recurse)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """z (N, H, W, r), or (N, L, r) with prefix tokens, which pass unchanged; computed in fp32 or more."""
        with torch.autocast(z.device.type, enabled=False):
            precise = z if z.dtype == torch.float64 else z.float()
            if z.dim() == 4:
                return (precise + self._mixture(precise)).to(z.dtype)
            prefix, height, width = token_grid(z, self.config)
            tokens = precise[:, prefix:]
            tokens = tokens + self._mixture(tokens.unflatten(1, (height, width))).flatten(1, 2)
            return torch.cat([precise[:, :prefix], tokens], dim=1).to(z.dtype)

    def _mixture(self, z: torch.Tensor) -> torch.Tensor:
        index, factor = self._route(z.mean((1, 2)))  # (N, k), (N, k) or None
        samples, active = index.shape
        weight, bias = self.weight.to(z.dtype), self.bias.to(z.dtype)
        if weight.shape[-1] == 1:
            weight = nn.functional.pad(weight, (1, 1, 1, 1))
        repeated = z if active == 1 else z.repeat_interleave(active, dim=0)
        out = expert_convolution(repeated, index.flatten(), weight, bias, self.scales)  # (N k, H, W, r)
        if factor is not None:
            out = out * factor.flatten()[:, None, None, None]
        return out if active == 1 else out.unflatten(0, (samples, active)).sum(1)

    def _route(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Experts of each sample and the factors of their outputs, from the mean of z (N, r)."""
        config, samples = self.config, pooled.shape[0]
        if config.num_experts == 1:
            return torch.zeros(samples, 1, dtype=torch.int64, device=pooled.device), None
        logits = pooled @ self.w_gate.to(pooled.dtype)  # (N, M)
        if not self.training and config.eval_routing != "argmax":
            every = torch.arange(config.num_experts, device=pooled.device).expand(samples, -1)
            uniform = config.eval_routing == "uniform"
            share = torch.full_like(logits, 1 / config.num_experts) if uniform else logits.softmax(1)
            return every, share
        chosen_by = logits
        if self.training:
            scale = routing.noise_scale(pooled, self.w_noise.to(pooled.dtype))
            chosen_by = torch.addcmul(logits, torch.randn_like(logits), scale)
        index, gates, border = routing.top_experts(chosen_by, config.top_k)
        if self.training:
            self._remember((logits, chosen_by, scale, index, gates, border))
        if config.router == "faithful":
            return index, None
        probability = chosen_by.softmax(1).gather(1, index)
        if config.router == "switch":
            return index, probability
        value = probability.detach()
        return index, torch.where(value > 0, probability / value.where(value > 0, 1), 1.0)  # 1, with p's gradient

    def _remember(self, choice: Routing) -> None:
        """Keep what the loss and the counts of this forward are made of; not of a checkpoint's recomputation."""
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return
        self.last_routing = choice
        self._last_choice = choice[3], choice[0].detach()

    @property
    def last_counts(self) -> torch.Tensor | None:
        """int64 (2, M): samples of the last training forward that took each expert, and that would without noise."""
        if self._last_choice is None:
            return None
        index, logits = self._last_choice
        taken = routing.one_hot(index, self.config.num_experts).sum((0, 1))
        return torch.stack([taken, routing.one_hot(logits.argmax(1), self.config.num_experts).sum(0)])

    def train(self, mode: bool = True) -> ConvExperts:
        self.last_routing = self._last_choice = None
        return super().train(mode)

    def __getstate__(self) -> dict:
        # Tensors inside a graph can be neither copied nor pickled.
        return self.__dict__ | {"last_routing": None, "_last_choice": None}


class ConvLoraVariant(LoraVariant):
    """PEFT's hook into the forward of its LoRA layers, quantised ones included."""

    def supports_lora_conversion(self) -> bool:
        return False

    @staticmethod
    def init(module: LoraLayer, adapter_name: str, config: ConvLoraConfig) -> None:
        """Add the experts to a layer that has A and B already."""
        if "lora_experts" not in module._modules:
            module.lora_experts = nn.ModuleDict()
            module.adapter_layer_names = (*module.adapter_layer_names, "lora_experts")
        module.lora_experts[adapter_name] = ConvExperts(module.r[adapter_name], config)
        module._move_adapter_to_device_of_base_layer(adapter_name)

    @staticmethod
    def forward(
        module: LoraLayer, active_adapter: str, x: torch.Tensor, result: torch.Tensor, **kwargs
    ) -> torch.Tensor:
        z = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        y = module.lora_experts[active_adapter](z)
        return add_projection(result, y, module.lora_B[active_adapter], module.scaling[active_adapter])

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(NOT_MERGEABLE)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: torch.Tensor) -> None:
        raise NotImplementedError(NOT_MERGEABLE)

    @staticmethod
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError(NOT_MERGEABLE)


NOT_MERGEABLE = (
    "Conv-LoRA cannot be merged: its update has a GELU, mixes neighbouring tokens and picks an expert by the input, "
    "so no weight can hold it. Use unload() for the base model, or torch.export for deployment"
)


def add_projection(result: torch.Tensor, y: torch.Tensor, lora_B: nn.Module, scaling: float) -> torch.Tensor:
    """result + scaling * lora_B(y) in one pass over the wide tensors, where nothing hooks into `lora_B`."""
    fused = type(lora_B) is nn.Linear and lora_B.bias is None and not lora_B._forward_pre_hooks
    if not fused or result.dtype != y.dtype:
        return result + lora_B(y) * scaling
    # Of a contiguous transpose the gradient is a product that a CPU computes in a third of the time.
    weight = lora_B.weight.t().contiguous()
    flat = torch.addmm(result.flatten(0, -2), y.flatten(0, -2), weight, alpha=scaling)
    return flat.view(result.shape)


def token_grid(z: torch.Tensor, config: ConvLoraConfig) -> tuple[int, int, int]:
    """Prefix tokens, rows and columns of a token sequence (N, L, r).

    Raises:
        UserError: if the tokens are no grid, or no square one and `grid` is not given.
    """
    if z.dim() != 3:
        raise UserError(
            f"Conv-LoRA needs (N, H, W, C) or (N, L, C), got {z.dim()} dimensions", fix="change target_modules"
        )
    length, prefix = z.shape[1], config.num_prefix_tokens
    if config.grid is not None:
        height, width = config.grid
        found = length - height * width
        if found < 0 or prefix not in (None, found):
            raise UserError(f"grid={config.grid}: {length} tokens are not {height} x {width} and {prefix or 0} before")
        return found, height, width
    for candidate in PREFIX_TOKENS if prefix is None else (prefix,):
        side = math.isqrt(max(length - candidate, 0))
        if side * side == length - candidate and side > 1:
            return candidate, side, side
    raise UserError(f"{length} tokens are not a square grid", fix="set grid: [rows, columns] (and num_prefix_tokens)")


def balance_loss(model: nn.Module, *, keep: bool = True) -> torch.Tensor | None:
    """The balance losses of the last forward in training mode, summed over layers and active adapters.

    Add it to the task's loss. Works with gradient checkpointing that is not reentrant.

    Args:
        model: any model with Conv-LoRA in it, wrapped or not.
        keep: for a further call; the graph of a forward whose output is dropped then lives until the next forward.

    Returns:
        A scalar with gradient; None where no gate was used (no Conv-LoRA, adapter disabled, `eval()`).

    Raises:
        RuntimeError: if the forward ran under reentrant gradient checkpointing, which has no graph.
    """
    alike: dict[tuple, list[Routing]] = {}
    for _, experts in active_experts(model):
        choice = experts.last_routing
        if choice is None:
            continue
        if torch.is_grad_enabled() and experts.w_gate.requires_grad and not choice[0].requires_grad:
            raise RuntimeError(
                "the balance loss has no gradient: use gradient checkpointing with use_reentrant=False, and call "
                "balance_loss after a forward with gradients"
            )
        logits, index = choice[0], choice[3]
        key = experts.config.balance_loss_coef, logits.shape, index.shape, logits.dtype, logits.device
        alike.setdefault(key, []).append(choice)
        if not keep:
            experts.last_routing = None
    losses = []
    for (coefficient, *_), choices in alike.items():
        # Of all layers at once: a layer's own loss would be many small kernels.
        stacked = [torch.stack(tensors) for tensors in zip(*choices)]
        losses.append(coefficient * routing.balance_loss(*stacked).sum())
    return torch.stack(losses).sum() if losses else None


def active_experts(model: nn.Module) -> list[tuple[str, ConvExperts]]:
    """Name of the layer and experts of each active adapter; empty while adapters are disabled."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and "lora_experts" in module._modules and not module.disable_adapters:
            found += [(name, module.lora_experts[a]) for a in module.active_adapters if a in module.lora_experts]
    return found
