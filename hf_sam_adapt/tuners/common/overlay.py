"""A module that runs with other parameters than its own, which stay where they are."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.utils.stateless import _reparametrize_module


@contextmanager
def overlaid(module: nn.Module, parameters: Mapping[str, torch.Tensor], **attributes: Any) -> Iterator[nn.Module]:
    """`module` with `parameters`, by dotted name, and `attributes` in the places of its own, for one call within.

    A copy of it and of those of its parts that change; all else is shared, so that many threads may do so at once.
    What is compiled or exported has them swapped in the module itself, which is traced by one thread.
    """
    if not torch.compiler.is_compiling():
        yield _shell(module, parameters, attributes)
        return
    before = {name: getattr(module, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(module, name, value)
        with _reparametrize_module(module, dict(parameters)):
            yield module
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _shell(module: nn.Module, parameters: Mapping[str, torch.Tensor], attributes: Mapping[str, Any]) -> nn.Module:
    copies = {"": _bare_copy(module)}
    vars(copies[""]).update(attributes)

    def part(path: str) -> nn.Module:
        if path not in copies:
            parent, _, name = path.rpartition(".")
            modules = part(parent)._modules
            copies[path] = modules[name] = _bare_copy(modules[name])
        return copies[path]

    for name, value in parameters.items():
        path, _, leaf = name.rpartition(".")
        own = vars(part(path))
        own.pop(leaf, None)  # FSDP1 and DataParallel hide the registered parameters by plain attributes
        own["_parameters"][leaf] = value
    return copies[""]


def _bare_copy(module: nn.Module) -> Any:
    """A module with everything of `module`, but dictionaries of its own for its parameters and its parts."""
    copied = object.__new__(type(module))  # FSDP2's classes make another of `__new__`
    own = vars(module).copy()
    own["_parameters"], own["_modules"] = module._parameters.copy(), module._modules.copy()
    for name in ("forward", "_old_forward") if "_hf_hook" in own else ():
        own[name] = _rebound(own[name], module, copied)
    object.__setattr__(copied, "__dict__", own)  # a module's own would look whether it is a part
    return copied


def _rebound(function: Any, module: nn.Module, copied: nn.Module) -> Any:
    """What Accelerate puts in the place of a forward to move its inputs (`device_map`), for a copy of the module."""
    if isinstance(function, MethodType) and function.__self__ is module:
        return MethodType(function.__func__, copied)
    if isinstance(function, partial) and function.args and function.args[0] is module:
        return partial(function.func, copied, *function.args[1:], **function.keywords)
    return function


def current_parameters(module: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a module by dotted name, read as its forward does.

    Within a forward, FSDP1 keeps the gathered tensors as plain attributes that hide the registered parameters, and a
    replica of `nn.DataParallel` has plain attributes alone.
    """
    found: dict[str, torch.Tensor] = {}
    _collect(module, "", found)
    return found


def _collect(module: nn.Module, prefix: str, found: dict[str, torch.Tensor]) -> None:
    own = vars(module)
    for name in parameter_names(module):
        value = own[name] if name in own else own["_parameters"][name]
        if value is not None:
            found[prefix + name] = value
    for name, inner in own["_modules"].items():
        if inner is not None:
            _collect(inner, f"{prefix}{name}.", found)


def parameter_names(module: nn.Module) -> Iterable[str]:
    """Of a module's own parameters, also where they are attributes of a replica of `nn.DataParallel`."""
    return module._parameters or vars(module).get("_former_parameters", ())


def combined(base: dict[str, torch.Tensor], own: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The weights of one adapter exactly; of several, in their dtype, the base's plus the sum of their differences."""
    if len(own) == 1:
        return own[0]
    effective = {}
    for name in set().union(*own):
        weights = [one[name] for one in own if name in one]
        frozen = base[name].to(weights[0].dtype)
        effective[name] = frozen + sum(weight - frozen for weight in weights)
    return effective
