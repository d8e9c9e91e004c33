from ..registry import register_method
from .config import L2pConfig
from .model import L2pModel


register_method("l2p", L2pConfig, L2pModel)

__all__ = ["L2pConfig", "L2pModel"]
