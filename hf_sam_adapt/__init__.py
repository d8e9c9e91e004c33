"""Adapts the Segment Anything Model to new domains: PEFT methods for transformers' `SamModel`.

Importing the package registers the methods with PEFT, as soon as PEFT is imported, and does nothing else; the rest is
imported when it is used. So the command line shows its help without loading torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .convert.checkpoints import convert_official_checkpoint
    from .data import load_segmentation_dataset
    from .inference.predictor import SamAdaptPredictor
    from .losses.segmentation import segmentation_loss
    from .prompts import Prompt
    from .sam.processing import SamAdaptProcessor
    from .sam.tiny import load_tiny_sam
    from .tuners import (
        ConvLoraConfig,
        ConvLoraModel,
        CwsamConfig,
        CwsamModel,
        L2pConfig,
        L2pModel,
        ModaConfig,
        ModaModel,
        SamAdapterConfig,
        SamAdapterModel,
        SamDecoderConfig,
        SamDecoderModel,
    )
    from .tuners.sam_adapter.features import register_feature


__version__ = "0.1.0"

__all__ = [
    "ConvLoraConfig",
    "ConvLoraModel",
    "CwsamConfig",
    "CwsamModel",
    "L2pConfig",
    "L2pModel",
    "ModaConfig",
    "ModaModel",
    "Prompt",
    "SamAdaptPredictor",
    "SamAdaptProcessor",
    "SamAdapterConfig",
    "SamAdapterModel",
    "SamDecoderConfig",
    "SamDecoderModel",
    "convert_official_checkpoint",
    "load_segmentation_dataset",
    "load_tiny_sam",
    "register_feature",
    "segmentation_loss",
]

_OUTSIDE_TUNERS = {
    "Prompt": ".prompts",
    "SamAdaptPredictor": ".inference.predictor",
    "SamAdaptProcessor": ".sam.processing",
    "convert_official_checkpoint": ".convert.checkpoints",
    "load_segmentation_dataset": ".data",
    "load_tiny_sam": ".sam.tiny",
    "register_feature": ".tuners.sam_adapter.features",
    "segmentation_loss": ".losses.segmentation",
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_OUTSIDE_TUNERS.get(name, ".tuners"), __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _RegisterAfterPeft(MetaPathFinder):
    """Imports the tuners, which register themselves, right after PEFT's own import: PEFT offers no plug-in hook."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name != "peft":
            return None
        spec = PathFinder.find_spec(name, path, target)
        loader = None if spec is None else spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                sys.meta_path.remove(self)
                import_module(".tuners", __name__)

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    import_module(".tuners", __name__)
else:
    sys.meta_path.insert(0, _RegisterAfterPeft())
