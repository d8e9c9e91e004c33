"""Configuration of an adapter that consists of decoder weights only."""

from dataclasses import dataclass, field

from peft.config import PeftConfig

from ..common.config import SamConfigMixin
from ..registry import ensure_peft_type


@dataclass
class SamDecoderConfig(SamConfigMixin, PeftConfig):
    """The decoder field alone: nothing in the encoder, so one image embedding serves base and adapted model.

    Args:
        modules_to_save: further modules to train and save whole.
    """

    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Further modules that are trained and saved whole."}
    )
    target_modules: list[str] | str | None = field(
        default=None, metadata={"help": "Set by the method: the mask decoder."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = ensure_peft_type("SAM_DECODER")
