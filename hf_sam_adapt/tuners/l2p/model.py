"""Placement of a prompt pool in a SAM."""

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

from ...errors import UserError
from ...sam.families import FAMILIES, family_of, find_mask_decoder
from ..common.model import SamTunerMixin
from .config import L2pConfig
from .layer import L2pDecoder


class L2pModel(SamTunerMixin, BaseTuner):
    """Wraps the mask decoder with a prompt pool."""

    prefix = "l2p_"
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping = {family.model_type: [family.mask_decoder] for family in FAMILIES}

    def _prepare_adapter_config(self, peft_config: L2pConfig, model_config: dict) -> L2pConfig:
        if find_mask_decoder(self.model) is None:
            raise UserError(f"L2pConfig: {type(self.model).__name__} has no mask decoder", fix="use SamModel")
        peft_config.target_modules = {family_of(self.model).mask_decoder}
        return peft_config

    def _check_target_module_exists(self, peft_config: L2pConfig, key: str) -> bool:
        return key == family_of(self.model).mask_decoder or self.is_overlay_target(peft_config, self.model, key)

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ) -> None:
        if current_key != family_of(self.model).mask_decoder:
            self.create_overlay(peft_config, adapter_name, target, target_name, parent)
            return
        layer = target
        if not isinstance(target, L2pDecoder):
            layer = L2pDecoder(target)
            layer.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, layer, target)
        layer.update_layer(adapter_name, peft_config)

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(
            "a prompt pool cannot be merged: which prompts an image gets depends on the image; use unload() for the "
            "base model, or keep the adapter"
        )
