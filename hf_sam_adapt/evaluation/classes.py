"""Scores the label maps of a class-wise model on the images of a split, without prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import nn

from ..data.dataset import mask_of
from ..distributed import of_all_ranks, own_batches
from ..inference.variants import inference, label_maps
from ..metrics import ConfusionMatrix
from ..names import IgnoreBackground
from ..sam.processing import SamAdaptProcessor
from .evaluate import no_foreground


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
    """

    index: int
    id: str
    scores: dict[str, Any]

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
    """

    test: dict[str, dict[str, Any]]
    matrix: ConfusionMatrix
    records: list[ClassRecord]


@dataclass(frozen=True)
class ConstantLabels:
    """The most frequent class of each place in the training masks.

    Attributes:
        labels: uint8 (GRID, GRID).
    """

    labels: np.ndarray

    def at(self, height: int, width: int) -> np.ndarray:
        """The label map for an image of this size, uint8 (height, width)."""
        return np.asarray(Image.fromarray(self.labels).resize((width, height), Image.Resampling.NEAREST))


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
    num_workers: int = 0,
    progress: bool = True,
) -> ClassResult:
    """Segments every image once and counts its pixels at original size, 255 left out.

    In a distributed run every rank calls it; the images are divided among the ranks and all return the same result.

    Args:
        model: with an active class-wise decoder, on its device.
        split: images with masks, or their embeddings.
        num_labels: K, background included.
        constant: scored beside the model.
        ignore_background: see `ConfusionMatrix.compute`; the background is class 0.

    Raises:
        UserError: no mask holds another class than the background.
        ValueError: the split is empty.
    """
    if len(split) == 0:
        raise ValueError("the split holds no image to evaluate on")
    matrices = {name: ConfusionMatrix(num_labels) for name in ("adapted", "constant")}
    records: list[ClassRecord] = []
    with inference([model], precision):
        for samples in own_batches(split, batch_size, num_workers, progress=progress):
            for sample, found in zip(samples, label_maps(model, processor, samples), strict=True):
                one = ConfusionMatrix(num_labels)
                one.update(found, sample.mask)
                matrices["adapted"] = matrices["adapted"].merge([one])
                records.append(ClassRecord(sample.index, sample.id, class_scores(one, ignore_background)))
                if constant is not None:
                    matrices["constant"].update(constant.at(*sample.mask.shape), sample.mask)
    parts = of_all_ranks((matrices, records))
    matrices = {name: parts[0][0][name].merge(part[0][name] for part in parts[1:]) for name in matrices}
    if not matrices["adapted"].counts[1:].any():
        raise no_foreground(len(split))
    records = [record for part in parts for record in part[1]]
    test: dict[str, Any] = {"zero_shot": None, "adapted": class_scores(matrices["adapted"], ignore_background)}
    if constant is not None:
        test["constant"] = class_scores(matrices["constant"], ignore_background)
    return ClassResult({"none": test}, matrices["adapted"], sorted(records, key=lambda record: record.index))


def class_scores(matrix: ConfusionMatrix, ignore_background: IgnoreBackground = False) -> dict[str, Any]:
    """The scores of `metrics.json`: of the matrix, with `iou` and `dice` as means over the classes."""
    scores = matrix.compute(ignore_background)
    dice = [one["dice"] for one in scores["per_class"].values() if one["dice"] is not None]
    means = {"iou": scores["miou"], "dice": sum(dice) / len(dice) if dice else None}
    return means | scores | {"per_class": {str(index): one for index, one in scores["per_class"].items()}}
