"""Type hints of keys, taken apart."""

from __future__ import annotations

import types
import typing
from typing import Any


def members(hint: Any) -> tuple:
    """The alternatives of a union, or the type alone."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def takes_many(hint: Any) -> bool:
    """Whether a value of that type may be a list."""
    return any(typing.get_origin(member) is list for member in members(hint))
