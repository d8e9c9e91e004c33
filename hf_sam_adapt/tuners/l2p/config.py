"""Configuration of a prompt pool in SAM's mask decoder."""

from dataclasses import dataclass, field
from typing import ClassVar

from peft.config import PeftConfig

from ...errors import UserError
from ..common.config import SamConfigMixin
from ..registry import ensure_peft_type


@dataclass
class L2pConfig(SamConfigMixin, PeftConfig):
    """Learning to prompt (arXiv 2112.08654) as the CoSAM benchmark applies it to SAM; SAM itself stays frozen.

    Each image brings `top_k` prompts of a pool into the mask decoder, as further sparse prompt embeddings: those whose
    keys are nearest to the mean of its embedding. With the default sizes and SAM's 256 channels, 61,440 parameters.

    Args:
        pool_size: prompts in the pool.
        prompt_length: tokens of a prompt.
        top_k: prompts chosen per image.
        key_weight: of the loss that pulls the chosen keys towards the images.
    """

    pool_size: int = field(default=40, metadata={"help": "Prompts in the pool."})
    prompt_length: int = field(default=5, metadata={"help": "Tokens of a prompt."})
    top_k: int = field(default=5, metadata={"help": "Prompts chosen per image."})
    key_weight: float = field(default=1.0, metadata={"help": "Weight of the loss on the chosen keys."})
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules that are trained and saved whole."}
    )
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Set by the method: the mask decoder."}
    )

    default_decoder: ClassVar[str] = "frozen"

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = ensure_peft_type("L2P")
        if self.decoder not in (None, "frozen") or self.train_iou_head:
            raise UserError(
                "L2pConfig: the decoder beside the prompts is frozen", fix="leave decoder and train_iou_head out"
            )
        if self.prompt_length < 1:
            raise UserError(f"prompt_length={self.prompt_length} must be at least 1")
        if not 0 < self.top_k <= self.pool_size:
            raise UserError(f"top_k={self.top_k} of pool_size={self.pool_size}: choose at least 1 and at most all")
