"""What the tabs of one running demo share: its settings, its models, its list of adapters, its folder for files."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from ..errors import UserError
from . import catalog, examples
from .session import Session
from .settings import DemoArguments, on_a_space
from .shelf import Entry, Shelf


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
        self.shelf = Shelf(args.model or "tiny")
        self.shelf.get(catalog.PLAIN)
        self._temporary = tempfile.TemporaryDirectory(prefix="hf_sam_adapt_demo_")
        self.folder = Path(self._temporary.name)
        drawn = self.folder / "examples"
        drawn.mkdir()
        self.examples = [example.save(drawn)[0] for example in examples.EXAMPLES]
        self.routed = examples.save_routed(drawn)
        self.taught = examples.save_taught(drawn)

    def listed(self, session: Session | None = None) -> list[tuple[str, str]]:
        """(label, value) of the adapters for one visitor, those that they trained last."""
        own = [] if session is None else [(label, value) for value, label in session.own.items()]
        return [(choice.label, choice.value) for choice in self.choices] + own

    def pools(self) -> list[tuple[str, str]]:
        """(label, value) of the adapters known to be pools."""
        return [(choice.label, choice.value) for choice in self.choices if choice.pool]

    def entry(self, name: str | None, session: Session | None = None) -> Entry:
        """The model of an adapter that is listed, or whose Hub id (on one's own machine also folder) was typed.

        Raises:
            UserError: it cannot be loaded, or is a folder that is not this visitor's to read.
        """
        name = (name or catalog.PLAIN).strip()
        known = {value for _, value in self.listed(session)}
        # A typed folder would let visitors of a Space look into its disk, and into each other's trainings.
        if name not in known and (on_a_space() or self.folder in Path(name).resolve().parents) and Path(name).exists():
            raise UserError(f"{name}: folders cannot be named here; type a Hub id, owner/name")
        return self.shelf.get(next((choice.source for choice in self.choices if choice.value == name), name))

    def files(self, session: Session) -> Path:
        """A visitor's folder for downloads."""
        if session.files is None:
            session.files = Path(tempfile.mkdtemp(dir=self.folder))
        return session.files

    def leave(self, session: Session) -> None:
        """End what a visitor has running, and remove their adapter and files."""
        with session.lock:
            for value in session.own:
                self.shelf.forget(value)
            session.own = {}
            session.with_job(None)
            if session.files is not None:
                shutil.rmtree(session.files, ignore_errors=True)
                session.files = None
