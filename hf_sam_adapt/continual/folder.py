"""The folder of a continual run: what is where, and what may change between two invocations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..config.arguments import from_file, read_yaml
from ..config.continual_recipe import ContinualRecipe
from ..config.paths import absolute
from ..errors import UserError
from ..files import write_text


# The results are the same, or nothing that is finished depends on it. `domains` may grow at the end.
_MAY_CHANGE = set(
    (
        "domains natural num_workers cache_embeddings gradient_checkpointing attention compile output_dir report_to "
        "push_to_hub hub_model_id resume_from_checkpoint"
    ).split()
)


class ContinualFolder:
    """Paths of a continual run; creating the object writes nothing.

    - `tasks/<number>-<domain>/`: an ordinary run folder a task.
    - `evaluations/<task>/<test set>.json`: one score each.
    - `continual.json`, `matrix.png`, `curves.png`, `recipe.yaml`.

    Raises:
        UserError: the folder holds something else, or a run that this recipe does not continue.
    """

    def __init__(self, recipe: ContinualRecipe) -> None:
        self.path = Path(recipe.output_dir)
        self.tasks = self.path / "tasks"
        self.evaluations = self.path / "evaluations"
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file", key="output_dir", fix="name a folder")
        before = self.path / "recipe.yaml"
        if before.exists():
            if "domains" not in read_yaml(before):
                raise UserError(
                    f"{self.path} holds a run on one data set", key="output_dir", fix="name another folder"
                )
            _check_continues(from_file(ContinualRecipe, before), recipe, self.path)
        elif self.tasks.exists():
            raise UserError(f"{self.path} holds tasks but no recipe.yaml", key="output_dir", fix="name another folder")

    def begin(self, recipe: ContinualRecipe) -> None:
        """Create the folder with `recipe.yaml`."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "recipe.yaml", recipe.to_yaml(self.path))
        self.tasks.mkdir(exist_ok=True)
        self.evaluations.mkdir(exist_ok=True)


def _check_continues(before: ContinualRecipe, recipe: ContinualRecipe, path: Path) -> None:
    """Domains may be added at the end, everything else that decides a result must be as it was."""
    before, recipe = before.with_paths(absolute), recipe.with_paths(absolute)
    for number, old in enumerate(before.domains):
        new = recipe.domains[number] if number < len(recipe.domains) else None
        if new != old:
            raise UserError(
                f"number {number + 1} is {('missing' if new is None else new)}, the run in {path} has {old}",
                key="domains",
                fix="add domains at the end, or name another output_dir",
            )
    rates = before.learning_rates
    if rates is not None and (recipe.learning_rates or [])[: len(rates)] == rates:
        before = dataclasses.replace(before, domains=recipe.domains, learning_rates=recipe.learning_rates)
    if recipe.natural != before.natural and before.natural is not None:
        raise UserError(f"{recipe.natural}, the run in {path} has {before.natural}", key="natural", fix="keep it")
    for field in dataclasses.fields(ContinualRecipe):
        old, new = getattr(before, field.name), getattr(recipe, field.name)
        if field.name not in _MAY_CHANGE and old != new:
            raise UserError(
                f"{new!r}, the run in {path} has {old!r}", key=field.name, fix="keep it, or name another output_dir"
            )
