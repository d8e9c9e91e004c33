"""What the page remembers of one person: the image, what was clicked, and what the encoder made of the image."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..inference.predictor import EncodedImages
from ..prompts import Prompt
from ..tuners.moda.pool import Routing
from .images import Picture


if TYPE_CHECKING:
    from .engine import Segmentation
    from .job import AdaptJob
    from .training_images import Pair


@dataclass(frozen=True)
class Clicks:
    """The prompt so far, in pixels of the image: points, or the corners of a box.

    Attributes:
        points: (x, y, label), 1 = on the object, 0 = off it.
        corners: none, one, or the two of a box.
    """

    points: tuple[tuple[float, float, int], ...] = ()
    corners: tuple[tuple[float, float], ...] = ()

    def with_point(self, x: float, y: float, label: int) -> Clicks:
        """One more point; a box makes room for it."""
        return Clicks(points=(*self.points, (x, y, label)))

    def with_corner(self, x: float, y: float) -> Clicks:
        """One more corner; points, or a finished box, make room for it."""
        return Clicks(corners=(*self.corners[: len(self.corners) % 2], (x, y)))

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """(x0, y0, x1, y1), None while a corner is missing."""
        if len(self.corners) < 2:
            return None
        xs, ys = zip(*self.corners)
        return min(xs), min(ys), max(xs), max(ys)

    def prompt(self) -> Prompt:
        """As `predict` makes it: one object, by its points or its box, or none."""
        if self.box is not None:
            return Prompt.box(*self.box)
        if self.points:
            return Prompt.clicks([point[:2] for point in self.points], [point[2] for point in self.points])
        return Prompt("none")


@dataclass
class ImageState:
    """An image, and what was computed of it.

    Attributes:
        encoded: by `Entry.encoder`; of a pool with adapters in the encoder also by domain.
        routings: by the name of the pool.
    """

    picture: Picture
    encoded: dict[tuple[str, ...], EncodedImages] = field(default_factory=dict)
    routings: dict[str, Routing] = field(default_factory=dict)


class Session:
    """The state of one visitor; Gradio copies it for each.

    Attributes:
        lock: held during each of this visitor's calls; a second click waits for the first.
        image: of the Segment tab.
        history: the prompts since the image was loaded, the present one last.
        result: the mask on the page, and "zero_shot" or "adapted".
        routed: the images of the Route tab.
        pairs: images with masks of the Adapt tab.
        job: the training, running or over.
        files: folder for downloads, made when it is needed.
        own: adapters that this visitor trained, which no other sees.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.image: ImageState | None = None
        self.history: list[Clicks] = [Clicks()]
        self.result: tuple[Segmentation, str] | None = None
        self.routed: list[ImageState] = []
        self.pairs: list[Pair] = []
        self.job: AdaptJob | None = None
        self.files: Path | None = None
        self.own: dict[str, str] = {}

    def __deepcopy__(self, memo: dict) -> Session:
        return Session()

    @property
    def clicks(self) -> Clicks:
        return self.history[-1]

    def load(self, picture: Picture | None) -> None:
        """Take another image, or none; the prompts go."""
        self.image = None if picture is None else ImageState(picture)
        self.result = None
        self.history = [Clicks()]

    def click(self, x: float, y: float, mode: str) -> None:
        """Take a click on the page's picture as part of the prompt.

        Args:
            x, y: pixels of the shown picture.
            mode: "positive", "negative" or "box".
        """
        picture = self.image.picture  # type: ignore[union-attr]
        height, width = picture.size
        # The centre of a shown pixel is that of the pixels under it.
        x, y = ((value + 0.5) * picture.scale - 0.5 for value in (x, y))
        x, y = min(max(x, 0.0), width - 1.0), min(max(y, 0.0), height - 1.0)
        clicks = (
            self.clicks.with_corner(x, y) if mode == "box" else self.clicks.with_point(x, y, int(mode == "positive"))
        )
        self.history.append(clicks)

    def undo(self) -> None:
        """Take the last click back."""
        if len(self.history) > 1:
            self.history.pop()

    def clear(self) -> None:
        """Take all clicks back, which can itself be taken back."""
        if self.clicks != Clicks():
            self.history.append(Clicks())

    def with_job(self, job: AdaptJob | None) -> None:
        """Take another training in place of the last one, which ends."""
        if self.job is not None:
            self.job.close()
        self.job = job


def kept(session: Session) -> Session:
    """The session: Gradio forgets a state some time after a function last returned it."""
    return session
