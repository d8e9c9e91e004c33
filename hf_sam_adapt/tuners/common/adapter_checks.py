"""Whether an adapter's name and tensors are ones that PEFT saves and loads whole."""

from __future__ import annotations

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn

from ...errors import UserError
from ...files import is_plain_name
from .config import SamConfigMixin
from .hq import HQ_MODULES


def check_adapter_keys(
    tuner_cls: type, model: nn.Module, config: SamConfigMixin, adapter_name: str, found: dict[str, torch.Tensor]
) -> None:
    """Raise `UserError` unless `found`, under the model's own keys, holds exactly the adapter's tensors."""
    others = [name for name in model.peft_config if name != adapter_name]
    own = {
        key: value
        for key, value in model.state_dict().items()
        if not any(f".{name}." in key or key.endswith(f".{name}") for name in others)
    }
    expected = tuner_cls._get_adapter_state_dict(model, config, adapter_name, own, others)
    for module_name, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):  # in the same file, though not the tuner's
            prefix = f"{module_name}.modules_to_save.{adapter_name}."
            expected |= {key: value for key, value in own.items() if key.startswith(prefix)}
    wrong = {
        "missing": sorted(set(expected) - set(found)),
        "unexpected": sorted(set(found) - set(expected)),
        "of another shape": sorted(
            key for key in set(expected) & set(found) if expected[key].shape != found[key].shape
        ),
    }
    if any(wrong.values()):
        listed = "; ".join(
            f"{len(keys)} {kind}: {', '.join(keys[:3])}{', …' if len(keys) > 3 else ''}"
            for kind, keys in wrong.items()
            if keys
        )
        raise UserError(
            f"the weights of adapter {adapter_name!r} do not fit its adapter_config.json ({listed})",
            fix="the file is damaged or belongs to another adapter",
        )


def check_adapter_name(model: nn.Module, adapter_name: str) -> None:
    """Refuse names that would make PEFT save nothing.

    PEFT selects what to save by the substring `.<name>.`, so a name that is also a part of a module path empties the
    files of the other adapters.

    Raises:
        UserError: if the name is empty, holds a dot or what a folder's name cannot, or occurs in a module path of the
            base model.
    """
    if "." in adapter_name or not is_plain_name(adapter_name.replace(":", "")):  # ModaModel puts a colon in its own
        raise UserError(f"adapter name {adapter_name!r} cannot be a folder's", fix="use letters, digits, '-' and '_'")
    layers = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    parts = {*HQ_MODULES, "base_model", "model"}  # the latter two are PEFT's own
    for name, _ in model.named_parameters():
        inside = [layer for layer in layers if name.startswith(f"{layer}.") and ".base_layer." not in name]
        if not inside:
            parts.update(name.split("."))
    if adapter_name in parts:
        raise UserError(
            f"adapter name {adapter_name!r} is part of a module path of the model, so PEFT would save no weights",
            fix="choose another name",
        )
