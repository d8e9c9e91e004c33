"""Placement of a decoder-only adapter in a SAM."""

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer

from ...errors import UserError
from ...sam.families import FAMILIES, family_of, find_mask_decoder
from ..common.model import SamTunerMixin
from .config import SamDecoderConfig


class SamDecoderModel(SamTunerMixin, BaseTuner):
    """Overlays SAM's mask decoder with the adapter's weights; mergeable, since they are ordinary weights."""

    prefix = "sam_decoder_"
    needs_targets = False
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping = {family.model_type: [family.mask_decoder] for family in FAMILIES}

    def _prepare_adapter_config(self, peft_config: SamDecoderConfig, model_config: dict) -> SamDecoderConfig:
        if find_mask_decoder(self.model) is None:
            raise UserError(f"SamDecoderConfig: {type(self.model).__name__} has no mask decoder", fix="use SamModel")
        if peft_config.decoder == "frozen" and not (peft_config.train_iou_head or peft_config.train_no_mask_embed):
            raise UserError("SamDecoderConfig(decoder='frozen') would train nothing", fix="use decoder='full'")
        peft_config.target_modules = {family_of(self.model).mask_decoder}
        return peft_config

    def _check_target_module_exists(self, peft_config: SamDecoderConfig, key: str) -> bool:
        return self.is_overlay_target(peft_config, self.model, key)

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ) -> None:
        self.create_overlay(peft_config, adapter_name, target, target_name, parent)
