"""Metrics of several classes from one confusion matrix over all pixels of a data set (CWSAM §5), and its picture."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.images import IGNORE
from ..names import IgnoreBackground


if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_PRINTED = 20


class ConfusionMatrix:
    """Pixel counts of truth against prediction, images added one at a time.

    To use several processes, gather their matrices and `merge` them; every image must be in exactly one of them.

    Args:
        num_labels: K >= 2, background included.

    Attributes:
        counts: int64 (K, K), rows are the truth, columns the prediction.
    """

    def __init__(self, num_labels: int) -> None:
        if num_labels < 2:
            raise ValueError(f"num_labels is {num_labels}, a confusion matrix needs at least 2 classes")
        self.counts = np.zeros((num_labels, num_labels), np.int64)

    @property
    def num_labels(self) -> int:
        return len(self.counts)

    def update(self, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Adds one image.

        Args:
            prediction: integers (H, W), the predicted class of each pixel, 0..K-1.
            mask: uint8 (H, W), the true class, 255 ignored.

        Raises:
            ValueError: the shapes differ, the prediction is not integer, or a counted pixel is outside 0..K-1.
        """
        prediction, mask = np.asarray(prediction), np.asarray(mask)
        if prediction.shape != mask.shape or prediction.ndim != 2:
            raise ValueError(f"prediction {prediction.shape} and mask {mask.shape} must both be (H, W), of one size")
        if prediction.dtype.kind not in "iu" or mask.dtype.kind not in "iu":
            raise ValueError(f"prediction and mask must be integer, got {prediction.dtype} and {mask.dtype}")
        valid = mask != IGNORE
        truth, predicted = mask[valid].astype(np.int64), prediction[valid].astype(np.int64)  # (pixels,)
        for name, values in (("mask", truth), ("prediction", predicted)):
            if values.size and not 0 <= values.min() <= values.max() < self.num_labels:
                wrong = values[(values < 0) | (values >= self.num_labels)][0]
                raise ValueError(f"{name} holds class {wrong}, expected 0..{self.num_labels - 1}")
        pairs = np.bincount(truth * self.num_labels + predicted, minlength=self.num_labels**2)
        self.counts += pairs.reshape(self.counts.shape)  # (K * K,) -> (K, K)

    def merge(self, others: Iterable[ConfusionMatrix]) -> ConfusionMatrix:
        """The matrix over the images of this one and of `others`. Raises `ValueError` if K differs."""
        merged = ConfusionMatrix(self.num_labels)
        for matrix in (self, *others):
            if matrix.num_labels != self.num_labels:
                raise ValueError(f"matrices of {self.num_labels} and {matrix.num_labels} classes cannot be merged")
            merged.counts += matrix.counts
        return merged

    def compute(self, ignore_background: IgnoreBackground = False, background: int = 0) -> dict[str, Any]:
        """Scores over all pixels, ready for JSON.

        Three readings, of which the result names the one it is in `ignore_background`:

        - False: the background is a class like the others.
        - True: pixels whose truth is background do not count and background is no class of the means, but a pixel of
          another class that is predicted as background stays an error of that class.
        - "official" (CWSAM's code): the row and the column of the background are cut off, so confusions with it
          vanish in both directions and every score is too high. For comparison with published numbers only.

        Args:
            ignore_background: see above.
            background: index of the background class, without meaning for False.

        Returns:
            `oa` (share of pixels that are right), `miou`, `fwiou` (IoU weighted by the share of true pixels),
            `per_class`: class -> `iou`, `precision`, `recall`, `f1`, `dice` (over pixels the same number as F1, by its
            other name) and `pixels` (of the truth); and `ignore_background`. Fractions 0..1. None where there is
            nothing to divide by: a class neither in truth nor prediction has no IoU and is not in `miou`, one without
            true pixels has no recall, one never predicted no precision.
        """
        if ignore_background not in (True, False, "official"):
            raise ValueError(f"ignore_background is {ignore_background!r}, expected True, False or 'official'")
        if not 0 <= background < self.num_labels:
            raise ValueError(f"background is class {background}, expected 0..{self.num_labels - 1}")
        counts = self.counts.copy()
        if ignore_background:
            counts[background] = 0
        if ignore_background == "official":
            counts[:, background] = 0
        classes = [index for index in range(self.num_labels) if not ignore_background or index != background]
        right, truth, predicted = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
        per_class = {index: _scores(int(right[index]), int(truth[index]), int(predicted[index])) for index in classes}
        defined = [(index, per_class[index]["iou"]) for index in classes if per_class[index]["iou"] is not None]
        return {
            "ignore_background": ignore_background,
            "oa": _ratio(int(right.sum()), int(truth.sum())),
            "miou": _ratio(sum(iou for _, iou in defined), len(defined)),
            "fwiou": _ratio(sum(int(truth[index]) * iou for index, iou in defined), int(truth.sum())),
            "per_class": per_class,
        }


def _scores(right: int, truth: int, predicted: int) -> dict[str, Any]:
    """Scores of one class from its correct, true and predicted pixels."""
    f1 = _ratio(2 * right, truth + predicted)
    return {
        "iou": _ratio(right, truth + predicted - right),
        "precision": _ratio(right, predicted),
        "recall": _ratio(right, truth),
        "f1": f1,
        "dice": f1,
        "pixels": truth,
    }


def _ratio(numerator: float, denominator: int) -> float | None:
    return numerator / denominator if denominator else None


def plot_confusion(matrix: ConfusionMatrix, names: Sequence[str], path: str | os.PathLike) -> None:
    """Draws the matrix as a PNG: a row is the truth, its cells the share of its pixels predicted as each class.

    The shares are printed for up to 20 classes. The row of a class without true pixels stays empty.

    Args:
        names: K names in the order of the classes.
    """
    _confusion_figure(matrix.counts, names).savefig(path, format="png", bbox_inches="tight")


def _confusion_figure(counts: np.ndarray, names: Sequence[str]) -> Figure:
    from matplotlib.figure import Figure

    classes = len(counts)
    if len(names) != classes:
        raise ValueError(f"{len(names)} names for {classes} classes")
    truth = counts.sum(axis=1, keepdims=True)
    shares = np.where(truth > 0, counts / np.maximum(truth, 1), np.nan)
    side = min(3 + 0.5 * classes, 16)
    figure = Figure(figsize=(side + 1, side), dpi=100, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    figure.colorbar(image, ax=axis, label="share of the true pixels")
    size = 9 if classes <= MAX_PRINTED else 5
    axis.set_xticks(range(classes), names, rotation=90, fontsize=size)
    axis.set_yticks(range(classes), names, fontsize=size)
    axis.set_xlabel("predicted")
    axis.set_ylabel("truth")
    if classes <= MAX_PRINTED:
        for row, column in np.argwhere(np.isfinite(shares)):
            share = shares[row, column]
            colour = "white" if share > 0.5 else "black"
            axis.text(column, row, f"{share:.2f}", ha="center", va="center", fontsize=7, color=colour)
    return figure
