"""The run folder: what may be written where, and what a resumed run must not change."""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from ..config.arguments import from_file
from ..config.paths import absolute
from ..config.recipe import Recipe, ResolvedRecipe
from ..data import SegmentationData
from ..distributed import of_all_ranks, rank_and_world
from ..errors import UserError
from ..files import publish, write_text


# Whatever a run writes; a folder that holds one of these belongs to somebody.
_OWN = (
    "recipe.yaml splits.json adapter_config.json adapter_model.safetensors config.json model.safetensors "
    "preprocessor_config.json metrics.json samples.png curve.png experts.png f_measure.png confusion.png "
    "README.md checkpoints"
).split()
# What may differ between a run and its continuation without making it another run.
_MAY_CHANGE = {
    "batch_size",  # with the number of processes; the images of an optimizer step are compared instead
    "gradient_accumulation_steps",
    "num_workers",
    "cache_embeddings",  # gives the same losses
    "gradient_checkpointing",
    "attention",
    "compile",
    "epochs",
    "max_steps",
    "early_stopping",
    "eval_every",
    "checkpoint_every",
    "output_dir",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "resume_from_checkpoint",
}


_SEEN_WITHIN = 10.0  # seconds until a network's file system shows a new file on every machine


def is_finished(folder: Path) -> bool:
    """Whether a run has written all it leaves."""
    return (folder / "metrics.json").exists() and not _unpublished(folder).exists()


def _unpublished(folder: Path) -> Path:
    """Where a run's files are written before they are moved to its top level; on the same file system."""
    return folder / "checkpoints" / ".tmp_final"


class RunFolder:
    """Paths and rules of one run's folder; creating the object writes nothing.

    Raises:
        UserError: the folder holds another run, or there is none to resume.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.path = Path(recipe.output_dir)
        self.checkpoints = self.path / "checkpoints"
        self.logs = self.path / "logs"
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file", key="output_dir", fix="name a folder")
        present = [name for name in _OWN if (self.path / name).exists()]
        if recipe.resume_from_checkpoint is None:
            if present:
                raise UserError(
                    f"{self.path} already holds {present[0]}",
                    key="output_dir",
                    fix="name another folder, or continue that run with resume_from_checkpoint: latest",
                )
        elif present and "recipe.yaml" not in present:
            raise UserError(
                f"{self.path} holds {present[0]} but no recipe.yaml, so it is not a run to resume", key="output_dir"
            )

    def check_same_run(self, recipe: ResolvedRecipe) -> None:
        """A continued run must have the recipe of its beginning."""
        path = self.path / "recipe.yaml"
        if not path.exists():
            return
        before, now = from_file(Recipe, path).with_paths(absolute), recipe.with_paths(absolute)
        for field in dataclasses.fields(Recipe):
            old, new = getattr(before, field.name), getattr(now, field.name)
            if field.name not in _MAY_CHANGE and old != new:
                raise UserError(
                    f"{field.name} is {new!r}, the run in {self.path} has {old!r}",
                    key="resume_from_checkpoint",
                    fix="keep it, or start another output_dir",
                )

    def begin(self, recipe: ResolvedRecipe, data: SegmentationData) -> None:
        """Create the folder with `recipe.yaml` and, for splits drawn by seed, `splits.json`.

        Of splits that the source names `logs/splits.json` tells a run that goes on from this one what has changed.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self.logs.mkdir(exist_ok=True)
        if data.keys is not None:
            folder = self.logs if data.splits is None else self.path
            write_text(folder / "splits.json", json.dumps(data.keys, indent=2))
        # Rerunning the file shall give the whole run, not its end.
        whole = dataclasses.replace(recipe, resume_from_checkpoint=None)
        write_text(self.path / "recipe.yaml", whole.to_yaml(self.path))

    def check_shared(self) -> None:
        """Raise `UserError` in every process if one of them, on another machine, does not see this folder.

        Checkpoints are written by the first process alone, and read by all. What the check writes it removes.
        """
        rank, world = rank_and_world()
        if world == 1:
            return
        probe = self.path / f".shared_{of_all_ranks(secrets.token_hex(8))[0]}"
        absent = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        of_all_ranks(None)  # every process has looked before one of them writes
        if rank == 0:
            probe.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
        of_all_ranks(None)
        end = time.monotonic() + _SEEN_WITHIN
        while not probe.exists() and time.monotonic() < end:
            time.sleep(0.1)
        seen = of_all_ranks(probe.exists())
        if rank == 0:
            probe.unlink()
            for folder in absent:
                folder.rmdir()
        if not all(seen):
            blind = [str(number) for number, there in enumerate(seen) if not there]
            raise UserError(
                f"{self.path} is not seen by process {', '.join(blind)} of {world}",
                key="output_dir",
                fix="name a folder that all machines share",
            )

    def finish(self, write: Callable[[Path], None]) -> None:
        """Let `write` fill an empty folder and move its files into the run folder."""
        temporary = _unpublished(self.path)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        publish(temporary, self.path)
