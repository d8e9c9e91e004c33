"""Experiment trackers (`report_to`) through Accelerate, all of them writing into the run's `logs/`."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path

from accelerate import Accelerator

from ..config.recipe import ResolvedRecipe
from ..errors import UserError


def check_trackers(names: list[str]) -> None:
    """Accelerate would leave out a tracker whose package is missing; here that is a `UserError`."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"the package {name} is not installed", key="report_to", fix=f"run `pip install {name}`")


def start_trackers(accelerator: Accelerator, recipe: ResolvedRecipe, logs: Path) -> None:
    """Start the accelerator's trackers with the recipe as their configuration."""
    if not recipe.report_to:
        return
    # trackio has no argument for its folder.
    os.environ.setdefault("TRACKIO_DIR", str(logs.resolve() / "trackio"))
    plain = {
        name: value if isinstance(value, (bool, int, float, str)) else str(value)
        for name, value in dataclasses.asdict(recipe).items()
    }
    accelerator.init_trackers("hf-sam-adapt", config=plain, init_kwargs={"wandb": {"dir": str(logs)}})
