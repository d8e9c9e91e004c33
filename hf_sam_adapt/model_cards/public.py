"""What a card may show of a recipe: of local folders and files the bare name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

from ..recipe import Recipe


R = TypeVar("R", bound=Recipe)


def is_local(name: str) -> bool:
    """Whether what a recipe names is a folder or file of this machine rather than on the Hub."""
    path = Path(name).expanduser()
    other = "@" not in name and name.count("/") != 1  # a revision may hold slashes
    return path.exists() or path.is_absolute() or other or name.startswith(".")


def public_recipe(recipe: R) -> R:
    """The recipe with the bare names of local folders and files: where they lie is nobody else's concern."""
    # Who repeats the run does not publish it.
    changes: dict[str, Any] = {"output_dir": Path(recipe.output_dir).name, "push_to_hub": False, "hub_model_id": None}
    for key in ("model", "adapter", "dataset", "palette", "natural"):
        value = getattr(recipe, key, None)
        if value is not None:
            changes[key] = _bare(value)
    if hasattr(recipe, "domains"):
        changes["domains"] = [_bare(domain) for domain in recipe.domains]
    return dataclasses.replace(recipe, **changes)


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(one) if key == "dataset" else one for key, one in value.items()}
    return Path(value).expanduser().name if isinstance(value, str) and "/" in value and is_local(value) else value
