"""Configuration of Conv-LoRA (Zhong et al., "Convolution Meets LoRA", ICLR 2024, arXiv 2401.17868)."""

from dataclasses import dataclass, field

from peft import LoraConfig

from ...errors import UserError
from ..common.config import SamConfigMixin
from ..registry import ensure_peft_type
from .sampling import check_scales


ROUTERS = ("faithful", "straight_through", "switch")
EVAL_ROUTINGS = ("argmax", "soft", "uniform")

# Fields of LoraConfig that change what A and B are, or the base weights.
_OTHER_METHODS = (
    "use_dora use_qalora use_bdlora velora_config alora_invocation_tokens monteclora_config arrow_config "
    "kasa_config layer_replication target_parameters megatron_config trainable_token_indices"
).split()


@dataclass
class ConvLoraConfig(SamConfigMixin, LoraConfig):
    """Conv-LoRA: LoRA with a mixture of convolution experts between A and B.

    `y = W x + alpha / r B (z + E_e(z))`, `z = A x`, where expert e upsamples the r-dimensional map by its scale,
    convolves it 3x3, applies GELU and downsamples it; a gate on the mean of z picks e for each sample of the layer's
    batch axis (an image, or a window in windowed layers).

    Args:
        r: rank, and the channels of the experts.
        lora_alpha: alpha; the scale of the update is alpha / r.
        num_experts: M. One expert has no gate.
        top_k: experts per sample.
        expert_scales: scale of each expert, default 1 to M as published. A whole number s is the factor of
            upsampling, so the taps lie 1/s token apart; 1/d puts them d tokens apart.
        conv_kernel_size: 3, or 1 for experts that only mix channels.
        router: `"faithful"`: noisy top-k as published, whose gate gets no gradient from the task.
            `"straight_through"`: the same output, with the gradient of the gate's probability. `"switch"`: the output
            times the probability.
        eval_routing: what happens in `eval()`. `"argmax"`: the top-k experts; `"soft"`: all, weighted by their
            probability; `"uniform"`: all, averaged.
        balance_loss_coef: factor of the load-balancing loss of each layer.
        grid: (rows, columns) of tokens for layers fed with (N, L, C); None takes a square.
        num_prefix_tokens: class and register tokens before the grid; None infers them.
        init_lora_weights: alias of `init_weights`.
    """

    r: int = field(default=3, metadata={"help": "Rank, and channels of the experts."})
    lora_alpha: int = field(default=32, metadata={"help": "The update is scaled by lora_alpha / r."})
    num_experts: int = field(default=8, metadata={"help": "Convolution experts; 1 has no gate."})
    top_k: int = field(default=1, metadata={"help": "Experts per sample."})
    expert_scales: list[float] | None = field(
        default=None, metadata={"help": "Scale of each expert: s upsamples by s, 1/d has taps d tokens apart."}
    )
    conv_kernel_size: int = field(default=3, metadata={"help": "3, or 1 for channel mixing alone."})
    router: str = field(default="straight_through", metadata={"help": f"One of {', '.join(ROUTERS)}."})
    eval_routing: str = field(default="argmax", metadata={"help": f"One of {', '.join(EVAL_ROUTINGS)}."})
    balance_loss_coef: float = field(default=0.01, metadata={"help": "Factor of each layer's balance loss."})
    grid: list[int] | None = field(
        default=None, metadata={"help": "Rows and columns of tokens where layers get (N, L, C); null: a square."}
    )
    num_prefix_tokens: int | None = field(
        default=None, metadata={"help": "Class and register tokens before the grid; null: inferred."}
    )

    def __post_init__(self):
        layers = self.layers_to_transform
        if isinstance(self.target_modules, str):
            self.layers_to_transform = (
                None  # LoraConfig refuses it beside a regular expression, this method honours it
            )
        super().__post_init__()
        self.layers_to_transform = layers
        self.peft_type = ensure_peft_type("CONV_LORA")
        if not isinstance(self.init_lora_weights, bool):
            raise UserError(
                f"init_lora_weights={self.init_lora_weights!r} is not for Conv-LoRA", fix="use true or false"
            )
        if self.init_lora_weights is False:
            self.init_weights = False
        self.init_lora_weights = self.init_weights is not False
        if self.faithful:
            self.router, self.eval_routing = "faithful", "argmax"
            self.num_mask_tokens = self.num_mask_tokens or 1
        self._check()

    def _check(self) -> None:
        for name in _OTHER_METHODS:
            if getattr(self, name):
                raise UserError(f"{name} cannot be combined with Conv-LoRA", fix="leave it out")
        for name, known in (("router", ROUTERS), ("eval_routing", EVAL_ROUTINGS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name}={getattr(self, name)!r} is unknown", fix=f"use one of {', '.join(known)}")
        if self.num_experts < 1 or not 1 <= self.top_k <= self.num_experts:
            raise UserError(f"num_experts={self.num_experts}, top_k={self.top_k}: needs 1 <= top_k <= num_experts")
        if self.conv_kernel_size not in (1, 3):
            raise UserError(f"conv_kernel_size={self.conv_kernel_size}: use 3 or 1")
        if self.expert_scales is not None and len(self.expert_scales) != self.num_experts:
            raise UserError(f"expert_scales has {len(self.expert_scales)} entries for {self.num_experts} experts")
        check_scales(self.scales)
        if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
            raise UserError(f"grid={self.grid} must be the numbers of rows and columns")

    @property
    def scales(self) -> list[float]:
        """The scale of each expert."""
        return self.expert_scales or list(range(1, self.num_experts + 1))
