"""The mathematics of CWSAM in one block: a prompt before it, an adapter after its attention, one beside its MLP."""

import torch
import torch.nn.functional as F
from torch import nn

from ...sam.per_thread import PerThread
from ..sam_adapter.layer import SamAdapterBlock, SamAdapterState
from .config import CwsamConfig


class Bottleneck(nn.Module):
    """W2 act(W1 x + b1) + b2: (…, D) -> (…, D).

    Args:
        width: D.
        config: ratio, activation and initialisation. As published: PyTorch's default; True: W2 and b2 zero.
    """

    def __init__(self, width: int, config: CwsamConfig):
        super().__init__()
        hidden = max(int(config.adapter_ratio * width), 1)
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.act = {"gelu": F.gelu, "relu": F.relu}[config.adapter_act]
        if config.init_weights is True:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)
        elif config.init_weights is False:
            for parameter in self.parameters():
                nn.init.normal_(parameter, std=0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(self.act(self.down(x.to(self.down.weight.dtype)))).to(x.dtype)


class Running(PerThread):
    """The block whose forward runs in this thread: in a replica of the model another than that which set the hooks."""

    block: "CwsamBlock | None" = None


class AfterAttention:
    """Forward hook of a block's attention: Y + A_space(Y), before the windows are put together again.

    Of what the attention returns Y is the first or, in SAM 2, all.

    An object instead of a closure, so that a model with it can be copied and pickled.
    """

    def __init__(self, block: "CwsamBlock"):
        self.block = block

    def __call__(self, module: nn.Module, args: tuple, output: torch.Tensor | tuple) -> torch.Tensor | tuple:
        attended, *rest = (output,) if isinstance(output, torch.Tensor) else output
        block = self.block.running.block or self.block
        added = [block.sam_adapter_space[name](attended) for name in block.live_in("sam_adapter_space")]
        summed = sum(added, attended)
        return summed if isinstance(output, torch.Tensor) else (summed, *rest)


class BesideMlp:
    """Forward hook of a block's MLP: MLP(Z) + scale A_mlp(Z)."""

    def __init__(self, block: "CwsamBlock"):
        self.block = block

    def __call__(self, module: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
        block = self.block.running.block or self.block
        for name in block.live_in("sam_adapter_mlp"):
            output = output + block.cwsam_scale[name] * block.sam_adapter_mlp[name](args[0])
        return output


class CwsamBlock(SamAdapterBlock):
    """Wraps one ViT block and owns all that CWSAM adds to it.

    The two adapters act through hooks on the base block's `attn` and `mlp`: tuner layers there would lie inside this
    one, where PEFT neither finds them for a second adapter nor removes them.
    """

    adapter_layer_names = ("sam_adapter_tune", "sam_adapter_space", "sam_adapter_mlp")
    other_param_names = ("cwsam_scale",)

    def __init__(self, base_layer: nn.Module, state: SamAdapterState, group: int = 0):
        super().__init__(base_layer, state, group)
        self.sam_adapter_space = nn.ModuleDict()
        self.sam_adapter_mlp = nn.ModuleDict()
        self.cwsam_scale: dict[str, float] = {}
        self.running = Running()
        attention = base_layer.attention if hasattr(base_layer, "attention") else base_layer.attn
        self.hooks = [
            attention.register_forward_hook(AfterAttention(self)),
            base_layer.mlp.register_forward_hook(BesideMlp(self)),
        ]

    def update_layer(self, adapter_name: str, config: CwsamConfig) -> None:
        """Add an adapter's parts of this block."""
        if config.block_adapters:
            width = self.base_layer.layer_norm2.normalized_shape[0]  # of its output; where it pools, twice the input's
            self.sam_adapter_space[adapter_name] = Bottleneck(width, config)
            self.sam_adapter_mlp[adapter_name] = Bottleneck(width, config)
            self.cwsam_scale[adapter_name] = config.adapter_scale
        super().update_layer(adapter_name, config)

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs):
        if getattr(self, "_is_replica", False):
            self.running.block = self
        return super().forward(hidden_states, *args, **kwargs)

    def remove_hooks(self) -> None:
        """Leave the base block as it came."""
        for hook in self.hooks:
            hook.remove()
