"""What an earlier run says of a data set: which image was for what."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.arguments import read_yaml
from ..config.paths import change_paths, found_from
from ..config.recipe import Recipe
from ..data import SegmentationData
from ..data.notes import Note
from ..data.splits import changes, read_splits
from ..errors import UserError
from ..repository import find_file


@dataclass(frozen=True)
class EarlierRun:
    """A run that another one goes on from, or whose adapter is evaluated.

    Attributes:
        name: the user's, a folder or a Hub id.
        recipe: its keys as they are written; empty where there is none.
        trouble: why the recipe could not be read from the Hub, else None.
        splits: the keys of its images per split; None where they are not known, as on the Hub.
        file: the recipe, None where there is none.
    """

    name: str
    recipe: dict[str, Any]
    splits: dict[str, list[str]] | None
    trouble: str | None = None
    file: Path | None = None

    @classmethod
    def read(cls, name: str) -> EarlierRun:
        """Of a run folder, an adapter's folder or a Hub id. Raises `UserError` where a file is damaged."""
        try:
            recipe = find_file(name, "recipe.yaml")
        except UserError as error:  # what is needed of the adapter may be in the cache
            return cls(name, {}, None, str(error))
        files = (Path(name) / place / "splits.json" for place in ("", "logs"))
        known = next((read_splits(file) for file in files if file.is_file()), None)
        return cls(name, {} if recipe is None else read_yaml(recipe), known, file=recipe)

    def taken(self, keys: Iterable[str]) -> dict[str, Any]:
        """Those of `keys` that the recipe has, with paths from the working directory."""
        values = {key: self.recipe[key] for key in keys if key in self.recipe}
        return values if self.file is None else values | change_paths(Recipe, values, found_from(self.file))

    def is_of(self, dataset: Any) -> bool:
        """Whether `dataset` is the run's."""
        trained_on = self.recipe.get("dataset")
        if not isinstance(dataset, (str, os.PathLike)) or not trained_on:
            return False
        # Published recipes name a folder without its place, so equal text is enough.
        beside = os.curdir if self.file is None else self.file.parent
        given = os.path.abspath(os.path.expanduser(dataset))
        return str(dataset) == trained_on or given == os.path.abspath(
            os.path.join(beside, os.path.expanduser(trained_on))
        )

    def known(self, dataset: Any) -> dict[str, list[str]] | None:
        """What `load_segmentation_dataset` takes as `known`: the run's splits, if `dataset` is the run's."""
        return self.splits if self.is_of(dataset) else None

    def notes(self, data: SegmentationData, dataset: Any, seed: int) -> list[str]:
        """What differs between the run's images and those of `data`, in sentences."""
        trained_on, keys = self.recipe.get("dataset"), data.keys
        notes: list[str] = []
        if self.trouble is not None:
            unknown = Note.about("whether {} was trained on these images is not known", self.name)
            notes.append(Note(f"{unknown} ({self.trouble})", unknown.public))
        if trained_on and not self.is_of(dataset):
            notes.append(Note.about("{} was trained on {}, not on {}", self.name, trained_on, data.name))
        elif trained_on and self.splits is not None and keys is not None:
            changed = changes(self.splits, keys)
            stay = "; the others keep their sides" if data.splits is not None else ""
            text = f"{{}} has changed since {{}} was trained: {changed}{stay}"
            notes += [Note.about(text, data.name, self.name)] * bool(changed)
        own_seed = self.recipe.get("seed", seed)
        if trained_on and data.splits is not None and own_seed != seed and self.known(dataset) is None:
            text = f"{{}} was trained with the split of seed {own_seed}, this one is of seed {seed}: it may have been "
            notes.append(Note.about(f"{text}trained on images that are tested here", self.name))
        return notes
