"""What a writer is given of an image, and what a writer is."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ...data.annotations import ONLY_CLASS
from ...data.areas import fill_polygon
from ...data.folder import IMAGE_SUFFIXES
from ...data.outlines import Outline, outlines
from ...files import whole_file
from ...inference.predictor import Prediction


@dataclass(frozen=True)
class WriteOptions:
    """What the writers of a prediction are asked for.

    Attributes:
        classes: names in the order of the labels, None for one class.
        probability: write the probabilities, too.
        simplify: pixels by which the outline of a polygon may move to have fewer corners; 0 = not at all.
        ranked: results are put in order at the end, by names that begin with their places.
    """

    classes: Sequence[str] | None = None
    probability: bool = False
    simplify: float = 1.0
    ranked: bool = False

    @property
    def labels(self) -> dict[int, str]:
        """Value in the mask -> name, without the background."""
        return {1: ONLY_CLASS} if self.classes is None else dict(enumerate(self.classes[1:], start=1))


@dataclass(frozen=True)
class Area:
    """An object, or a part of a mask, as polygons.

    Attributes:
        label: value in the mask, 1 for one class.
        outlines: of its parts.
        score: 0..1.
    """

    label: int
    outlines: list[Outline]
    score: float


@dataclass(frozen=True)
class ImageResult:
    """What the model finds in an image, or in a slice of a volume.

    Attributes:
        path: the image's file, or that of its volume.
        name: of what is written for it, without a suffix.
        image: uint8 (H, W, 3), to be looked at.
        prediction: of the model.
        is_slice: `image` is a slice, and `path` no image of its own.
    """

    path: Path
    name: str
    image: np.ndarray
    prediction: Prediction
    is_slice: bool = False
    _areas: dict[float, list[Area]] = field(default_factory=dict, repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        height, width = self.prediction.mask.shape
        return height, width

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float32 (H, W), or (K, H, W) of K classes."""
        return self.prediction.probabilities

    def areas(self, simplify: float) -> list[Area]:
        """The instances where they were asked for, else the 4-connected parts of the mask of each class."""
        if simplify not in self._areas:
            self._areas[simplify] = self._traced(simplify)
        return self._areas[simplify]

    def _traced(self, simplify: float) -> list[Area]:
        instances = self.prediction.instances
        if instances is not None:
            return [Area(1, outlines(each.mask, simplify), each.score) for each in instances]
        areas = []
        for label in (int(value) for value in np.unique(self.prediction.mask) if value):
            chances = self.probabilities if self.prediction.classes is None else self.probabilities[label]
            for outline in outlines(self.prediction.mask == label, simplify):
                areas.append(Area(label, [outline], _mean_inside(chances, outline)))
        return areas

    def store_image(self, folder: Path, stem: str) -> Path:
        """A copy of the image in `folder`, as it is where other tools read its format, else as PNG to look at."""
        suffix = copy_suffix(None if self.is_slice else self.path)
        target = folder / f"{stem}{suffix or '.png'}"
        with whole_file(target) as part:
            if suffix is None:
                Image.fromarray(self.image).save(part, format="PNG")
            else:
                shutil.copyfile(self.path, part)
        return target


class Writer:
    """Writes results in one format below a folder.

    Args:
        folder: of all results; it exists.
        options: see there.

    Attributes:
        key: the format's name, and the key of its file in `predictions.json`.
        common: the files for all images, as paths in `folder`.
    """

    key: ClassVar[str]
    common: ClassVar[tuple[str, ...]] = ()

    def __init__(self, folder: Path, options: WriteOptions) -> None:
        self.folder, self.options = folder, options

    def files(self, name: str) -> list[str]:
        """The files that every image called `name` gets, as paths in `folder`; those of all images are not among
        them."""
        raise NotImplementedError

    def targets(self, path: Path | None, name: str) -> list[str]:
        """All files that are written of the image at `path`, or of a slice; those of `files`, and copies of it."""
        return self.files(name)

    def write(self, result: ImageResult) -> dict[str, Any]:
        """Write what belongs to one image; returns what `predictions.json` says of it."""
        raise NotImplementedError

    def is_done(self, record: Mapping[str, Any], name: str) -> bool:
        """Whether the call that this record is of has written what belongs to its image."""
        named = named_files(record)
        return all(file in named and (self.folder / file).is_file() for file in self.files(name))

    def keep(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Take over from an earlier call the images whose records these are; they will not be written again."""

    def finish(self, order: Sequence[dict[str, Any]]) -> None:
        """Write what belongs to all images, `order` being their records as they are to be listed; may change them."""


def copy_suffix(path: Path | None) -> str | None:
    """The suffix of the copy of an image as other tools read it; None: a picture of it is stored, as of a slice."""
    suffix = "" if path is None else path.suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else None


def named_files(record: Mapping[str, Any]) -> set[str]:
    """The files of results that a record of `predictions.json` names."""
    values = [value for key, value in record.items() if key not in ("file", "source", "slices")]
    return {file for value in values for file in (value if isinstance(value, list) else [value]) if type(file) is str}


def described(prediction: Prediction) -> dict[str, Any]:
    """The numbers of a prediction that `predictions.json` has."""
    height, width = prediction.mask.shape
    about: dict[str, Any] = {"height": height, "width": width}
    if prediction.classes is None:
        logits = prediction.logits
        about["foreground"] = float(prediction.mask.mean())
        about["logits"] = {"min": float(logits.min()), "mean": float(logits.mean()), "max": float(logits.max())}
        about["iou_estimate"] = prediction.score
    else:
        about["classes"] = prediction.classes
    if prediction.domain is not None:
        about["domain"] = prediction.domain
    if prediction.router_scores is not None:
        about["router"] = prediction.router_scores
    return about


def _mean_inside(values: np.ndarray, outline: Outline) -> float:
    """Mean of values (H, W) at the pixels inside an outline."""
    (left, top), (right, bottom) = outline.exterior.min(axis=0), outline.exterior.max(axis=0)
    left, top, right, bottom = (int(side) for side in (left, top, right, bottom))
    inside = np.zeros((bottom - top, right - left), bool)
    for ring in outline.rings:
        inside ^= fill_polygon(ring - (left, top), *inside.shape)
    return float(values[top:bottom, left:right][inside].mean()) if inside.any() else 0.0
