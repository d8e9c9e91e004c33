"""Sequential fine-tuning, the lower bound: each task starts from the adapter of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ...config.recipe import Recipe
from ...data import SegmentationData
from ...inference.loading import load_adapted
from ...sam.processing import SamAdaptProcessor
from ...training.resolve import load_model
from ...training.run import start_processes, train
from ...training.run_folder import is_finished
from ..scoring import Scores, score


if TYPE_CHECKING:
    from ...training.loop import TrainingLoop
    from ..run import ContinualRun


@dataclass(frozen=True)
class NaiveArgs:
    """No settings."""


class Naive:
    """One training a domain, in order. The other protocols say where they differ.

    Args:
        run: the domains with their data, and where things are.
        args: the protocol's settings.
    """

    args_cls: type = NaiveArgs
    earlier: Sequence[str] = ()  # what was known before the run and has no test set in it
    like: SamAdaptProcessor | None = None  # prepares the images of all trainings; None: as the base model's own

    def __init__(self, run: ContinualRun, args: Any) -> None:
        self.run, self.args = run, args
        self._loaded: tuple[int, Any] | None = None

    def check(self) -> nn.Module:
        """Build the first task's model: what it refuses is refused before anything is written."""
        _, model, _ = load_model(self.recipe(0), self.data(0), self.like)
        return model

    @property
    def method(self) -> str:
        """What is trained, as the results say it."""
        return self.run.recipe.method

    @property
    def tasks(self) -> list[str]:
        """Names of the trainings' folders, in order."""
        return [f"{number + 1}-{domain.name}" for number, domain in enumerate(self.run.domains)]

    def folder(self, task: int) -> Path:
        return self.run.folder.tasks / self.tasks[task]

    def tests_after(self, task: int) -> list[int]:
        """Numbers of the test sets that are scored after a task: the domains seen, and the next one."""
        return list(range(min(task + 2, len(self.run.domains))))

    def train(self, task: int) -> None:
        """Train a task unless that is done."""
        done = is_finished(self.folder(task))
        start_processes().wait_for_everyone()
        if not done:
            prepare = partial(self.prepare, task)
            train(self.recipe(task), data=self.data(task), prepare=prepare, like=self.like, keep_processes=True)

    def recipe(self, task: int) -> Recipe:
        """The recipe of a task's training."""
        changes: dict[str, Any] = {"adapter": str(self.folder(task - 1)), "method_args": {}} if task else {}
        return self.run.recipe.task(self.run.domains[task], self.folder(task), **changes)

    def data(self, task: int) -> SegmentationData:
        """The data of a task's training."""
        return self.run.data[task]

    def prepare(self, task: int, loop: TrainingLoop) -> None:
        """Change a task's loop before it starts."""

    def score(self, task: int, name: str) -> Scores:
        """Scores on the test set `name` of what is known after a task."""
        if self._loaded is None or self._loaded[0] != task:
            loaded = load_adapted(str(self.folder(task)))
            loaded.model.to(start_processes().device)
            self._loaded = task, loaded
        model, processor = self._loaded[1].model, self._loaded[1].processor
        return score(model, processor, self.run.tests.for_model(name, model, processor), self.run.recipe)
