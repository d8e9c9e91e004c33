"""Placement of SAM-Adapter in a SAM."""

import re

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists

from ...errors import UserError
from ..common.model import SamTunerMixin
from .config import SamAdapterConfig
from .layer import SamAdapterBlock, SamAdapterPatchEmbed


ENCODER = r"(.*\.)?vision_encoder\.(patch_embed|layers\.\d+)"


class SamAdapterModel(SamTunerMixin, BaseTuner):
    """Injects SAM-Adapter: wraps the patch embedding, every block, and by the decoder field the mask decoder.

    Use through PEFT: `get_peft_model(sam, SamAdapterConfig())`, `sam.add_adapter(SamAdapterConfig())`.
    """

    prefix = "sam_adapter_"
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping = {"sam": ENCODER, "sam_vision_model": ENCODER}

    def _prepare_adapter_config(self, peft_config: SamAdapterConfig, model_config: dict) -> SamAdapterConfig:
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        depth = model_config.get("vision_config", model_config).get("num_hidden_layers")
        outside = [index for index in _layer_indices(peft_config) or [] if depth is not None and index >= depth]
        if outside:
            raise UserError(f"layers_to_transform={outside}: this encoder has {depth} layers, 0 to {depth - 1}")
        return peft_config

    def _check_target_module_exists(self, peft_config: SamAdapterConfig, key: str):
        if self.is_overlay_target(peft_config, self.model, key):
            return True
        found = check_target_module_exists(peft_config, key)
        layers = _layer_indices(peft_config)
        index = re.search(r"\.(\d+)$", key)
        if found and layers is not None and index is not None:
            return int(index.group(1)) in layers
        return found

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ) -> None:
        if self.is_overlay_target(peft_config, self.model, current_key):
            self.create_overlay(peft_config, adapter_name, target, target_name, parent)
            return
        layer = target
        if not isinstance(target, (SamAdapterPatchEmbed, SamAdapterBlock)):
            if hasattr(target, "projection"):
                layer = SamAdapterPatchEmbed(target)
            else:
                layer = SamAdapterBlock(target, self._shared_state(current_key))
            layer.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, peft_config)

    def _shared_state(self, key: str):
        for module in self.model.modules():
            if isinstance(module, SamAdapterPatchEmbed):
                return module.sam_adapter_state
        raise UserError(f"target_modules matches the block {key} but no patch embedding before it; match both")

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(
            "SAM-Adapter cannot be merged: its prompts depend on the image, so no base weight can hold them. "
            "Use unload() for the base model, or keep the adapter"
        )


def _layer_indices(config: SamAdapterConfig) -> list[int] | None:
    layers = config.layers_to_transform
    return [layers] if isinstance(layers, int) else layers
