"""ZeroGPU, where a Space borrows a GPU for single calls; anywhere else nothing in here has an effect.

There models stay on the CPU. A call with a GPU runs in a fork of the process, to which arguments and result travel as
pickles: so it takes names, finds the models in memory that the fork has inherited, and gives tensors back on the CPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .settings import CANCELLED  # which does not import torch


def on_zero_gpu() -> bool:
    """Whether this is a Space on ZeroGPU."""
    return os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")


if on_zero_gpu():
    import spaces  # before torch, which it prepares

if TYPE_CHECKING:
    from ..inference.predictor import EncodedImages
    from .images import Picture
    from .loaded_adapters import Entry, LoadedAdapters

F = TypeVar("F", bound=Callable[..., Any])
ENCODE_SECONDS = 20
_loaded: LoadedAdapters | None = None


def borrows_gpu(seconds: int | Callable[..., int]) -> Callable[[F], F]:
    """Decorator of a function for which a GPU is borrowed on ZeroGPU; elsewhere the function itself.

    Args:
        seconds: at most, a number or a function of the same arguments that gives one.
    """
    if not on_zero_gpu():
        return lambda function: function
    decorator: Callable[[F], F] = spaces.GPU(duration=seconds)  # type: ignore[attr-defined]
    return decorator


def lend(loaded: LoadedAdapters) -> None:
    """Let borrowed GPUs find the models of a demo."""
    global _loaded
    _loaded = loaded
    if on_zero_gpu():
        # A fork has the locks of threads that it does not have.
        os.register_at_fork(after_in_child=loaded.renew_locks)


def encode_image(entry: Entry, picture: Picture, domain: str | None) -> EncodedImages:
    """The image as the encoder of `entry` sees it, under a pool's `domain`.

    Raises:
        UserError: see `SamAdaptPredictor.encode`.
    """
    if not on_zero_gpu():
        return entry.predictor.encode([picture.image], domain)
    return _encode(entry.name, entry.is_plain, picture.image, domain)


@borrows_gpu(ENCODE_SECONDS)
def _encode(name: str, is_plain: bool, image: Any, domain: str | None) -> EncodedImages:
    import torch

    assert _loaded is not None  # `DemoApp` lends it
    predictor = _loaded.named(name, is_plain).predictor
    predictor.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return predictor.encode([image], domain).to("cpu")


@borrows_gpu(lambda folder, seconds: seconds)
def train_in(folder: str, seconds: int) -> int:
    """`hf_sam_adapt.demo.worker` in this process; its exit status."""
    from .worker import train_job

    before = Path.cwd()
    os.chdir(folder)  # where a job's paths start
    try:
        return train_job(Path(folder), seconds)
    finally:
        os.chdir(before)


class Worker(Protocol):
    """What a job needs of the process that trains: `subprocess.Popen`, or `BorrowingWorker`."""

    stdin: Any

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class BorrowingWorker:
    """Trains with a borrowed GPU, called from a thread; it looks like the process of `start_worker`."""

    def __init__(self) -> None:
        self.stdin = self
        self._folder = ""
        self._status: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> BorrowingWorker:
        return self

    def __exit__(self, *error: object) -> None:
        """The line is complete."""

    def write(self, line: str) -> None:
        """Takes `[folder, seconds]`, as a process reads it, and starts."""
        self._folder, self._seconds = json.loads(line)
        self._thread.start()

    def poll(self) -> int | None:
        """Exit status, None while it trains."""
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, when there is one.

        Raises:
            subprocess.TimeoutExpired: not within `timeout` seconds.
        """
        self._thread.join(timeout)
        if self._status is None:
            raise subprocess.TimeoutExpired("train_in", timeout or 0)
        return self._status

    def terminate(self) -> None:
        """Ask the training to end; it does after its step."""
        with contextlib.suppress(FileNotFoundError):
            Path(self._folder, CANCELLED).touch()

    def kill(self) -> None:
        """As `terminate`: the process is not ours to end."""
        self.terminate()

    def _run(self) -> None:
        status = 1
        try:
            status = train_in(self._folder, self._seconds)
        except Exception as error:  # a GPU that nobody has left, or a training that ended its process
            file = Path(self._folder, "error.json")
            if file.parent.is_dir() and not file.exists() and not (file.parent / CANCELLED).exists():
                file.write_text(json.dumps({"message": f"no GPU could be borrowed: {error}", "code": "gpu"}))
        finally:
            self._status = status
