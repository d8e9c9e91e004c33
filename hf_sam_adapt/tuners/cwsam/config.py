"""Configuration of CWSAM (Pu et al., "ClassWise-SAM-Adapter", arXiv 2401.02326)."""

from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import UserError
from ..registry import ensure_peft_type
from ..sam_adapter.config import SamAdapterConfig


ACTIVATIONS = ("gelu", "relu")


@dataclass
class CwsamConfig(SamAdapterConfig):
    """CWSAM: SAM-Adapter's prompts from low frequencies, two bottleneck adapters in every block, a class-wise decoder.

    `Y <- Y + A_space(Y)` on the attention's output, `MLP(Z) + scale A_mlp(Z)` beside the MLP, with
    `A(x) = W2 act(W1 x + b1) + b2` of width `int(adapter_ratio D)`. The other fields are those of `SamAdapterConfig`.
    The authors' ablations: `features=["embedding", "high"]` or `["embedding", "low", "high"]`, `use_prompts=False`,
    `block_adapters=False`.

    Args:
        lowpass_abs: take the absolute value of the low-frequency image, as published. It folds what is darker than the
            mean onto what is brighter; implied by `faithful`.
        use_prompts: prompts before every block.
        block_adapters: the two adapters in every block.
        adapter_ratio: width of their bottleneck as a share of the encoder's width.
        adapter_scale: factor of the adapter beside the MLP.
        adapter_act: activation between their layers.
    """

    features: list[str] = field(
        default_factory=lambda: ["embedding", "low"],
        metadata={"help": "Guidance features: 'embedding', 'high', 'low' or registered names; [] = bias only."},
    )
    lowpass_abs: bool = field(
        default=False, metadata={"help": "Absolute value of the low-frequency image, as published."}
    )
    use_prompts: bool = field(default=True, metadata={"help": "Prompts before every block."})
    block_adapters: bool = field(default=True, metadata={"help": "Two bottleneck adapters in every block."})
    adapter_ratio: float = field(default=0.25, metadata={"help": "Width of the adapters as a share of the encoder's."})
    adapter_scale: float = field(default=0.5, metadata={"help": "Factor of the adapter beside the MLP."})
    adapter_act: str = field(default="gelu", metadata={"help": f"One of {', '.join(ACTIVATIONS)}."})

    default_decoder: ClassVar[str] = "class_wise"

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = ensure_peft_type("CWSAM")
        self.lowpass_abs = self.lowpass_abs or self.faithful
        if not (self.use_prompts or self.block_adapters):
            raise UserError(
                "use_prompts=False with block_adapters=False leaves nothing in the encoder", fix="use SamDecoderConfig"
            )
        if not 0 < self.adapter_ratio:
            raise UserError(f"adapter_ratio={self.adapter_ratio} must be positive")
        if self.adapter_act not in ACTIVATIONS:
            raise UserError(f"adapter_act={self.adapter_act!r} is unknown", fix=f"use one of {', '.join(ACTIVATIONS)}")

    @property
    def low_absolute(self) -> bool:
        return self.lowpass_abs
