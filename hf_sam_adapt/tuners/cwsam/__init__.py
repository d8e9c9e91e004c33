from ..registry import register_method
from .config import CwsamConfig
from .model import CwsamModel


register_method("cwsam", CwsamConfig, CwsamModel)

__all__ = ["CwsamConfig", "CwsamModel"]
