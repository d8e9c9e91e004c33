"""The methods, each a PEFT tuner in a folder of its own; importing them registers them with PEFT."""

from .conv_lora import ConvLoraConfig, ConvLoraModel
from .cwsam import CwsamConfig, CwsamModel
from .l2p import L2pConfig, L2pModel
from .moda import ModaConfig, ModaModel
from .sam_adapter import SamAdapterConfig, SamAdapterModel
from .sam_decoder import SamDecoderConfig, SamDecoderModel


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
]
