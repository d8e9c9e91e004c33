"""Adapts the Segment Anything Model to new domains: PEFT methods for transformers' `SamModel`.

Importing the package registers the methods with PEFT and does nothing else; the rest is imported when it is used.
"""

from importlib import import_module

from .tuners.conv_lora import ConvLoraConfig, ConvLoraModel
from .tuners.cwsam import CwsamConfig, CwsamModel
from .tuners.l2p import L2pConfig, L2pModel
from .tuners.moda import ModaConfig, ModaModel
from .tuners.sam_adapter import SamAdapterConfig, SamAdapterModel
from .tuners.sam_decoder import SamDecoderConfig, SamDecoderModel


__version__ = "0.1.0"

_LAZY = {
    "Prompt": ".prompts",
    "SamAdaptPredictor": ".predictor",
    "SamAdaptProcessor": ".processing",
    "convert_official_checkpoint": ".convert",
    "load_segmentation_dataset": ".data",
    "load_tiny_sam": ".tiny",
    "register_feature": ".features",
    "segmentation_loss": ".losses",
}

__all__ = [
    "ConvLoraConfig",
    "ConvLoraModel",
    "CwsamConfig",
    "CwsamModel",
    "L2pConfig",
    "L2pModel",
    "ModaConfig",
    "ModaModel",
    "SamAdapterConfig",
    "SamAdapterModel",
    "SamDecoderConfig",
    "SamDecoderModel",
    *_LAZY,
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
