"""Joint training, the upper bound: one training on the images of all domains together."""

from __future__ import annotations

from ...config.continual_recipe import Domain
from ...config.recipe import Recipe
from ...data import SegmentationData
from ..references import joined
from .naive import Naive


class Joint(Naive):
    """A single training, with as many steps as the others take in all their tasks."""

    @property
    def tasks(self) -> list[str]:
        return [f"joint-{len(self.run.domains)}"]

    def tests_after(self, task: int) -> list[int]:
        return list(range(len(self.run.domains)))

    def recipe(self, task: int) -> Recipe:
        recipe, names = self.run.recipe, [domain.name for domain in self.run.domains]
        everything = Domain("joint", " + ".join(names))
        return recipe.task(everything, self.folder(task), max_steps=recipe.max_steps * len(names))

    def data(self, task: int) -> SegmentationData:
        return joined(self.run.data, self.run.domains)
