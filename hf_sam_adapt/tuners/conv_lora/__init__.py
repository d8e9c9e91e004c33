from ..registry import register_method
from .config import ConvLoraConfig
from .layer import balance_loss
from .model import ConvLoraModel


register_method("conv_lora", ConvLoraConfig, ConvLoraModel)

__all__ = ["ConvLoraConfig", "ConvLoraModel", "balance_loss"]
