"""Reading official checkpoints without running their code, and comparing their frozen weights with a base model."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import nn

from ..errors import UserError
from ..fingerprint import TOLERANCE


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `torch.save` file on the CPU, memory-mapped where its format allows.

    Args:
        path: holds a state dict, or a dictionary with one under `"state_dict"`.

    Raises:
        UserError: no such file, not a PyTorch file, one that holds more than plain data, or no state dict in it.
    """
    if not path.is_file():
        raise UserError(f"checkpoint: {path} is no file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise UserError(f"checkpoint: {path} is no PyTorch file, or a damaged one") from error
        raise UserError(
            f"checkpoint: {path} holds more than tensors ({refused[1]}), and unpickling that could run code; where "
            "you trust the file, save its state_dict alone with torch.save and convert that"
        ) from error
    except Exception as error:  # torch checks nothing: a damaged pickle raises whatever its bytes lead to
        raise UserError(f"checkpoint: {path} is no PyTorch file, or a damaged one") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(value, torch.Tensor) for value in state.values())
    ):
        raise UserError(f"checkpoint: {path} holds no state dict: tensors by name, alone or under 'state_dict'")
    return state


def check_frozen(frozen: dict[str, torch.Tensor], base: nn.Module, base_name: str) -> None:
    """Compare a checkpoint's frozen weights with those of a base model, as closely as half precision allows.

    Args:
        frozen: the weights by the names of the base model's state dict.
        base: the SAM that was adapted, supposedly.
        base_name: for the message.

    Raises:
        UserError: if any differs in shape, or by more than 1e-2 of the base's largest value; names the first.
    """
    own = base.state_dict()
    differences = {name: _difference(value, own.get(name)) for name, value in frozen.items()}
    wrong = [name for name, difference in differences.items() if difference]
    if wrong:
        raise UserError(
            f"base: {len(wrong)} of {len(frozen)} frozen weights of the checkpoint are not those of {base_name}, the "
            f"first is {wrong[0]} ({differences[wrong[0]]}); name the SAM that was adapted"
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
