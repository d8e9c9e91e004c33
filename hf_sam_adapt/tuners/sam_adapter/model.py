"""Placement of SAM-Adapter in a SAM."""

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from torch import nn

from ...errors import UserError
from ...sam.families import FAMILIES, SamFamily, family_of, find_mask_decoder, find_vision_encoder
from ..common.decoder import SAM2_ADAPTER_TOKENS
from ..common.model import SamTunerMixin, in_layers
from .config import SamAdapterConfig
from .layer import SamAdapterBlock, SamAdapterPatchEmbed, SamAdapterState
from .staged import StagedPatchEmbed, block_groups


SCRAMBLED = ("sam", "sam_hq")  # the families whose plain ViT takes `embedding_layout="legacy"`


class SamAdapterModel(SamTunerMixin, BaseTuner):
    """Injects SAM-Adapter: wraps the patch embedding, every block, and by the decoder field the mask decoder.

    Use through PEFT: `get_peft_model(sam, SamAdapterConfig())`, `sam.add_adapter(SamAdapterConfig())`.
    """

    prefix = "sam_adapter_"
    tuner_layer_cls = BaseTunerLayer
    overlays_patch_embed = False
    block_cls = SamAdapterBlock
    faithful_types = ("sam", "sam2")
    target_module_mapping = {
        kind: family.targets(kind, family.map_names) for family in FAMILIES for kind in family.model_types
    }

    def check_family(self, config: SamAdapterConfig, family: SamFamily | None) -> None:
        super().check_family(config, family)
        family = family_of(self.model)
        if family.model_type in SCRAMBLED:
            return
        if config.embedding_layout == "legacy" and not config.faithful:
            raise UserError(
                f"embedding_layout='legacy' on {family.title}: the scrambled order is that of SAM-Adapter's code for "
                "SAM",
                fix="leave it out",
            )
        config.embedding_layout = "token"  # which SAM2-Adapter's code has right
        if config.faithful and config.decoder in (None, "full") and find_mask_decoder(self.model) is not None:
            config.num_mask_tokens, config.train_no_mask_embed = SAM2_ADAPTER_TOKENS, True

    def _prepare_adapter_config(self, peft_config: SamAdapterConfig, model_config: dict) -> SamAdapterConfig:
        peft_config = super()._prepare_adapter_config(peft_config, model_config)
        self.check_layers(peft_config, model_config)
        return peft_config

    def _check_target_module_exists(self, peft_config: SamAdapterConfig, key: str):
        if self.is_overlay_target(peft_config, self.model, key):
            return True
        found = check_target_module_exists(peft_config, key)
        return in_layers(peft_config, key) if found else found

    def _create_and_replace(
        self, peft_config, adapter_name, target, target_name, parent, current_key, parameter_name=None
    ) -> None:
        if self.is_overlay_target(peft_config, self.model, current_key):
            self.create_overlay(peft_config, adapter_name, target, target_name, parent)
            return
        layer = target
        is_block = not isinstance(target, SamAdapterPatchEmbed) and not hasattr(target, "projection")
        if not isinstance(target, (SamAdapterPatchEmbed, SamAdapterBlock)):
            layer = self._wrapped(target, is_block, current_key, adapter_name)
            layer.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, layer, target)
        elif isinstance(target, SamAdapterBlock) and not isinstance(target, self.block_cls):
            raise UserError(
                f"adapter {adapter_name!r} is of {type(self).__name__}, and {current_key} is wrapped for SAM-Adapter "
                "already",
                fix="add the CWSAM adapter first, or use another copy of the base model",
            )
        if is_block:
            self._shared_state(current_key, adapter_name)  # which a second adapter might lack
            layer.update_layer(adapter_name, peft_config)
        else:
            layer.update_layer(adapter_name, peft_config, self._adapted_blocks(peft_config))

    def _blocks(self) -> nn.ModuleList:
        encoder = find_vision_encoder(self.model)
        if encoder is None:
            raise UserError(f"{type(self.model).__name__} has no SAM vision encoder", key="target_modules")
        return family_of(encoder).blocks_of(encoder)

    def _adapted_blocks(self, peft_config: SamAdapterConfig) -> list[int]:
        """Indices of the blocks that get a prompt."""
        keys = {id(module): key for key, module in self.model.named_modules()}
        matches = (self._check_target_module_exists(peft_config, keys[id(block)]) for block in self._blocks())
        return [index for index, match in enumerate(matches) if match]

    def _wrapped(self, target: nn.Module, is_block: bool, key: str, adapter_name: str) -> nn.Module:
        """A new layer around a block or the patch embedding."""
        blocks = self._blocks()
        groups = block_groups(blocks)
        if is_block:
            index = next(index for index, block in enumerate(blocks) if block is target)
            group = next(number for number, group in enumerate(groups) if index in group)
            return self.block_cls(target, self._shared_state(key, adapter_name), group)
        layer = SamAdapterPatchEmbed(target) if len(groups) == 1 else StagedPatchEmbed(target, groups)
        layer.forget_after(find_vision_encoder(self.model))
        return layer

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, SamAdapterPatchEmbed):
            child.remove_hooks()
        super()._replace_module(parent, child_name, new_module, child)

    def _shared_state(self, key: str, adapter_name: str) -> SamAdapterState:
        for module in self.model.modules():
            if isinstance(module, SamAdapterPatchEmbed) and adapter_name in module.sam_adapter_config:
                return module.sam_adapter_state
        raise UserError(f"target_modules matches the block {key} but no patch embedding before it", fix="match both")

    def _check_merge_allowed(self) -> None:
        raise NotImplementedError(
            "SAM-Adapter cannot be merged: its prompts depend on the image, so no base weight can hold them. "
            "Use unload() for the base model, or keep the adapter"
        )
