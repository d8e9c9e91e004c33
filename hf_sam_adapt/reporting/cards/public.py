"""What a card may show of a recipe: of local folders and files the bare name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

from ...config.paths import FILE
from ...config.recipe import Recipe
from ...repository import is_local


R = TypeVar("R", bound=Recipe)


def public_recipe(recipe: R) -> R:
    """The recipe with the bare names of local folders and files: where they lie is nobody else's concern."""
    # Who repeats the run does not publish it.
    return dataclasses.replace(recipe.with_paths(_bare), push_to_hub=False, hub_model_id=None)


def _bare(key: str, value: str, names: str) -> str:
    return Path(value).expanduser().resolve().name if names == FILE or is_local(value) else value
