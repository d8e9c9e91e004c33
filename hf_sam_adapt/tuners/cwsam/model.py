"""Placement of CWSAM in a SAM."""

from torch import nn

from ..sam_adapter.model import SamAdapterModel
from .layer import CwsamBlock


class CwsamModel(SamAdapterModel):
    """Injects CWSAM where SAM-Adapter goes; its weights carry SAM-Adapter's prefix.

    Use through PEFT: `get_peft_model(sam, CwsamConfig(num_labels=5))`, `sam.add_adapter(...)`.
    """

    block_cls = CwsamBlock
    faithful_types = ("sam",)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, CwsamBlock):
            child.remove_hooks()
        super()._replace_module(parent, child_name, new_module, child)

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(
            "CWSAM cannot be merged: its prompts depend on the image and its adapters are not linear. Use unload() "
            "for the base model, or keep the adapter"
        )
