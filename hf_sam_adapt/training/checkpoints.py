"""Checkpoints that are whole or absent: written beside, synced, renamed; read only from the run's own folder."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn

from ..errors import UserError
from ..files import follow_umask, sync_folder, write_text
from .sharding import gathered, write_into


KEPT = 2
_TEMPORARY = ".tmp_"
_WEIGHTS = "trainable.safetensors"
_STATE = "state.json"


@dataclass
class TrainingState:
    """Where a training stands; everything else follows from the recipe and this.

    Attributes:
        step: optimizer steps done.
        images_per_step: of all processes and micro-steps together; a resumed run must take as many.
        best_step, best_iou: of the best validation so far, None before the first.
        experts: use of a Conv-LoRA adapter's experts so far, rows of `ExpertMeter`.
        history: loss and train IoU so far, rows of `record_step`.
        validations: `{"step", "val_iou"}` of each validation so far.
        images_per_second, peak_memory_bytes: cost so far, for a run resumed with nothing left to measure.
    """

    images_per_step: int
    step: int = 0
    best_step: int | None = None
    best_iou: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: int = 0
    experts: list[dict] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    validations: list[dict] = field(default_factory=list)


class Checkpoints:
    """The folder `checkpoints/` of a run: `step_<n>` for the newest two and the best, `best.json` names the best.

    A checkpoint holds the trained parameters (safetensors), Accelerate's optimizer, scaler and generator states, and
    `state.json`, which is written last and lists the size of every file: what lacks it or differs is not a checkpoint.

    Args:
        folder: `<output_dir>/checkpoints`.
        accelerator: has prepared `model` and its optimizer.
        model: the unwrapped model.
    """

    def __init__(self, folder: Path, accelerator: Accelerator, model: nn.Module) -> None:
        self.folder, self.accelerator, self.model = folder, accelerator, model
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def save(self, state: TrainingState) -> None:
        """Write `step_<n>` for `state`, then remove what is neither among the newest two nor the best."""
        temporary = self.folder / f"{_TEMPORARY}step_{state.step}"
        if self.accelerator.is_main_process:
            self.remove_torn()
            temporary.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(temporary))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            follow_umask(temporary)
            sizes = {file.name: file.stat().st_size for file in temporary.iterdir()}
            content = {**dataclasses.asdict(state), "files": sizes}
            write_text(temporary / _STATE, json.dumps(content, indent=2))
            sync_folder(temporary)
            final = self._at(state.step)
            if final.exists():
                # Resumed from an older checkpoint and back at this step.
                final.rename(self.folder / f"{_TEMPORARY}old_{state.step}")
            temporary.rename(final)
            best = {"step": state.best_step, "iou": state.best_iou}
            write_text(self.folder / "best.json", json.dumps(best))
            sync_folder(self.folder, files=False)
            self._prune(state)
        self.accelerator.wait_for_everyone()

    def find(self, wanted: str) -> Path | None:
        """The checkpoint that `resume_from_checkpoint` means; None for `latest` where there is none yet.

        Raises:
            UserError: a folder that is not a whole checkpoint of this run.
        """
        if wanted == "latest":
            steps = self.steps()
            return self._at(steps[-1]) if steps else None
        path = Path(wanted)
        if path.resolve().parent != self.folder.resolve():
            raise UserError(
                f"{wanted} is not in {self.folder}", key="resume_from_checkpoint", fix="only own checkpoints are read"
            )
        if not _is_whole(path):
            raise UserError(f"{wanted} is missing or incomplete", key="resume_from_checkpoint", fix="use 'latest'")
        return path

    def load(self, path: Path) -> TrainingState:
        """Restore model, optimizer and scaler from a checkpoint of `find`."""
        state = _read_state(path)
        self.accelerator.load_state(str(path), load_kwargs={"weights_only": True})
        # Accelerate counts micro-steps to know when to synchronise; a checkpoint stands between two optimizer steps.
        self.accelerator.step = 0
        if state.best_step is not None and not _is_whole(self._at(state.best_step)):
            # An older checkpoint's best gave way to a better one, which the resumed run will reach again.
            state.best_step = state.best_iou = None
        return state

    def load_best(self, state: TrainingState) -> None:
        """Put the best validated weights into the model; the last ones stay where nothing was validated."""
        if state.best_step is not None and state.best_step != state.step:
            _copy_into(self.model, self._at(state.best_step))

    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, ascending."""
        found = (re.fullmatch(r"step_(\d+)", path.name) for path in self.folder.glob("step_*"))
        return sorted(int(match[1]) for match in found if match and _is_whole(self.folder / match[0]))

    def remove_torn(self) -> None:
        """Remove what an interrupted run has left half-written."""
        for path in [*self.folder.glob(f"{_TEMPORARY}*"), *self.folder.glob("step_*")]:
            if path.is_dir() and (path.name.startswith(_TEMPORARY) or not _is_whole(path)):
                shutil.rmtree(path)

    def _prune(self, state: TrainingState) -> None:
        self.remove_torn()
        # Newer ones than this step belong to a run that was left for an older checkpoint.
        newest = [step for step in self.steps() if step <= state.step][-KEPT:]
        for step in self.steps():
            if step not in newest and step != state.best_step:
                shutil.rmtree(self._at(step))

    def _at(self, step: int) -> Path:
        return self.folder / f"step_{step}"

    def _save_weights(self, models: list[nn.Module], weights: list[dict], folder: str) -> None:
        """Accelerate's hook: only the trained parameters are stored, not the frozen SAM."""
        weights.clear()
        tensors = {name: gathered(p.detach()).contiguous() for name, p in trained_parameters(self.model).items()}
        if self.accelerator.is_main_process:
            save_file(tensors, Path(folder) / _WEIGHTS, metadata={"format": "pt"})

    def _load_weights(self, models: list[nn.Module], folder: str) -> None:
        models.clear()
        _copy_into(self.model, Path(folder))


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a training changes, by their names."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _copy_into(model: nn.Module, checkpoint: Path) -> None:
    tensors, trained = load_file(checkpoint / _WEIGHTS), trained_parameters(model)
    if {name: t.shape for name, t in tensors.items()} != {name: p.shape for name, p in trained.items()}:
        raise UserError("its parameters are not those that this recipe trains", where=checkpoint)
    with torch.no_grad():
        for name, parameter in trained.items():
            write_into(parameter, tensors[name])


def _is_whole(path: Path) -> bool:
    try:
        files = json.loads((path / _STATE).read_text(encoding="utf-8"))["files"]
        return all((path / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _read_state(path: Path) -> TrainingState:
    content = json.loads((path / _STATE).read_text(encoding="utf-8"))
    del content["files"]
    return TrainingState(**content)
