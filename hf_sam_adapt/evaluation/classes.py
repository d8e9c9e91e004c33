"""Scores the label maps of a class-wise model on the images of a split, without prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import nn

from ..data.dataset import mask_of
from ..data.tiles import Tiles, Window
from ..distributed import of_all_ranks, own_batches
from ..inference.tiled import Route
from ..inference.variants import domains_of, inference, label_maps
from ..metrics import ConfusionMatrix
from ..metrics.constant import grid_box
from ..metrics.volume import TOLERANCE
from ..names import IgnoreBackground
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor
from .evaluate import no_foreground
from .tiled import LabelledImage, labelled_scenes
from .volumes import is_of_volumes, pack, score_volumes, summary


if TYPE_CHECKING:
    from ..data import SegmentationSplit
    from ..inference.embeddings.split import EmbeddedSplit

GRID = 128  # cells a side of the constant label map


@dataclass(frozen=True)
class ClassRecord:
    """The label map of one image beside its truth.

    Attributes:
        index: its place in the split.
        id: its name.
        scores: of its pixels, see `class_scores`.
        labels: its label map by `pack`, of a slice of a volume; None of others.
        domain: of a pool, the domain that segmented the image, or most of its tiles; None otherwise.
    """

    index: int
    id: str
    scores: dict[str, Any]
    labels: bytes | None = None
    domain: str | None = None

    @property
    def miou(self) -> float | None:
        """Mean IoU over the classes of the image, None where nothing is labelled."""
        return self.scores["miou"]


@dataclass(frozen=True)
class ClassResult:
    """What an evaluation of label maps found.

    Attributes:
        test: the part `test` of `metrics.json`: under `none`, `adapted` and `constant`, each `{"iou", "dice"}` (means
            over the classes), `miou`, `oa`, `fwiou` and `per_class`; `zero_shot` is None, SAM has no classes.
        matrix: over all pixels.
        records: one per image, in the order of the split.
        volumes: see `EvalResult`.
    """

    test: dict[str, dict[str, Any]]
    matrix: ConfusionMatrix
    records: list[ClassRecord]
    volumes: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True)
class ConstantLabels:
    """The most frequent class of each place in the training masks.

    Attributes:
        labels: uint8 (GRID, GRID).
    """

    labels: np.ndarray

    def at(self, height: int, width: int) -> np.ndarray:
        """The label map for an image of this size, uint8 (height, width)."""
        return self.window((height, width), Window(0, 0, height, width))

    def window(self, size: tuple[int, int], window: Window) -> np.ndarray:
        """The part of the label map for an image of `size` that a window shows, uint8 (h, w)."""
        box, shown = grid_box(self.labels.shape, size, window), (window.width, window.height)
        return np.asarray(Image.fromarray(self.labels).resize(shown, Image.Resampling.NEAREST, box))


def constant_labels(train_split: Any, num_labels: int) -> ConstantLabels:
    """Count the classes of the training masks on a common grid; ignored pixels do not count.

    Args:
        train_split: a split, or any sequence whose items have `.mask`, uint8 (H, W).
    """
    counts = np.zeros((num_labels, GRID, GRID), np.int64)
    for index in range(len(train_split)):
        mask = Image.fromarray(mask_of(train_split, index)).resize((GRID, GRID), Image.Resampling.NEAREST)
        for label in range(num_labels):
            counts[label] += np.asarray(mask) == label
    return ConstantLabels(counts.argmax(0).astype(np.uint8))


def evaluate_classes(
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: SegmentationSplit | EmbeddedSplit,
    num_labels: int,
    *,
    batch_size: int = 4,
    constant: ConstantLabels | None = None,
    ignore_background: IgnoreBackground = False,
    precision: str = "no",
    num_workers: int | None = 0,
    progress: bool = True,
    tiles: Tiles | None = None,
    route: Route = "image",
    surface_tolerance: float = TOLERANCE,
) -> ClassResult:
    """Segments every image once and counts its pixels at original size, 255 left out.

    In a distributed run every rank calls it; the images are divided among the ranks and all return the same result.

    Args:
        model: with an active class-wise decoder, on its device.
        split: images with masks, or their embeddings.
        num_labels: K, background included.
        constant: scored beside the model.
        ignore_background: see `ConfusionMatrix.compute`; the background is class 0.
        tiles, route, surface_tolerance: see `evaluate`.

    Raises:
        UserError: no mask holds another class than the background.
        ValueError: the split is empty.
    """
    if len(split) == 0:
        raise ValueError("the split holds no image to evaluate on")
    matrices = {name: ConfusionMatrix(num_labels) for name in ("adapted", "constant")}
    records: list[ClassRecord] = []
    with inference([model], precision):
        found: Iterator[LabelledImage]
        keep = is_of_volumes(split)
        if tiles is None:
            batches = own_batches(split, batch_size, num_workers, progress=progress)
            found = (
                one for samples in batches for one in _whole(model, processor, samples, num_labels, constant, keep)
            )
        else:
            options: Any = {"batch_size": batch_size, "precision": precision, "progress": progress, "route": route}
            found = labelled_scenes(model, processor, split, tiles, num_labels, constant, keep=keep, **options)
        for one in found:
            matrices["adapted"] = matrices["adapted"].merge([one.counts])
            matrices["constant"] = matrices["constant"].merge([one.of_constant])
            labels = None if one.labels is None else pack(one.labels)
            scores = class_scores(one.counts, ignore_background)
            records.append(ClassRecord(one.index, one.id, scores, labels, one.domain))
    parts = of_all_ranks((matrices, records))
    matrices = {name: parts[0][0][name].merge(part[0][name] for part in parts[1:]) for name in matrices}
    if not matrices["adapted"].counts[1:].any():
        raise no_foreground(len(split))
    records = [record for part in parts for record in part[1]]
    test: dict[str, Any] = {"zero_shot": None, "adapted": class_scores(matrices["adapted"], ignore_background)}
    if constant is not None:
        test["constant"] = class_scores(matrices["constant"], ignore_background)
    records.sort(key=lambda record: record.index)
    volumes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    packed = [record.labels for record in records if record.labels is not None]
    if packed:
        rows = volumes["none", "adapted"] = score_volumes(split, packed, range(1, num_labels), surface_tolerance)
        test["adapted"]["volumes"] = summary(rows)
    return ClassResult({"none": test}, matrices["adapted"], records, volumes)


def _whole(
    model: nn.Module,
    processor: SamAdaptProcessor,
    samples: list[Any],
    num_labels: int,
    constant: ConstantLabels | None,
    keep: bool,
) -> Iterator[LabelledImage]:
    """The samples' label maps, counted; with `keep` they come along."""
    domains: list[str | None] = [None] * len(samples)

    def note_domains(embeddings: ImageEmbeddings) -> None:
        domains[:] = domains_of(model, embeddings) or domains

    maps = label_maps(model, processor, samples, note_domains)
    for sample, found, domain in zip(samples, maps, domains, strict=True):
        counts, of_constant = ConfusionMatrix(num_labels), ConfusionMatrix(num_labels)
        counts.update(found, sample.mask)
        if constant is not None:
            of_constant.update(constant.at(*sample.mask.shape), sample.mask)
        yield LabelledImage(sample.index, sample.id, counts, of_constant, found if keep else None, domain)


def class_scores(matrix: ConfusionMatrix, ignore_background: IgnoreBackground = False) -> dict[str, Any]:
    """The scores of `metrics.json`: of the matrix, with `iou` and `dice` as means over the classes."""
    scores = matrix.compute(ignore_background)
    dice = [one["dice"] for one in scores["per_class"].values() if one["dice"] is not None]
    means = {"iou": scores["miou"], "dice": sum(dice) / len(dice) if dice else None}
    return means | scores | {"per_class": {str(index): one for index, one in scores["per_class"].items()}}
