"""A training in the background: `hf-sam-adapt train` in a process and a folder of its own, watched by its files.

A process can be ended at any step, keeps the page answering, and has its own random state: what is trained is what the
same recipe trains on the command line.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from PIL import Image

from ..errors import UserError
from ..sam.base_names import TINY
from ..upload import pushed_files
from .training_images import Pair, check_pairs, write_pairs


if TYPE_CHECKING:
    from .gpu import Worker


OVER_TIME = 3  # exit status of the worker
# What the page offers -> recipe keys. Embeddings are kept where the method leaves the encoder as it is.
METHODS: dict[str, dict[str, Any]] = {
    "decoder": {"method": "decoder", "cache_embeddings": True, "augment": ["none"]},
    "hq": {"method": "decoder", "method_args": {"decoder": "hq"}, "cache_embeddings": True, "augment": ["none"]},
    "conv_lora": {"method": "conv_lora"},
    "sam_adapter": {"method": "sam_adapter"},
    "lora": {"method": "lora"},
}
METHOD_LABELS = {
    "decoder": "Mask decoder · fastest, embeddings computed once",
    "hq": "HQ decoder · fast, embeddings computed once, 0.7 MB",
    "conv_lora": "Conv-LoRA · encoder and decoder",
    "sam_adapter": "SAM-Adapter · encoder and decoder",
    "lora": "LoRA · loads without this package",
}
MOST_STEPS = 400
_LOOKS = 10  # how often a training is looked at


@dataclass(frozen=True)
class Progress:
    """What a training has come to.

    Attributes:
        state: "starting", "preparing", "training", "measuring", "finished", "cancelled" or "failed".
        step, total: optimizer steps.
        scores: (step, IoU of the held-out image without a prompt); step 0 is zero-shot SAM.
        masks: step -> bool (H, W), of the first and the latest of them.
        message: what went wrong, else empty.
        seconds: since the start.
    """

    state: str
    step: int = 0
    total: int = 0
    scores: list[tuple[int, float]] = field(default_factory=list)
    masks: dict[int, np.ndarray] = field(default_factory=dict)
    message: str = ""
    seconds: float = 0.0

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "cancelled", "failed")


def start_worker() -> subprocess.Popen:
    """A process that gets ready to train, and ends with this one or when it has waited for long."""
    command = [sys.executable, "-m", "hf_sam_adapt.demo.worker"]
    # A session of its own, so that Ctrl-C ends the page, and the page's end the process.
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True, text=True
    )


class AdaptJob:
    """Starts a training on `pairs`, of which the last is held out.

    Args:
        model: plain SAM to adapt.
        method: a key of `METHODS`.
        steps: optimizer steps of up to four images.
        root: folder in which the job makes its own, for nobody else to read.
        max_seconds: the training ends itself after that.
        worker: gives a process of `start_worker`.

    Raises:
        UserError: too few pairs, or a method or number of steps that is not offered.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        model: str,
        method: str,
        steps: int,
        root: Path,
        max_seconds: int = 600,
        worker: Callable[[], Worker] = start_worker,
    ) -> None:
        check_pairs(pairs)
        if method not in METHODS:
            raise UserError(f"{method!r} is not offered", key="method", fix=f"use one of {', '.join(METHODS)}")
        if not 1 <= steps <= MOST_STEPS:
            raise UserError(f"{steps} is not in 1..{MOST_STEPS}", key="steps")
        self.pairs, self.steps, self.max_seconds = list(pairs), int(steps), max_seconds
        self.folder = Path(tempfile.mkdtemp(prefix="adapt_", dir=root))
        write_pairs(self.pairs, self.folder / "data")
        recipe = {
            "model": str(Path(model).resolve()) if Path(model).is_dir() else model,
            "dataset": "data",  # relative, so that no path of this machine is in the result
            "mask_values": "index",
            "output_dir": "adapter",
            "prompts": ["none", "point"],
            "max_steps": self.steps,
            "batch_size": min(4, len(pairs) - 1),
            "eval_every": max(1, self.steps // _LOOKS),
            "checkpoint_every": self.steps,
            **METHODS[method],
        }
        if model == TINY:  # its usual rate is for more than a few steps
            recipe["learning_rate"] = 1e-3
        (self.folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
        self._start, self._cancelled = time.monotonic(), False
        self._end: float | None = None
        self._process = worker()
        pipe = self._process.stdin
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError), pipe:  # a process that has ended is seen by `progress`
            pipe.write(json.dumps([str(self.folder), max_seconds]) + "\n")

    @property
    def adapter(self) -> Path:
        """The run folder, complete when the training has finished."""
        return self.folder / "adapter"

    def progress(self) -> Progress:
        """Where the training is now; never waits."""
        status = self._process.poll()
        if status is not None and self._end is None:
            self._end = time.monotonic()
        file = self.folder / "progress.json"
        written: dict[str, Any] = {"step": 0, "scores": [], "state": "starting"}
        if file.is_file():
            written = json.loads(file.read_text())
        state, message = written["state"], ""
        if self._cancelled:
            state = "cancelled"
        elif status is not None:
            state = "finished" if status == 0 else "failed"
            message = "" if status == 0 else self._reason(status)
        scores = [(step, iou) for step, iou in written["scores"]]
        masks = {step: self._mask(step) for step in {scores[0][0], scores[-1][0]}} if scores else {}
        seconds = (self._end or time.monotonic()) - self._start
        return Progress(state, written["step"], self.steps, scores, masks, message, seconds)

    def cancel(self) -> None:
        """End the training, which leaves nothing."""
        if self._process.poll() is None:
            self._cancelled = True
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """End the training and remove its folder."""
        self.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)

    def zipped(self) -> Path:
        """A zip of the run folder, as it would be pushed.

        Raises:
            UserError: the training has not finished.
        """
        if self.progress().state != "finished":
            raise UserError("there is no adapter yet", fix="let a training finish first")
        path = self.folder / "adapter.zip"
        if not path.exists():
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                for inside, file in pushed_files(self.adapter).items():
                    archive.write(file, f"adapter/{inside}")
        return path

    def metrics(self) -> dict[str, Any]:
        """The finished run's `metrics.json`."""
        return json.loads((self.adapter / "metrics.json").read_text())

    def _mask(self, step: int) -> np.ndarray:
        with Image.open(self.folder / f"mask_{step}.png") as image:
            return np.asarray(image) > 0

    def _reason(self, status: int) -> str:
        if status == OVER_TIME:
            return f"the training took longer than {self.max_seconds} seconds; take fewer steps or smaller images"
        file = self.folder / "error.json"
        if file.is_file():
            return json.loads(file.read_text())["message"]
        return "the training stopped unexpectedly; try fewer or smaller images"
