"""What the tuner models of all methods share: placing, naming, loading and unloading on a SAM."""

import re
import warnings
from contextlib import contextmanager

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ...errors import UserError
from ...sam.base_names import TINY, located, stored
from ...sam.families import (
    SamFamily,
    check_no_unknown_sam,
    encoder_shape,
    family_of,
    find_family,
    find_mask_decoder,
    find_vision_encoder,
)
from ...sam.fingerprint import check_fingerprint, compute_fingerprint
from ...sam.image_size import original_position_embedding, resize_input, restore_input, settle_input
from ...sam.input_channels import (
    inflate_channels,
    input_channels,
    original_channels,
    restore_channels,
    settle_channels,
)
from ...sam.mask_choice import let_choose, stop_choosing
from ...sam.windows import remove_windows, restore_windows, settle_windows, windows_removed
from .adapter_checks import check_adapter_keys, check_adapter_name
from .config import SamConfigMixin
from .decoder import decoder_parameters, early_layer, prompt_encoder_parameters, resolve_decoder
from .hq import EarlyMap, HqHead
from .layer import ParameterOverlay
from .mask_token import MaskTokenDefault, remove_mask_token_hooks
from .undo import Undoable


class SamTunerMixin(Undoable):
    """Stands before a PEFT tuner (`BaseTuner`, `LoraModel`, …) in the MRO of every method's model class.

    Attributes:
        overlays_patch_embed: a trained patch embedding gets an overlay; False where the method wraps it itself.
        needs_targets: an adapter without a layer of the method's own is a mistake.
        faithful_types: of the families for which the method's official code was written.
    """

    overlays_patch_embed = True
    needs_targets = True
    faithful_types: tuple[str, ...] = ("sam",)

    def _place(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        config: SamConfigMixin = self.peft_config[adapter_name]
        check_no_unknown_sam(model)
        check_adapter_name(model, adapter_name)
        self.check_family(config, find_family(model))
        if config.base_fingerprint is not None and config.fingerprint_is_from_file:
            check_fingerprint(config.base_fingerprint, model, adapter_name)
        unknown_base = config.inference_mode and config.base_fingerprint is None
        if unknown_base:
            warnings.warn(
                f"adapter {adapter_name!r} holds no fingerprint of its base model (no base was compared when it was "
                "converted): nothing tells whether this is the model that it was trained on",
                stacklevel=2,
            )
        name_tiny(model, config)
        family = find_family(model)
        if family is not None:
            family.mend(model, for_adapter=True)
        resolve_decoder(config, model)
        self._check_decoder_is_free(model, config, adapter_name)
        self._check_saved_once(model, config)
        self._set_image_size(model, config, adapter_name)
        self._set_channels(model, config, adapter_name)
        self._set_windows(model, config, adapter_name)
        super()._place(model, adapter_name, *args, **kwargs)
        self._check_placed(model, config, adapter_name)
        if not config.fingerprint_is_from_file and not unknown_base:
            config.base_fingerprint = compute_fingerprint(model)
        self._install_mask_token_default(model)

    def check_family(self, config: SamConfigMixin, family: SamFamily | None) -> None:
        """Raise `UserError` for what the method cannot do on this family; settle what depends on it in the config."""
        if config.faithful and family is not None and family.model_type not in self.faithful_types:
            raise UserError(
                f"faithful=True on {family.title}: the method's official code, whose computation it reproduces, was "
                "not written for it",
                fix="leave it out",
            )

    def _check_decoder_is_free(self, model: nn.Module, config: SamConfigMixin, adapter_name: str) -> None:
        """Raise `UserError` if the adapter brings decoder weights where others have put theirs."""
        decoder = find_mask_decoder(model)
        if decoder is None or not self.is_overlay_target(config, model, family_of(model).mask_decoder):
            return
        own = isinstance(decoder, ParameterOverlay) and decoder.weights_name == f"{self.prefix}weights"
        inside = decoder.base_layer.modules() if own else decoder.modules()
        if any(isinstance(module, BaseTunerLayer) for module in inside):
            raise UserError(
                f"adapter {adapter_name!r} brings a mask decoder, in which another method has layers already",
                fix="use decoder='frozen' for one of them, or another copy of the base model",
            )

    def _check_saved_once(self, model: nn.Module, config: SamConfigMixin) -> None:
        """Raise `UserError` if `modules_to_save` names what the adapter brings weights of already."""
        decoder = find_mask_decoder(model)
        paths = [key for key, _ in model.named_modules() if self.is_overlay_target(config, model, key)]
        within = [f"{path}.{name}" for path in paths for name, _ in model.get_submodule(path).named_modules() if name]
        for name in config.modules_to_save or ():
            if any(key == name or key.endswith(f".{name}") for key in paths + within):
                is_decoder = decoder is not None and family_of(model).mask_decoder in paths
                raise UserError(
                    f"{name} is in {' or '.join(paths)}, which the adapter brings along",
                    key="modules_to_save",
                    fix="leave it out" + " or use decoder='frozen'" * is_decoder,
                )

    def _check_placed(self, model: nn.Module, config: SamConfigMixin, adapter_name: str) -> None:
        """Raise `UserError` if nothing but the decoder was adapted, or if PEFT would mistake the adapter's name."""
        if self.needs_targets and not any(_holds(module, adapter_name) for module in model.modules()):
            raise UserError(
                f"adapter {adapter_name!r}: target_modules={config.target_modules!r} matches no module that this "
                "method could adapt here"
            )
        for key in model.state_dict():
            if sum(part in self.peft_config for part in key.split(".")) > 1:
                raise UserError(
                    f"adapter name {adapter_name!r} is part of {key}, so PEFT would mix up the adapters' weights",
                    fix="choose another name",
                )

    def check_layers(self, config: SamConfigMixin, model_config: dict) -> None:
        """Raise `UserError` if `layers_to_transform` names no layer, or one that the encoder does not have."""
        if layer_indices(config) == []:
            raise UserError("[] names no block", key="layers_to_transform", fix="leave it out for all")
        known = find_family(self.model) is not None
        depth = encoder_shape(self.model).num_hidden_layers if known else model_config.get("num_hidden_layers")
        named = layer_indices(config) or []
        outside = [index for index in named if index < 0 or (depth is not None and index >= depth)]
        if outside:
            has = "they are counted from 0" if depth is None else f"this encoder has {depth} layers, 0 to {depth - 1}"
            raise UserError(f"layers_to_transform={outside}: {has}")

    def _set_image_size(self, model: nn.Module, config: SamConfigMixin, adapter_name: str) -> None:
        """Bring the base model to the adapter's input size."""
        encoder = find_vision_encoder(model)
        if encoder is None:
            if config.image_size is not None:
                raise UserError(f"image_size={config.image_size}: {type(model).__name__} has no SAM vision encoder")
            return
        current, original = encoder_shape(encoder).image_size, original_position_embedding(encoder)[1]
        wanted = original if config.image_size is None else config.image_size
        if wanted == current:
            return
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise UserError(
                f"adapter {adapter_name!r} needs image_size {wanted}, but this model's adapters run at {current}",
                fix="load it on another copy of the base model",
            )
        resize_input(model, wanted)

    def _set_channels(self, model: nn.Module, config: SamConfigMixin, adapter_name: str) -> None:
        """Bring the base model to the adapter's input channels."""
        encoder = find_vision_encoder(model)
        if encoder is None:
            if config.in_channels is not None or config.train_patch_embed:
                raise UserError(
                    f"{type(model).__name__} has no SAM vision encoder", key="in_channels, train_patch_embed"
                )
            return
        wanted = original_channels(encoder) if config.in_channels is None else config.in_channels
        if wanted == input_channels(encoder):
            return
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise UserError(
                f"adapter {adapter_name!r} needs {wanted} input channels, but this model's adapters take "
                f"{input_channels(encoder)}",
                fix="load it on another copy of the base model",
            )
        inflate_channels(model, wanted)

    def _set_windows(self, model: nn.Module, config: SamConfigMixin, adapter_name: str) -> None:
        """Take the encoder's windows away if the adapter wants global attention."""
        encoder = find_vision_encoder(model)
        removed = encoder is not None and windows_removed(encoder)
        if config.global_attention == removed:
            return
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise UserError(
                f"adapter {adapter_name!r} has global_attention={config.global_attention}, this model's adapters "
                f"have {removed}",
                fix="load it on another copy of the base model",
            )
        remove_windows(model)

    def _install_mask_token_default(self, model: nn.Module) -> None:
        if find_mask_decoder(model) is None:
            return
        merged = remove_mask_token_hooks(model)  # one of an adapter that is gone would look at a layer that is gone
        anchor = next(module for module in model.modules() if isinstance(module, BaseTunerLayer))
        MaskTokenDefault(anchor, self.peft_config, merged).register(model)

    @classmethod
    def is_overlay_target(cls, config: SamConfigMixin, model: nn.Module, key: str) -> bool:
        """Whether the module at `key` gets an overlay of decoder or prompt-encoder weights."""
        family = find_family(model)
        if family is None:
            return False
        if family.is_patch_embedding(key):
            return config.train_patch_embed and cls.overlays_patch_embed
        if key == family.mask_decoder and config.decoder == "hq":
            return True
        return bool(cls._overlay_names(config, model, key))

    @staticmethod
    def _overlay_names(config: SamConfigMixin, model: nn.Module, key: str) -> list[str]:
        family, decoder = family_of(model), find_mask_decoder(model)
        if family.is_patch_embedding(key):
            bias = family.patch_embedding_of(find_vision_encoder(model)).projection.bias
            return ["projection.weight"] if bias is None else ["projection.weight", "projection.bias"]
        if decoder is not None and key == family.prompt_encoder:
            return prompt_encoder_parameters(config)
        if decoder is not None and key == family.mask_decoder:
            return decoder_parameters(config, family, getattr(decoder, "base_layer", decoder))
        return []

    def create_overlay(self, config: SamConfigMixin, adapter_name: str, target, target_name: str, parent) -> None:
        """Wrap `target`, one of the overlaid modules, or extend its wrapper, with this adapter's weights."""
        layer = target
        if not isinstance(target, ParameterOverlay):
            layer = ParameterOverlay(target, self.prefix)
            layer.set_adapter(self.active_adapters)
            self._replace_module(parent, target_name, layer, target)
        decoder = target_name == family_of(self.model).mask_decoder
        hq = decoder and config.decoder == "hq"
        layer.update_layer(
            adapter_name,
            self._overlay_names(config, self.model, target_name),
            num_mask_tokens=config.num_mask_tokens if decoder else None,
            num_labels=config.num_labels if decoder else None,
            hq_head=self._hq_head(config, adapter_name, layer) if hq else None,
            train_iou_head=decoder and config.train_iou_head,
            # As SAM2-Adapter's code, which calls the decoder without any point.
            without_padding=config.faithful and self.model.config.model_type == "sam2" and not decoder,
            random_init=config.init_weights is False,
            inference_mode=config.inference_mode,
        )

    def _hq_head(self, config: SamConfigMixin, adapter_name: str, layer: ParameterOverlay) -> HqHead:
        """A new adapter's head, with the early map on its way to the decoder."""
        block = early_layer(config, self.model)
        if layer.early_map is not None and layer.hq_heads and layer.early_map.layer != block:
            raise UserError(
                f"adapter {adapter_name!r} needs early_layer {block}, but this model's hq adapters see block "
                f"{layer.early_map.layer}",
                fix="load it on another copy of the base model",
            )
        if layer.early_map is None or layer.early_map.layer != block:
            layer.stop_capturing()
            layer.early_map = EarlyMap(self.model, block)
        head = HqHead(layer.base_layer, encoder_shape(self.model).hidden_size)
        if config.init_weights is True:
            head.start_near(layer.base_layer)
        return head

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)  # PEFT's own copies `weight` and `bias`, which blocks do not have

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        self._check_known([adapter_name] if isinstance(adapter_name, str) else adapter_name)
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def _check_known(self, adapter_names: list[str] | None) -> None:
        unknown = [name for name in adapter_names or () if name not in self.peft_config]
        if unknown:
            raise UserError(f"adapter {unknown[0]!r} is not in the model", fix=f"it has {', '.join(self.peft_config)}")

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        self._check_overlays_merge(adapter_names, safe_merge)
        super().merge_adapter(adapter_names=adapter_names, safe_merge=safe_merge)

    def _check_overlays_merge(self, adapter_names: list[str] | None, safe_merge: bool) -> None:
        """Refuse before the first layer is merged what a later one would refuse."""
        self._check_known(adapter_names)
        for module in self.model.modules():
            if isinstance(module, ParameterOverlay):
                module.check_merge(check_adapters_to_merge(module, adapter_names), safe_merge)

    def _unload_and_optionally_merge(
        self, merge: bool = True, progressbar: bool = True, safe_merge: bool = False, adapter_names=None
    ) -> nn.Module:
        """A merged model keeps the adapter's input size and channels, for which its weights are, and its default of
        `multimask_output`; saved and loaded again it is a plain SAM, with its default."""
        if merge:
            self._check_overlays_merge(adapter_names, safe_merge)
        else:
            drop_saved_copies(self.model)
        merged = adapter_names or self.active_adapters
        overlays = [module for module in self.model.modules() if isinstance(module, ParameterOverlay)]
        model = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        for overlay in overlays:
            overlay.stop_capturing()
        merged_default = remove_mask_token_hooks(model)
        if merge and find_mask_decoder(model) is not None:
            merged_default = next((self.peft_config[name].multimask_output for name in merged), merged_default)
            stop_choosing(model)
        if merged_default is not None:
            MaskTokenDefault(None, {}, merged_default).register(model)
        if find_vision_encoder(model) is not None:
            self._keep_base(model) if merge else self._restore_base(model)
        return model

    @staticmethod
    def _keep_base(model: nn.Module) -> None:
        """What the adapters changed around their weights is the merged model's own."""
        settle_windows(model)
        settle_input(model)
        settle_channels(model)
        family_of(model).mend(model)

    @staticmethod
    def _restore_base(model: nn.Module) -> None:
        restore_windows(model)
        restore_input(model)
        restore_channels(model)
        family_of(model).unmend_after_adapter(model)
        let_choose(model)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args, **kwargs):
        if kwargs.get("adapter_names") is not None:
            raise NotImplementedError(f"{type(self).__name__} does not take adapter_names: one adapter per forward")
        yield

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return re.sub(rf"(\.{cls.prefix}[^.]+)\.{re.escape(adapter_name)}(?=\.|$)", r"\1", key)

    @classmethod
    def _remapped(
        cls, model: nn.Module, config: SamConfigMixin, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Insert the adapter's name into the keys of a file, and compare them with the adapter's own.

        Raises:
            UserError: missing or unexpected entries, unless `config.strict_load` is off.
        """
        remapped = super()._remapped(model, config, adapter_name, state_dict)
        if config.strict_load:
            check_adapter_keys(cls, model, config, adapter_name, remapped)
        return remapped


def drop_saved_copies(model: nn.Module) -> None:
    """Put the base's modules back where `modules_to_save` trained copies: PEFT's `unload` leaves a copy in place."""
    for path, module in reversed(list(model.named_modules())):  # what is inside another first
        if isinstance(module, ModulesToSaveWrapper):
            model.set_submodule(path, module.original_module)


def name_tiny(model: nn.Module, config: PeftConfig) -> None:
    """Of an adapter of `tiny`: its base is named so in what PEFT writes, and found where PEFT looks for it."""
    if stored(getattr(model, "name_or_path", None)) == TINY:
        model.name_or_path = model.config._name_or_path = TINY
        config.base_model_name_or_path = located(TINY)


def layer_indices(config: SamConfigMixin) -> list[int] | None:
    """The blocks of `layers_to_transform` as a list, None for all."""
    layers = config.layers_to_transform
    return [layers] if isinstance(layers, int) else layers


def in_layers(config: SamConfigMixin, key: str) -> bool:
    """Whether the module at `key` lies in a block of `layers_to_transform`, or in none at all."""
    layers = layer_indices(config)
    index = re.search(r"\.(\d+)(\.|$)", key)
    return layers is None or index is None or int(index.group(1)) in layers


def _holds(module: nn.Module, adapter_name: str) -> bool:
    """Whether a tuner layer of a method's own, no overlay, has weights of the adapter."""
    if not isinstance(module, BaseTunerLayer) or isinstance(module, ParameterOverlay):
        return False
    return any(adapter_name in getattr(module, name, ()) for name in module.adapter_layer_names)
