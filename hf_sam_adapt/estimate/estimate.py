"""An estimate: shapes tell how memory grows with the batch, a few real steps where it starts, and the time."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..config.recipe import Recipe
from ..errors import UserError


# A driver, CUDA's context and the allocator's fragments take a part of a card that no tensor can have.
USABLE_SHARE = 0.9


@dataclass(frozen=True)
class Estimate:
    """What a training on this machine will need, in bytes and seconds.

    Attributes:
        device: "cpu" or "cuda".
        trained_parameters, total_parameters: of the model with its adapter.
        adapter_bytes: of the saved weights.
        weight_bytes: of the model.
        peak_memory_bytes: as `metrics.json` will say it: on CUDA with the model's weights, on a CPU beside them.
        tensor_bytes: of it what tensors take, counted from their shapes.
        step_seconds: of an optimizer step.
        steps: of the whole training.
        tiles: of an epoch, None = images are not cut.
    """

    device: str
    trained_parameters: int
    total_parameters: int
    adapter_bytes: int
    weight_bytes: int
    peak_memory_bytes: int
    tensor_bytes: int
    step_seconds: float
    steps: int
    tiles: int | None = None

    @property
    def card_bytes(self) -> int:
        """Memory of the smallest GPU that holds model and training; without one by the tensors that a CPU makes."""
        needed = self.tensor_bytes + self.weight_bytes if self.device == "cpu" else self.peak_memory_bytes
        return math.ceil(needed / USABLE_SHARE)


def estimate(recipe: Recipe) -> Estimate:
    """Estimate a recipe's training by its data set and the machine that this runs on.

    A few optimizer steps and a validation run in a process of their own; no run folder is written. Where the recipe's
    batch may not fit into the memory that is free, they take two images, and memory grows from there as the
    tensors of the same step do at the whole batch, counted without computing anything; the time of a step grows with
    the images.

    Raises:
        UserError: whatever `train` would refuse.
    """
    with tempfile.TemporaryDirectory() as folder:
        short = dataclasses.replace(
            recipe,
            output_dir=f"{folder}/run",
            resume_from_checkpoint=None,
            push_to_hub=False,
            report_to=[],
        )
        measured = _in_fresh_process(dataclasses.asdict(short), Path(folder))
    before, after = measured["shapes"]
    images_per_step = recipe.batch_size * recipe.gradient_accumulation_steps
    epoch = math.ceil(measured["images"] / images_per_step)
    return Estimate(
        device=measured["device"],
        trained_parameters=measured["trained"],
        total_parameters=measured["total"],
        adapter_bytes=measured["trained_bytes"],
        weight_bytes=measured["weight_bytes"],
        peak_memory_bytes=measured["peak"] + after - before,
        tensor_bytes=after,
        step_seconds=measured["seconds"] * recipe.batch_size / measured["batch_size"],
        steps=recipe.max_steps or recipe.epochs * epoch,
        tiles=measured["images"] if measured["tiled"] else None,
    )


def _in_fresh_process(wanted: dict, folder: Path) -> dict:
    source, target = folder / "in.json", folder / "out.json"
    source.write_text(json.dumps(wanted), encoding="utf-8")
    command = [sys.executable, "-m", f"{__package__}.calibrate", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        *_, last = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        raise UserError(f"the steps that the estimate rests on failed: {last}")
    found = json.loads(target.read_text(encoding="utf-8"))
    if "refused" in found:
        raise UserError(**found["refused"])
    return found
