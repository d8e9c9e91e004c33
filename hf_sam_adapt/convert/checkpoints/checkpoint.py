"""Reading official checkpoints without running their code, and comparing their frozen weights with a base model."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint

from ...errors import UserError
from ...sam.fingerprint import TOLERANCE


# Where training code keeps the state dict of its model, and what wrappers put before its names.
_NESTED = ("state_dict", "model", "model_state_dict", "net", "module")
_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")


class Checkpoint:
    """The tensors of a file by the names that its model gives them, without those of wrappers around it.

    Args:
        path: the file.
        state: its tensors, by the names in the file.

    Raises:
        UserError: two names are one without their wrappers.
    """

    def __init__(self, path: Path, state: Mapping[str, torch.Tensor]) -> None:
        self.path = path
        self.tensors = {_WRAPPERS.sub("", name): value for name, value in state.items()}
        if len(self.tensors) < len(state):
            raise UserError(
                f"{path}: some names differ in a prefix such as 'module.' only", key="checkpoint", fix="keep one model"
            )
        self._names = {id(value): name for name, value in state.items()}

    def __str__(self) -> str:
        return str(self.path)

    def name_of(self, name: str, value: torch.Tensor) -> str:
        """What the file calls a tensor that is called `name` here; `name` where it was made of several."""
        return self._names.get(id(value), name)


def read_checkpoint(path: Path) -> Checkpoint:
    """The tensors of a `torch.save` file or of a `.safetensors` on the CPU, memory-mapped where its format allows.

    Args:
        path: holds a state dict, or a dictionary with one under `"state_dict"`, `"model"` and the like.

    Raises:
        UserError: no such file, not a PyTorch file, one that holds more than plain data, or no state dict in it.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file", key="checkpoint")
    if path.suffix == ".safetensors":
        try:
            return Checkpoint(path, load_file(path))
        except SafetensorError as error:
            raise UserError(f"{path} is not a safetensors file, or a damaged one", key="checkpoint") from error
    zipped = zipfile.is_zipfile(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch checks nothing: a damaged pickle raises whatever its bytes lead to
        unsafe = _code_in(path) if isinstance(error, pickle.UnpicklingError) else []
        if unsafe:
            problem = f"{path} holds more than tensors ({', '.join(unsafe)}), and unpickling that could run code"
        else:
            old = "" if zipped else "; or one of before torch 1.6 that holds more than tensors"
            problem = f"{path} is not a PyTorch file, or a damaged one{old}"
        fix = "where you trust the file, save its state_dict alone with torch.save and convert that"
        raise UserError(problem, key="checkpoint", fix=fix if unsafe or not zipped else None) from error
    return Checkpoint(path, _state_dict(content, path))


def _code_in(path: Path) -> list[str]:
    """Functions and classes that unpickling a `torch.save` file would call, other than those of tensors."""
    try:
        return sorted(get_unsafe_globals_in_checkpoint(path))
    except Exception:  # of a damaged file, or one in the format of before torch 1.6
        return []


def _state_dict(content: Any, path: Path) -> dict[str, torch.Tensor]:
    """The one state dict in what a file holds."""
    found = [name for name in _NESTED if name in content] if isinstance(content, dict) else []
    if len(found) > 1:
        raise UserError(
            f"{path} holds several models, under {', '.join(found)}",
            key="checkpoint",
            fix="save the one to convert alone",
        )
    if found:
        return _state_dict(content[found[0]], path)
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not content or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UserError(
            f"{path} holds no state dict: tensors by name, alone or under {' or '.join(_NESTED)}", key="checkpoint"
        )
    return content


def check_finite(tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> None:
    """Raise `UserError` for weights that are no floating-point numbers, or hold NaN or infinity."""
    wrong = [
        checkpoint.name_of(name, value)
        for name, value in tensors.items()
        if not (value.is_floating_point() and torch.isfinite(value).all())
    ]
    if wrong:
        raise UserError(
            f"{checkpoint}: {len(wrong)} of the adapter's {len(tensors)} tensors hold NaN, infinity or no "
            f"floating-point numbers, the first is {wrong[0]}",
            key="checkpoint",
            fix="convert a checkpoint from before the training failed",
        )


def check_frozen(frozen: Mapping[str, torch.Tensor], base: nn.Module, base_name: str, checkpoint: Checkpoint) -> None:
    """Compare a checkpoint's frozen weights with those of a base model, as closely as half precision allows.

    Args:
        frozen: the weights by the names of the base model's state dict.
        base: the SAM that was adapted, supposedly.
        base_name: for the message.
        checkpoint: for the message.

    Raises:
        UserError: if any differs in shape, or by more than 1e-2 of the base's largest value; names the first.
    """
    own = base.state_dict()
    differences = {name: _difference(value, own.get(name)) for name, value in frozen.items()}
    wrong = [name for name, difference in differences.items() if difference]
    if wrong:
        raise UserError(
            f"{len(wrong)} of {len(frozen)} frozen weights of the checkpoint are not those of {base_name}, the first "
            f"is {checkpoint.name_of(wrong[0], frozen[wrong[0]])} ({differences[wrong[0]]})",
            key="base",
            fix="name the SAM that was adapted",
        )


def _difference(value: torch.Tensor, own: torch.Tensor | None) -> str:
    """What tells `value` from the base's own tensor; empty where nothing does."""
    if own is None:
        return "the base has none"
    if value.shape != own.shape:
        return f"{tuple(value.shape)} against {tuple(own.shape)}"
    largest = own.abs().max().item()
    distance = (value.float() - own.float()).abs().max().item()
    # Written so that NaN differs, too.
    return "" if distance <= TOLERANCE * largest else f"differs by {distance:.2g}, its largest value is {largest:.2g}"
