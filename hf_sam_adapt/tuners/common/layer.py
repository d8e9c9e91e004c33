"""What the tuner layers of all methods share: a transparent wrapper, and weights that overlay a whole module."""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ...errors import UserError
from ...sam.image_embeddings import SharedMaps
from .class_wise import build_head, decode_classes
from .hq import Assignment, EarlyMap, EarlyMaps, HqHead, decode_hq
from .overlay import combined, current_parameters, overlaid, parameter_names


class _AttributeForwarding:
    """Forward attributes that the wrapper lacks to the wrapped module (`layer.window_size`, say).

    It stands before `nn.Module` in the MRO because `nn.Module.__getattr__` does not call further.
    """

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "base_layer":
                raise
            return getattr(self.base_layer, name)


class SamTunerLayer(_AttributeForwarding, nn.Module, BaseTunerLayer):
    """A tuner layer around a whole module (block, patch embedding, decoder) instead of around one Linear."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters = []

    @property
    def live_adapters(self) -> list[str]:
        """Active adapters with weights in this layer; empty while adapters are disabled."""
        return self.live_in(self.adapter_layer_names[0])

    def live_in(self, attribute: str) -> list[str]:
        """Active adapters with weights under `attribute` of this layer; empty while adapters are disabled."""
        if self.disable_adapters:
            return []
        available = getattr(self, attribute)
        return [name for name in self.active_adapters if name in available]

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module):
        for module in base_layer.modules():
            for name in parameter_names(module):
                parameter = getattr(module, name)
                if parameter is not None and parameter.is_floating_point():
                    return parameter.device, parameter.dtype
        return None, None

    def finish_update(self, adapter_name: str, inference_mode: bool) -> None:
        """Last step of adding an adapter: place its weights beside the base layer's and set what is trainable."""
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def __repr__(self) -> str:
        return f"{type(self).__module__.split('.')[-2]}.{super().__repr__()}"


class ParameterTree(nn.Module):
    """Parameters under dotted names, stored as nested modules so that state-dict keys equal the base module's."""

    def __init__(self, parameters: dict[str, nn.Parameter]):
        super().__init__()
        for name, parameter in parameters.items():
            *path, leaf = name.split(".")
            owner = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            owner.register_parameter(leaf, parameter)


class ParameterOverlay(SamTunerLayer):
    """Own copies, per adapter, of some parameters of one module; the module itself stays untouched.

    The forward runs the base module with the copies in the places of its parameters. With one active adapter they are
    used as they are; with several, the base's plus the sum of their differences. What an adapter has no copy of stays
    the base's and frozen, whatever `set_adapter`, `disable_adapter` or a load does.

    Args:
        base_layer: the module to overlay, e.g. SAM's mask decoder.
        prefix: the method's state-dict prefix; the weights are stored under `<prefix>weights`, heads of a mask decoder
            under `<prefix>class_head` and `<prefix>hq_head`.
    """

    def __init__(self, base_layer: nn.Module, prefix: str):
        super().__init__(base_layer)
        self.weights_name = f"{prefix}weights"
        setattr(self, self.weights_name, nn.ModuleDict())
        self.heads_name = f"{prefix}class_head"
        setattr(self, self.heads_name, nn.ModuleDict())
        self.hq_heads_name = f"{prefix}hq_head"
        setattr(self, self.hq_heads_name, nn.ModuleDict())
        self.adapter_layer_names = (self.weights_name, self.heads_name, self.hq_heads_name)
        self.early_map: EarlyMap | None = None
        self.mask_tokens: dict[str, int | None] = {}
        self.without_padding: dict[str, bool] = {}
        self.iou_head_trained: dict[str, bool] = {}
        self._backup: dict[str, torch.Tensor] = {}

    other_param_names = ("mask_tokens", "without_padding", "iou_head_trained")

    @property
    def overlays(self) -> nn.ModuleDict:
        return getattr(self, self.weights_name)

    @property
    def heads(self) -> nn.ModuleDict:
        return getattr(self, self.heads_name)

    @property
    def hq_heads(self) -> nn.ModuleDict:
        return getattr(self, self.hq_heads_name)

    @property
    def hq_is_live(self) -> bool:
        """Whether the next forward of this mask decoder needs an early map."""
        return bool(self.live_in(self.hq_heads_name))

    def update_layer(
        self,
        adapter_name: str,
        names: list[str],
        num_mask_tokens: int | None = None,
        num_labels: int | None = None,
        hq_head: HqHead | None = None,
        train_iou_head: bool = False,
        without_padding: bool = False,
        random_init: bool = False,
        inference_mode: bool = False,
    ) -> None:
        """Add an adapter that owns the base parameters `names`, starting from the base's values.

        Args:
            adapter_name: name of the adapter.
            names: dotted parameter names inside the base module.
            num_mask_tokens: mask tokens of another number than the base's, all from its first; None: the base's.
            num_labels: classes of a class-wise mask decoder; None: masks as the base gives them.
            hq_head: of an HQ mask decoder.
            train_iou_head: whether a loss on SAM's IoU estimates belongs to the adapter's training.
            without_padding: a prompt encoder gives no token for "no prompt", where SAM 2 gives two padding points.
            random_init: add noise of the size of each tensor's spread, so that tests see an adapter that acts.
            inference_mode: True leaves the new weights frozen.
        """
        if names or hq_head is not None:
            check_not_quantised(self.base_layer)
        base = dict(self.base_layer.named_parameters()) | self._backup  # not what another adapter merged into it
        copies = {}
        for name in names:
            value = base[name].detach().clone()
            if num_mask_tokens is not None and name == "mask_tokens.weight":
                value = value[:1].repeat(num_mask_tokens, 1)
                if num_mask_tokens > 1:  # equal queries would stay equal
                    value += 0.1 * value.std(correction=0) * torch.randn_like(value)
            if random_init:
                value += torch.randn_like(value) * (value.std(correction=0) + 0.02)
            copies[name] = nn.Parameter(value)
        self.overlays[adapter_name] = ParameterTree(copies)
        self.mask_tokens[adapter_name] = num_mask_tokens
        self.without_padding[adapter_name] = without_padding
        self.iou_head_trained[adapter_name] = train_iou_head
        if num_labels is not None:
            self.heads[adapter_name] = build_head(self.base_layer, num_labels, num_mask_tokens, random_init)
        if hq_head is not None:
            self.hq_heads[adapter_name] = hq_head
        self.finish_update(adapter_name, inference_mode)

    def stop_capturing(self) -> None:
        """Take the hooks of an HQ decoder off the model."""
        if self.early_map is not None:
            self.early_map.remove()
            self.early_map = None

    def overlaid_parameters(self, adapter_names: list[str]) -> dict[str, torch.Tensor]:
        """The parameters that take the base's places while `adapter_names` are active, by name.

        In the adapter's dtype, the rest of the base module's parameters included when that dtype differs from theirs.
        """
        own = [current_parameters(self.overlays[name]) for name in adapter_names]
        dtype = next(iter(own[0].values())).dtype
        _, base_dtype = self._get_base_layer_device_and_dtype(self.base_layer)
        if len(own) == 1 and dtype == base_dtype:
            return own[0]
        base = current_parameters(self.base_layer)
        effective = combined(base, own)
        rest = {name: value for name, value in base.items() if name not in effective and value.dtype != dtype}
        return effective | {name: value.to(dtype) for name, value in rest.items()}

    def forward(self, *args, **kwargs):
        if self.disable_adapters and self.merged:
            self.unmerge()
        adapters = self.live_adapters
        early, assignment = self.early_map.take() if self.early_map is not None else (None, None)
        if adapters and not self.merged and (assignment is not None or self.hq_is_live):
            return self._decode_hq(adapters, assignment, early, args, kwargs)
        if not adapters or self.merged:
            return self.base_layer(*args, **kwargs)
        classes = [name for name in adapters if name in self.heads]
        if classes and len(adapters) > 1:
            raise UserError(f"adapters {', '.join(adapters)}: a class_wise decoder cannot be active beside another")
        count, attributes = self._mask_token_count(adapters), {}
        if count is not None and not classes:
            attributes["num_mask_tokens"] = count
            args, kwargs = (), as_keywords(self.base_layer, args, kwargs) | {"multimask_output": False}
        _, base_dtype = self._get_base_layer_device_and_dtype(self.base_layer)
        parameters = self.overlaid_parameters(adapters)
        dtype = next(iter(parameters.values())).dtype
        with overlaid(self.base_layer, parameters, **attributes) as module:
            called = partial(decode_classes, module, self.heads[classes[0]], count or 1) if classes else module
            outputs = _in_dtype(called, args, kwargs, dtype, base_dtype)
        if any(self.without_padding[name] for name in adapters):
            given = as_keywords(self.base_layer, args, kwargs)
            if given.get("input_boxes") is None and (given["input_labels"] < 0).all():
                return outputs[0][:, :, :0], *outputs[1:]
        return outputs

    @property
    def conv_s0(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What makes SAM 2's and 3's finest map, with the adapters' weights where they have some.

        Called before the decoder, for the image embeddings.
        """
        return self._part("conv_s0")

    @property
    def conv_s1(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """As `conv_s0`, of the map between."""
        return self._part("conv_s1")

    def _part(self, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        module = getattr(self.base_layer, name)
        own = [current_parameters(self.overlays[adapter]) for adapter in self.live_adapters]
        own = [{key: one[f"{name}.{key}"] for key in ("weight", "bias")} for one in own if f"{name}.weight" in one]
        if not own or self.merged:
            return module
        parameters = combined(current_parameters(module), own)
        dtypes = own[0]["weight"].dtype, module.weight.dtype

        def run(maps: torch.Tensor) -> torch.Tensor:
            with overlaid(module, parameters) as part:
                return _in_dtype(part, (maps,), {}, *dtypes)

        return run

    def _decode_hq(self, adapters: list[str], assignment: Assignment | None, early: EarlyMaps | None, args, kwargs):
        """HQ masks and SAM's IoU estimate, of the one active adapter or of those that `assignment` names."""
        if assignment is None and len(adapters) > 1:
            raise UserError(f"adapters {', '.join(adapters)}: an hq decoder cannot be active beside another")
        names = adapters if assignment is None else [name for name, _ in assignment]
        unknown = [name for name in names if name not in self.hq_heads]
        if unknown:
            raise UserError(f"{', '.join(unknown)} is not an adapter with decoder='hq'", key="hq_assignment")
        heads = {name: self.hq_heads[name] for name in names}
        masks, iou_tokens = decode_hq(self.base_layer, heads, assignment, early, *args, **kwargs)
        return masks, self.base_layer.iou_prediction_head(iou_tokens)[:, :, :1]

    def _mask_token_count(self, adapters: list[str]) -> int | None:
        """Of the adapters' mask tokens; None: as many as the base has."""
        counts = {self.mask_tokens[name] for name in adapters}
        if len(counts) > 1:
            raise UserError(
                f"adapters {', '.join(adapters)} differ in num_mask_tokens: they cannot be active together"
            )
        (count,) = counts
        return count

    def check_merge(self, adapter_names: list[str], safe_merge: bool = False) -> None:
        """Raise `NotImplementedError` if no weights of the base module could hold what the adapters do, and with
        `safe_merge` `ValueError` if they are not finite."""
        if any(name in self.hq_heads for name in adapter_names):
            raise NotImplementedError("an hq decoder sees an early block of the encoder, which no weight of SAM's can")
        if any(self.mask_tokens.get(name) is not None or name in self.heads for name in adapter_names):
            raise NotImplementedError("a decoder with other mask tokens or a class head cannot be merged into SAM's")
        for name in set(adapter_names) & set(self.overlays) if safe_merge else ():
            if not all(torch.isfinite(value).all() for value in self.overlays[name].parameters()):
                raise ValueError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Write the adapters' weights into the base module.

        Args:
            safe_merge: refuse weights that are not finite.
            adapter_names: adapters to merge, default all active ones.

        Raises:
            ValueError: with `safe_merge`, if a merged tensor holds NaN or infinity.
        """
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names if name in self.overlays]
        if not names:
            return
        self.check_merge(names, safe_merge)
        names = self.merged_adapters + names
        self.unmerge()
        merged = self.overlaid_parameters(names)
        base = dict(self.base_layer.named_parameters())
        for name, value in merged.items():
            self._backup[name] = base[name].detach().clone()
            base[name].data.copy_(value)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the base module's own weights back, exactly."""
        base = dict(self.base_layer.named_parameters())
        for name, value in self._backup.items():
            base[name].data.copy_(value)
        self._backup.clear()
        self.merged_adapters.clear()


def check_not_quantised(module: nn.Module) -> None:
    """Raise `UserError` if a module whose weights an adapter starts from, and trains, holds quantised ones."""
    for name, value in module.named_parameters():
        # bitsandbytes keeps integers; torchao tensors that are made of several, as FSDP2's are of shards.
        packed = is_traceable_wrapper_subclass(value) and not isinstance(value, DTensor)
        if packed or not value.is_floating_point():
            raise UserError(
                f"{name} of {type(module).__name__} is quantised, but the adapter trains it",
                key="quantization_config",
                fix="load the base with llm_int8_skip_modules=['mask_decoder'] (bitsandbytes) or "
                "modules_to_not_convert=['mask_decoder'] (torchao), or use decoder='frozen'",
            )


def as_keywords(module: nn.Module, args: tuple, kwargs: dict) -> dict:
    """The arguments of a call of `module` as keywords, in which a hook can look them up and set its own."""
    return inspect.signature(module.forward).bind_partial(*args).arguments | kwargs if args else kwargs


def trains_iou_head(model: nn.Module) -> bool:
    """Whether an active adapter's config has `train_iou_head`."""
    overlays = [module for module in model.modules() if isinstance(module, ParameterOverlay)]
    return any(overlay.iou_head_trained[name] for overlay in overlays for name in overlay.live_adapters)


def _in_dtype(function: Callable, args: tuple, kwargs: dict, dtype: torch.dtype, base_dtype: torch.dtype | None):
    """A call with its inputs in the dtype of an adapter, and its outputs in the base's."""
    if dtype == base_dtype:
        return function(*args, **kwargs)
    args = tuple(_cast(value, dtype) for value in args)
    kwargs = {key: _cast(value, dtype) for key, value in kwargs.items()}
    outputs = function(*args, **kwargs)
    if isinstance(outputs, torch.Tensor):
        return _cast(outputs, base_dtype)
    return tuple(_cast(value, base_dtype) for value in outputs)


def _cast(value, dtype: torch.dtype):
    if isinstance(value, list):  # of SAM 2's and 3's further maps
        return [_cast(each, dtype) for each in value]
    maps = isinstance(value, SharedMaps) or (isinstance(value, torch.Tensor) and value.is_floating_point())
    return value.to(dtype) if maps else value
