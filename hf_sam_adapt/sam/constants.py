"""Tensors that sizes, device and dtype alone decide, kept for the next call."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch


T = TypeVar("T")

_MOST_KEPT = 64
_kept: dict[tuple, Any] = {}


def kept(make: Callable[..., T], *key: Any, exported: bool = False) -> T:
    """`make(*key)`, a tensor or a tuple of some, computed once.

    A compiler computes it in its graph: tensors made while it traces must not outlive that.

    Args:
        key: whatever decides the result, hashable.
        exported: an exported program takes what an earlier call has made for constants.
    """
    whole = (make, *key)
    if torch.compiler.is_compiling():
        known = _kept.get(whole) if exported and torch.compiler.is_exporting() else None
        return make(*key) if known is None else known
    found = _kept.get(whole)
    if found is None:
        if len(_kept) >= _MOST_KEPT:
            _kept.clear()
        with torch.inference_mode(False):  # a training may use them as well
            found = _kept[whole] = make(*key)
    return found


def forget_constants() -> None:
    """Drop all that is kept: around a forward on fake tensors, whose constants belong to nobody else."""
    _kept.clear()
