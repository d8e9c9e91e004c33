"""The process of an `AdaptJob`: `python -m hf_sam_adapt.demo.worker`, told by a line of its input what to train."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..config.arguments import from_values, read_yaml
from ..config.recipe import Recipe
from ..errors import UserError, exit_status
from ..files import whole_file, write_json
from ..inference.variants import Variant, inference, predicted_masks
from ..metrics import overlap
from ..prompts import Prompt
from ..training import train
from ..training.loop import TrainingLoop
from .job import OVER_TIME
from .settings import CANCELLED


_PATIENCE = 900  # seconds to wait for something to train


class Watcher:
    """Stands among Accelerate's trackers, and writes what they are told for the page to read.

    Args:
        loop: whose validation split has one image.
        folder: for `progress.json` and `mask_<step>.png`.
    """

    name = "demo"

    def __init__(self, loop: TrainingLoop, folder: Path) -> None:
        self.loop, self.folder, self.parent = loop, folder, os.getppid()
        self.scores: list[tuple[int, float]] = []

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """After a step, or a validation."""
        if os.getppid() != self.parent or (self.folder / CANCELLED).exists():  # the page is gone, or wants no more
            os._exit(OVER_TIME)
        if "val_iou" in values:
            self.look(step or 0)
        self.write("measuring" if step == self.loop.schedule.total else "training", step or 0)

    def look(self, step: int) -> None:
        """Segment the held-out image without a prompt, before the first step by zero-shot SAM."""
        assert self.loop.data.val is not None  # `write_pairs` makes it
        sample, model = self.loop.data.val[0], self.loop.whole.current()
        variant = Variant("adapted" if step else "zero_shot", model, adapter_off=not step)
        with inference([model]):
            predictions = predicted_masks([variant], self.loop.processor, [sample], {"none": [Prompt("none")]})
            mask = next(predictions)[3]
        with whole_file(self.folder / f"mask_{step}.png") as part:
            Image.fromarray(mask.astype(np.uint8) * 255).save(part)
        self.scores.append((step, overlap(mask, sample.mask).iou))

    def write(self, state: str, step: int) -> None:
        write_json(self.folder / "progress.json", {"state": state, "step": step, "scores": self.scores})

    def finish(self) -> None:
        """Accelerate ends its trackers so."""


def main() -> int:
    """Wait for the line `[folder, seconds]`, and train by `recipe.yaml` in that folder; the exit status."""
    waiting = threading.Timer(_PATIENCE, os._exit, (0,))
    waiting.daemon = True
    waiting.start()
    line = sys.stdin.readline()
    waiting.cancel()
    if not line:  # the page is gone
        return 0
    folder, seconds = json.loads(line)
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    return train_job(Path(folder), seconds)


def train_job(folder: Path, max_seconds: float) -> int:
    """Train by `recipe.yaml` in a job's folder, the working directory; past `max_seconds` the process ends.

    Returns:
        The exit status.
    """
    timer = threading.Timer(max_seconds, os._exit, (OVER_TIME,))
    timer.daemon = True
    timer.start()
    os.environ["HF_SAM_ADAPT_CACHE"] = str(folder / "cache")  # goes with the job
    write_json(folder / "progress.json", {"state": "preparing", "step": 0, "scores": []})

    def watch(loop: TrainingLoop) -> None:
        watcher = Watcher(loop, folder)
        watcher.look(0)
        watcher.write("training", 0)
        loop.accelerator.trackers.append(watcher)

    def run() -> None:
        try:
            train(from_values(Recipe, read_yaml("recipe.yaml")), prepare=watch)
        except UserError as error:
            write_json(folder / "error.json", {"message": str(error), "code": error.code})
            raise

    try:
        return exit_status(run)
    finally:
        timer.cancel()


if __name__ == "__main__":
    sys.exit(main())
