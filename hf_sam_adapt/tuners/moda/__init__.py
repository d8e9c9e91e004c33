from ..registry import register_method
from .config import ModaConfig
from .model import ModaModel


register_method("moda", ModaConfig, ModaModel)

__all__ = ["ModaConfig", "ModaModel"]
