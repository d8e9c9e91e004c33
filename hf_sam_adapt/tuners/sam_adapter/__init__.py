from ..registry import register_method
from .config import SamAdapterConfig
from .model import SamAdapterModel


register_method("sam_adapter", SamAdapterConfig, SamAdapterModel)

__all__ = ["SamAdapterConfig", "SamAdapterModel"]
