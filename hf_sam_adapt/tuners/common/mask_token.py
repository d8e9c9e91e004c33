"""Which mask a SAM with an adapter returns when its caller does not say."""

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ...sam.mask_choice import MaskChoice, mask_choices, set_token_0
from ...sam.per_thread import PerThread
from .config import SamConfigMixin
from .layer import as_keywords


class _Changed(PerThread):
    """Of each call of the model that has begun, what chooses its masks and what it was set to before."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[MaskChoice], list[bool]]] = []


class MaskTokenDefault:
    """Hooks of a SAM's forward: who names no `multimask_output` gets the adapter's, and a single mask is token 0's.

    An object instead of closures, so that a model with it can be copied and pickled.

    Args:
        anchor: a tuner layer; while it has no active adapter the model's own default holds. None: there is no adapter.
        configs: of the model's adapters by name; of several active ones the first decides.
        merged: the default of an adapter that was merged into the model, which is then its own; None: SAM's.
    """

    def __init__(self, anchor: BaseTunerLayer | None, configs: dict[str, SamConfigMixin], merged: bool | None = None):
        self.anchor, self.configs, self.merged = anchor, configs, merged
        self._changed = _Changed()

    def register(self, model: nn.Module) -> None:
        model.register_forward_pre_hook(self, with_kwargs=True)
        model.register_forward_hook(self.restore, always_call=True)

    def restore(self, module: nn.Module, args: tuple, output: object) -> None:
        """Forward hook: the decoder chooses its mask as it did before."""
        if self._changed.calls:
            set_token_0(*self._changed.calls.pop())

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        live = [] if self.anchor is None or self.anchor.disable_adapters else self.anchor.active_adapters
        # PEFT keeps the configs of further tuners at the model; a plain LoRA's has no such field.
        configs = [self.configs.get(name) or getattr(module, "peft_config", {}).get(name) for name in live]
        chosen = [config.multimask_output for config in configs if isinstance(config, SamConfigMixin)]
        chosen += [] if self.merged is None else [self.merged]
        choices = mask_choices(module) if chosen else []
        self._changed.calls.append((choices, [choice.token_0 for choice in choices]))
        set_token_0(choices, [True] * len(choices))
        kwargs = as_keywords(module, args, kwargs)
        return (), {"multimask_output": chosen[0], **kwargs} if chosen else kwargs


def remove_mask_token_hooks(model: nn.Module) -> bool | None:
    """Take the hooks of every `MaskTokenDefault` off a model; returns the default that was merged into it, if any."""
    merged = None
    for key, hook in list(model._forward_pre_hooks.items()):
        if not isinstance(hook, MaskTokenDefault):
            continue
        merged = hook.merged if merged is None else merged
        del model._forward_pre_hooks[key]
        model._forward_pre_hooks_with_kwargs.pop(key, None)
    for key, hook in list(model._forward_hooks.items()):
        if isinstance(getattr(hook, "__self__", None), MaskTokenDefault):
            del model._forward_hooks[key]
            model._forward_hooks_always_called.pop(key, None)
    return merged
