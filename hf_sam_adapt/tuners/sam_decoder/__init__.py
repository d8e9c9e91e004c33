from ..registry import register_method
from .config import SamDecoderConfig
from .model import SamDecoderModel


register_method("sam_decoder", SamDecoderConfig, SamDecoderModel)

__all__ = ["SamDecoderConfig", "SamDecoderModel"]
