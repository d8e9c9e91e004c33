"""Placement of Conv-LoRA in a ViT."""

from __future__ import annotations

from peft import LoraModel
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from torch import nn

from ...errors import UserError
from ...sam.families import FAMILIES, SamFamily, find_family
from ..common.layer import ParameterOverlay
from ..common.model import SamTunerMixin, in_layers
from .config import ConvLoraConfig
from .layer import NOT_MERGEABLE, ConvLoraVariant


def _attention_targets(family: SamFamily, model_type: str) -> str:
    """The linear of queries, keys and values; of three those of queries and values, which the official preset names.

    Each linear has experts of its own, whose convolutions are most of what the method costs, and an update of the keys
    changes the same products as one of the queries does.
    """
    linears = family.attention_linears
    if len(linears) == 3:
        linears = (linears[0], linears[2])
    return family.targets(model_type, family.linear_names(linears))


ATTENTION = {kind: _attention_targets(family, kind) for family in FAMILIES for kind in family.model_types}
VIT = ["q_proj", "k_proj", "v_proj", "query", "key", "value"]  # the latter in DINOv2 before transformers 5.23


class ConvLoraModel(SamTunerMixin, LoraModel):
    """Injects Conv-LoRA: experts between A and B of PEFT's own LoRA layers, and by the decoder field the mask decoder.

    Use through PEFT: `get_peft_model(sam, ConvLoraConfig())`, `sam.add_adapter(ConvLoraConfig())`; on other ViTs with
    `target_modules`.
    """

    prefix = "lora_"
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping = ATTENTION | {"vit": VIT, "dinov2": VIT}

    def _prepare_adapter_config(self, peft_config: ConvLoraConfig, model_config: dict) -> ConvLoraConfig:
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        self.check_layers(peft_config, model_config)
        return peft_config

    def _check_target_module_exists(self, peft_config: ConvLoraConfig, key: str):
        if self.is_overlay_target(peft_config, self.model, key):
            return True
        found = check_target_module_exists(peft_config, key)
        if found and isinstance(peft_config.target_modules, str):
            return in_layers(peft_config, key)
        return found

    def _create_and_replace(
        self, lora_config, adapter_name, target, target_name, parent, current_key, *, parameter_name=None
    ) -> None:
        if self.is_overlay_target(lora_config, self.model, current_key):
            self.create_overlay(lora_config, adapter_name, target, target_name, parent)
            return
        family = find_family(self.model)
        if family is not None and current_key.startswith(f"{family.mask_decoder}."):
            raise UserError(
                f"target_modules matches {current_key}",
                fix="Conv-LoRA adapts maps of the encoder, not the decoder's tokens",
            )
        super()._create_and_replace(
            lora_config, adapter_name, target, target_name, parent, current_key, parameter_name=parameter_name
        )
        layer = getattr(parent, target_name)
        if not isinstance(layer, LoraLayer) or not hasattr(layer.get_base_layer(), "in_features"):
            raise UserError(
                f"target_modules matches {current_key}, which is not a Linear", fix="Conv-LoRA adapts Linears alone"
            )
        layer.lora_variant[adapter_name] = ConvLoraVariant()
        ConvLoraVariant.init(layer, adapter_name, lora_config)
        layer.set_adapter(layer.active_adapters, inference_mode=lora_config.inference_mode)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, ParameterOverlay) or isinstance(child, ParameterOverlay):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            LoraModel._replace_module(self, parent, child_name, new_module, child)

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(NOT_MERGEABLE)

    def add_weighted_adapter(self, *args, **kwargs) -> None:
        raise NotImplementedError(f"adapters cannot be added up: {NOT_MERGEABLE}")

    def subtract_mutated_init(self, *args, **kwargs) -> None:
        raise NotImplementedError("Conv-LoRA has no initialisation that changes the base weights")
