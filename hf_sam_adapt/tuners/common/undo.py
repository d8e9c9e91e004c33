"""A refused call leaves the model as it was: what is placed in a model is taken back whole, in place."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn
from transformers import PretrainedConfig


_HOLDERS = (nn.Module, PretrainedConfig, PeftConfig)
_PENDING = "_pending_load"


class Snapshot:
    """All that a model is but the values of its tensors: modules, parameters, hooks, attributes, flags and configs.

    Args:
        roots: modules and configs; with them all that they hold.
    """

    def __init__(self, *roots: nn.Module | PeftConfig):
        self._attributes: list[tuple[dict, dict]] = []
        self._containers: list[tuple[Any, Any]] = []
        parameters: dict[int, nn.Parameter] = {}
        seen: set[int] = set()
        left: list[Any] = list(roots)
        while left:
            holder = left.pop()
            if id(holder) in seen:
                continue
            seen.add(id(holder))
            self._attributes.append((vars(holder), dict(vars(holder))))
            for value in vars(holder).values():
                if isinstance(value, (dict, list, set, deque)):
                    self._containers.append((value, copy.copy(value)))
                inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else (value,)
                left += [one for one in inside if isinstance(one, _HOLDERS)]
            if isinstance(holder, nn.Module):
                parameters |= {id(p): p for p in holder.parameters(recurse=False)}
        self._flags = [(parameter, parameter.requires_grad) for parameter in parameters.values()]

    def restore(self) -> None:
        """Put everything back."""
        for attributes, before in self._attributes:
            attributes.clear()
            attributes.update(before)
        for container, before in self._containers:
            container.clear()
            if isinstance(container, (dict, set)):
                container.update(before)
            else:
                container.extend(before)
        for parameter, requires_grad in self._flags:
            parameter.requires_grad_(requires_grad)


@contextmanager
def unchanged_if_refused(*roots: nn.Module | PeftConfig) -> Iterator[Snapshot]:
    """Put `roots` back as they were if an exception leaves the block."""
    snapshot = Snapshot(*roots)
    try:
        yield snapshot
    except BaseException:
        snapshot.restore()
        raise


class Undoable:
    """Stands in the MRO between a method's mixin and PEFT's tuner: an injection or a load that raises is undone.

    A subclass places its layers in `_place`, and compares a file's keys in `_remapped`.
    """

    def __init__(self, model: nn.Module, peft_config, adapter_name: str, *args, **kwargs):
        try:
            with unchanged_if_refused(model) as before:
                super().__init__(model, peft_config, adapter_name, *args, **kwargs)
        except BaseException:
            if not getattr(model, "peft_config", None):
                vars(model).pop("_hf_peft_config_loaded", None)  # `SamModel.add_adapter` sets it before it calls PEFT
            raise
        if _PENDING in vars(self):
            vars(self)[_PENDING] = (adapter_name, before)

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        config = self.peft_config[adapter_name]
        with unchanged_if_refused(self, config) as before:
            self._place(model, adapter_name, *args, **kwargs)
        if config.inference_mode or config.fingerprint_is_from_file:  # its file's tensors come next
            vars(self)[_PENDING] = (adapter_name, before)

    def _place(self, model: nn.Module, adapter_name: str, *args, **kwargs) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        tuner = model if isinstance(model, BaseTuner) else model.base_model
        placed_for, before = forget_load(tuner) or (None, None)
        try:
            return cls._remapped(model, config, adapter_name, state_dict)
        except BaseException:
            if placed_for == adapter_name:
                before.restore()
                tuner.peft_config.pop(adapter_name, None)
            raise

    @classmethod
    def _remapped(cls, model, config, adapter_name: str, state_dict: dict) -> dict[str, torch.Tensor]:
        return super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)

    def __getstate__(self) -> dict:
        return {key: value for key, value in vars(self).items() if key != _PENDING}


def forget_load(tuner: BaseTuner) -> tuple[str, Snapshot] | None:
    """Keep nothing any more to undo the latest injection with; what was kept, if anything."""
    return vars(tuner).pop(_PENDING, None)
