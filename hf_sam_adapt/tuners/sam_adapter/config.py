"""Configuration of SAM-Adapter (Chen et al., "SAM Fails to Segment Anything?", arXiv 2304.09148)."""

from dataclasses import dataclass, field
from typing import ClassVar

from peft.config import PeftConfig

from ...errors import UserError
from ..common.config import SamConfigMixin
from ..registry import ensure_peft_type


LAYOUTS = ("token", "legacy")


@dataclass
class SamAdapterConfig(SamConfigMixin, PeftConfig):
    """SAM-Adapter: one additive prompt at the input of every ViT block.

    `P_i = Up(GELU(Tune_i(F)))` with the guidance `F = sum_j w_j F_j` (paper eq. 1-2), `Tune_i` per layer, `Up` shared,
    bottleneck `r = D // scale_factor`.

    Args:
        features: guidance features F_j: `"embedding"` (linear of the patch embedding), `"high"`, `"low"` (16x16
            convolution of the image's high- or low-frequency part), or a name given to `register_feature`. An empty
            list leaves a learned bias per layer.
        feature_weights: the paper's constants w_j, one per feature; None = 1 each.
        frequency_rate: share of the spectrum's area that separates low from high.
        scale_factor: D // scale_factor is the bottleneck, at least 1, on SAM 2 at least 3.
        embedding_layout: `"token"`: each token's own patch embedding. `"legacy"`: the official code's scrambled
            order, for converted checkpoints; implied by `faithful`.
        layers_to_transform: indices of the blocks that get a prompt; None = all.
        target_modules: regular expression, or list of names, that matches the patch embedding and the blocks; None =
            those of SAM's vision encoder.
        exclude_modules: names or regular expression of modules to leave out.
        modules_to_save: further modules to train and save whole.
    """

    features: list[str] = field(
        default_factory=lambda: ["embedding", "high"],
        metadata={"help": "Guidance features: 'embedding', 'high', 'low' or registered names; [] = bias only."},
    )
    feature_weights: list[float] | None = field(
        default=None, metadata={"help": "Constant weight of each feature; null: 1 each."}
    )
    frequency_rate: float = field(
        default=0.25, metadata={"help": "Share of the spectrum's area in the low-frequency square."}
    )
    scale_factor: int = field(default=32, metadata={"help": "Width of the encoder divided by the bottleneck."})
    embedding_layout: str = field(
        default="token", metadata={"help": "'token', or 'legacy' for the official code's scrambled tokens."}
    )
    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Indices of the blocks that get a prompt; null: all."}
    )
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Patch embedding and blocks; null: those of SAM's vision encoder."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave out."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules that are trained and saved whole."}
    )

    use_prompts: ClassVar[bool] = True  # a subclass makes fields of them
    block_adapters: ClassVar[bool] = False

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = ensure_peft_type("SAM_ADAPTER")
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        if self.faithful:
            self.embedding_layout = "legacy"
        if self.embedding_layout not in LAYOUTS:
            raise UserError(
                f"embedding_layout={self.embedding_layout!r} is unknown", fix=f"use one of {', '.join(LAYOUTS)}"
            )
        if len(set(self.features)) != len(self.features):
            raise UserError(f"features={self.features} names a feature twice", fix="use feature_weights to weight it")
        if self.feature_weights is not None and len(self.feature_weights) != len(self.features):
            raise UserError(
                f"feature_weights has {len(self.feature_weights)} entries for {len(self.features)} features"
            )
        if not 0 < self.frequency_rate <= 1:
            raise UserError(f"frequency_rate={self.frequency_rate} must lie in (0, 1]: it is a share of the spectrum")
        if not isinstance(self.scale_factor, int) or self.scale_factor < 1:
            raise UserError(f"scale_factor={self.scale_factor!r} must be a positive whole number")

    @property
    def weights(self) -> list[float]:
        """w_j of each feature."""
        return self.feature_weights or [1.0] * len(self.features)

    @property
    def low_absolute(self) -> bool:
        """Whether the low-frequency image is taken absolutely, as published."""
        return self.faithful
