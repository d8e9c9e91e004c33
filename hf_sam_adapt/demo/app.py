"""What the tabs of one running demo share: its settings, its models, its list of adapters, its folder for files."""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from . import catalog, examples
from .gpu import BorrowingWorker, Worker, lend, on_zero_gpu
from .job import AdaptJob, start_worker
from .loaded_adapters import Entry, LoadedAdapters
from .session import Session
from .settings import DemoArguments, on_a_space
from .training_images import Pair


class DemoApp:
    """One running demo.

    Args:
        args: how it was started.

    Attributes:
        choices: the adapters that everyone is offered.
        folder: for examples, downloads and trainings; it goes with the process.
        routed, taught: examples of the other tabs, as files.

    Raises:
        UserError: an adapter folder with nothing in it, or a model that cannot be loaded.
    """

    def __init__(self, args: DemoArguments) -> None:
        self.args = args
        self.max_pixels = args.max_megapixels * 1_000_000
        self.choices = catalog.choices(args.adapters, args.model or "tiny")
        self.loaded = LoadedAdapters(args.model or "tiny")
        self.loaded.get(catalog.PLAIN)
        lend(self.loaded)
        self._spare: subprocess.Popen | None = None
        self._starting = threading.Lock()
        self._temporary = tempfile.TemporaryDirectory(prefix="hf_sam_adapt_demo_")
        self.folder = Path(self._temporary.name)
        drawn = self.folder / "examples"
        drawn.mkdir()
        self.examples = [example.save(drawn)[0] for example in examples.EXAMPLES]
        self.routed = examples.save_routed(drawn)
        self.taught = examples.save_taught(drawn)

    def listed(self, session: Session | None = None) -> list[tuple[str, str]]:
        """(label, value) of the adapters for one visitor: after plain SAM those that they trained, then the others."""
        own = [] if session is None else [(label, value) for value, label in session.own.items()]
        plain, *others = [(choice.label, choice.value) for choice in self.choices]
        return [plain, *own, *others]

    def pools(self) -> list[tuple[str, str]]:
        """(label, value) of the adapters known to be pools."""
        return [(choice.label, choice.value) for choice in self.choices if choice.pool]

    def entry(self, name: str | None, session: Session | None = None) -> Entry:
        """The model of an adapter that is listed, or whose Hub id (on one's own machine also folder) was typed.

        Args:
            name: value or label in the list, a name by which it is known there (`Choice.names`), or what was typed.

        Raises:
            UserError: it cannot be loaded, two are called so, or a folder that is not this visitor's to read.
        """
        name = (name or catalog.PLAIN).strip()
        known = dict(self.listed(session))
        if name not in known.values():
            name = known.get(name) or self._called(name)
        # A typed folder would let visitors of a Space look into its disk, and into each other's trainings.
        private = on_a_space() or self.folder in Path(name).resolve().parents
        if name not in known.values() and private and Path(name).exists():
            raise UserError("folders cannot be named here", where=name, fix="type a Hub id, owner/name")
        return self.loaded.get(next((choice.source for choice in self.choices if choice.value == name), name))

    def _called(self, name: str) -> str:
        """The value of the one listed adapter that has this name; of none, the name."""
        values = [choice.value for choice in self.choices if name in choice.names]
        if len(values) > 1:
            raise UserError("several adapters are called so", where=name, fix=f"name one of {', '.join(values)}")
        if not values and "/" not in name and not Path(name).exists():
            offered = ", ".join(sorted(Path(choice.value).name or choice.label for choice in self.choices))
            raise UserError("no such adapter here", where=name, fix=f"use one of {offered}, or a Hub id, owner/name")
        return values[0] if values else name

    def warm(self) -> None:
        """Have a process ready for the next training: its start takes longer than a small training."""
        with self._starting:
            if on_zero_gpu():
                return
            if self._spare is None or self._spare.poll() is not None:
                self._spare = start_worker()

    def job(self, pairs: Sequence[Pair], method: str, steps: float) -> AdaptJob:
        """Start a training, in the process that is ready or else in a new one.

        Raises:
            UserError: see `AdaptJob`.
        """

        def worker() -> Worker:
            if on_zero_gpu():
                return BorrowingWorker()
            with self._starting:
                spare, self._spare = self._spare, None
            return spare if spare is not None and spare.poll() is None else start_worker()

        if not isinstance(steps, (int, float)) or not math.isfinite(steps):
            raise UserError(f"{steps} is no number", key="steps")
        model = self.args.model or "tiny"
        return AdaptJob(pairs, model, method, int(steps), self.folder, self.args.max_seconds, worker)

    def files(self, session: Session) -> Path:
        """A visitor's folder for downloads."""
        if session.files is None:
            session.files = Path(tempfile.mkdtemp(dir=self.folder))
        return session.files

    def leave(self, session: Session) -> None:
        """End what a visitor has running, and remove their adapter and files."""
        with session.lock:
            for value in session.own:
                self.loaded.forget(value)
            session.own = {}
            session.with_job(None)
            if session.files is not None:
                shutil.rmtree(session.files, ignore_errors=True)
                session.files = None
