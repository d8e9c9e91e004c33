"""Metrics as sums over images: added batch by batch in constant memory, merged across processes."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch.distributed as dist

from ..data.images import IGNORE
from ..names import METRIC_SETTINGS, IgnoreBackground
from .boundary import boundary_overlap
from .classes import ConfusionMatrix
from .overlap import overlap
from .saliency import e_measure, f_measure, mean_absolute_error, s_measure, threshold_counts, weighted_f


class StreamingMetric(ABC):
    """Sums over the images seen so far; `compute` makes scores of them.

    An image of which all pixels are ignored counts nowhere, but in the overlaps, which score it 1.

    Attributes:
        totals: float64 (n,), the last entry is the number of images.
    """

    counts_unknown: ClassVar[bool] = False
    takes_probabilities: bool = False

    def __init__(self) -> None:
        self.totals = np.zeros(self._size())
        self._ignored = self._foreground = False  # seen in a mask

    def update(self, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Adds one image.

        Args:
            prediction: (H, W); what a metric takes is said in its class.
            mask: integers (H, W), 0 background, 255 ignored, anything else foreground.

        Raises:
            ValueError: shapes that differ, or a prediction that the metric cannot take.
        """
        prediction, mask = np.asarray(prediction), np.asarray(mask)
        if prediction.shape != mask.shape or prediction.ndim != 2:
            raise ValueError(f"prediction {prediction.shape} and mask {mask.shape} must both be (H, W), of one size")
        self._ignored |= bool((mask == IGNORE).any())
        self._foreground |= bool(((mask != 0) & (mask != IGNORE)).any())
        if self.counts_unknown or (mask != IGNORE).any():
            self.totals[:-1] += self._measure(prediction, mask)
            self.totals[-1] += 1

    def merge(self, others: Iterable[StreamingMetric]) -> None:
        """Adds the images of metrics with the same settings."""
        for other in others:
            self.totals = self.totals + other.totals
            self._ignored, self._foreground = self._ignored | other._ignored, self._foreground | other._foreground

    def compute(self) -> dict[str, Any]:
        """Scores over all images, fractions 0..1.

        Raises:
            ValueError: no image was added.
        """
        if not self.totals[-1]:
            raise ValueError("no image with a known pixel was added, there is no mean to compute")
        if self._ignored and not self._foreground:
            warnings.warn(
                "masks of 0 and 255 = ignore, without foreground; if 255 is the object, pass mask > 0", stacklevel=2
            )
        return self._scores(self.totals)

    def _size(self) -> int:
        return 2

    @abstractmethod
    def _measure(self, prediction: np.ndarray, mask: np.ndarray) -> Any:
        """What one image adds to all totals but the last."""

    @abstractmethod
    def _scores(self, totals: np.ndarray) -> dict[str, Any]:
        """The scores out of the totals."""


class OverlapMetric(StreamingMetric):
    """Mean IoU and Dice. Predictions: masks, boolean or 0 and 1. An image with both masks empty scores 1."""

    counts_unknown = True

    def _size(self) -> int:
        return 3

    def _measure(self, prediction: np.ndarray, mask: np.ndarray) -> list[float]:
        counts = overlap(as_mask(prediction), mask)
        return [counts.iou, counts.dice]

    def _scores(self, totals: np.ndarray) -> dict[str, Any]:
        return {"iou": float(totals[0] / totals[2]), "dice": float(totals[1] / totals[2])}


class BoundaryMetric(StreamingMetric):
    """Mean boundary IoU (see `boundary_overlap`). Predictions: masks. An image with both masks empty scores 1."""

    counts_unknown = True

    def _measure(self, prediction: np.ndarray, mask: np.ndarray) -> float:
        return boundary_overlap(as_mask(prediction), mask).iou

    def _scores(self, totals: np.ndarray) -> dict[str, Any]:
        return {"biou": float(totals[0] / totals[1])}


class BerMetric(StreamingMetric):
    """Balanced error rate: the mean of the shares of foreground and of background that are wrong.

    `ber` is the mean over images, `ber_pooled` that of all pixels as of one image, with its two parts
    `foreground_error` and `background_error`. Predictions: masks. An image without foreground has the error of its
    background alone, and the reverse; a part of which there is no pixel at all is None.

    Args:
        threshold: predictions are probabilities, foreground above it; SAM-Adapter's code has 125/255. None: masks.
    """

    def __init__(self, threshold: float | None = None) -> None:
        super().__init__()
        self.threshold, self.takes_probabilities = threshold, threshold is not None

    def _size(self) -> int:
        return 6

    def _measure(self, prediction: np.ndarray, mask: np.ndarray) -> list[float]:
        if self.threshold is None:
            prediction = as_mask(prediction)
        else:
            check_probabilities(prediction[mask != IGNORE])
            prediction = prediction > self.threshold
        counts = overlap(prediction, mask)
        known = int(np.count_nonzero(mask != IGNORE))
        wrong = counts.truth - counts.intersection, counts.prediction - counts.intersection
        pixels = counts.truth, known - counts.truth
        return [_balanced(wrong, pixels), *wrong, *pixels]

    def _scores(self, totals: np.ndarray) -> dict[str, Any]:
        wrong, pixels = totals[1:3].tolist(), totals[3:5].tolist()
        parts = [error / count if count else None for error, count in zip(wrong, pixels)]
        return {
            "ber": float(totals[0] / totals[5]),
            "ber_pooled": _balanced(wrong, pixels),
            "foreground_error": parts[0],
            "background_error": parts[1],
        }


class SaliencyMetric(StreamingMetric):
    """Base of the metrics of probability maps.

    Args:
        normalize: stretch each map to 0..1 before, as PySODMetrics and the publications do. A map of one value is
            left as it is.
    """

    takes_probabilities = True

    def __init__(self, normalize: bool = True) -> None:
        super().__init__()
        self.normalize = normalize

    def _measure(self, prediction: np.ndarray, mask: np.ndarray) -> Any:
        known = mask != IGNORE
        prediction = prediction.astype(np.float64)
        low, high = check_probabilities(prediction[known])
        if self.normalize and low < high:
            prediction = (prediction - low) / (high - low)
        return self._measure_map(prediction, (mask != 0) & known, known)

    @abstractmethod
    def _measure_map(self, prediction: np.ndarray, truth: np.ndarray, known: np.ndarray) -> Any:
        """As `_measure`, of float64, bool and bool (H, W)."""


class SMeasureMetric(SaliencyMetric):
    """Mean S-measure (`s_measure`). Predictions: probabilities 0..1.

    With an empty truth it is 1 - mean(p), with a full one mean(p).
    """

    def _measure_map(self, prediction: np.ndarray, truth: np.ndarray, known: np.ndarray) -> float:
        return s_measure(prediction, truth, known)

    def _scores(self, totals: np.ndarray) -> dict[str, Any]:
        return {"s_measure": float(totals[0] / totals[1])}


class EMeasureMetric(SaliencyMetric):
    """E-measure: `e_measure` is the mean over 256 thresholds, `e_measure_max` that of the best one for all images, and
    `e_measure_adaptive` is at twice each map's mean. Predictions: probabilities 0..1.

    With an empty truth it is the share that is predicted as background, with a full one as foreground. A perfect image
    of n pixels has n / (n - 1), as in PySODMetrics.
    """

    def _size(self) -> int:
        return 258

    def _measure_map(self, prediction: np.ndarray, truth: np.ndarray, known: np.ndarray) -> np.ndarray:
        return e_measure(prediction[known], truth[known])

    def _scores(self, totals: np.ndarray) -> dict[str, Any]:
        means = totals[:-1] / totals[-1]
        scores = {
            "e_measure": means[:256].mean(),
            "e_measure_max": means[:256].max(),
            "e_measure_adaptive": means[256],
        }
        return {name: float(score) for name, score in scores.items()}


class FMeasureMetric(SaliencyMetric):
    """F-measure at 256 thresholds: `f_measure` is the mean over them, `f_measure_max` that of the best one for all
    images, `f_measure_adaptive` is at twice each map's mean. Predictions: probabilities 0..1.

    `f_curve`, `precision_curve` and `recall_curve` are the means over the images at 255/255, 254/255, …, 0. With an
    empty truth all are 0.

    Args:
        beta2: weight β² of precision.
        normalize: see `SaliencyMetric`.
    """

    def __init__(self, beta2: float = 0.3, normalize: bool = True) -> None:
        super().__init__(normalize)
        self.beta2 = beta2

    def _size(self) -> int:
        return 3 * 257 + 1

    def _measure_map(self, prediction: np.ndarray, truth: np.ndarray, known: np.ndarray) -> np.ndarray:
        return f_measure(prediction[known], truth[known], self.beta2).ravel()

    def _scores(self, totals: np.ndarray) -> dict[str, Any]:
        precision, recall, f = (totals[:-1] / totals[-1]).reshape(3, 257)  # (3 * 257,) -> (3, 257)
        return {
            "f_measure": float(f[:256].mean()),
            "f_measure_max": float(f[:256].max()),
            "f_measure_adaptive": float(f[256]),
            "f_curve": f[:256].tolist(),
            "precision_curve": precision[:256].tolist(),
            "recall_curve": recall[:256].tolist(),
        }


class AucMetric(SaliencyMetric):
    """Area under the ROC curve, of the true and false positive rates at 256 thresholds, each a mean over the images.
    Predictions: probabilities 0..1. Images without foreground or without background are left out; None if all are.
    """

    def _size(self) -> int:
        return 2 * 256 + 2

    def _measure_map(self, prediction: np.ndarray, truth: np.ndarray, known: np.ndarray) -> np.ndarray:
        hits, alarms = (counts[:256] for counts in threshold_counts(prediction[known], truth[known]))
        if not hits[-1] or not alarms[-1]:
            return np.zeros(2 * 256 + 1)
        return np.concatenate([hits / hits[-1], alarms / alarms[-1], [1]])

    def _scores(self, totals: np.ndarray) -> dict[str, Any]:
        if not totals[-2]:
            return {"auc": None}
        hits, alarms = np.pad((totals[:-2] / totals[-2]).reshape(2, 256), ((0, 0), (1, 0)))  # from (0, 0)
        return {"auc": float(((hits[1:] + hits[:-1]) / 2 * np.diff(alarms)).sum())}


class WeightedFMetric(SaliencyMetric):
    """Mean weighted F-measure (`weighted_f`). Predictions: probabilities 0..1. With an empty truth it is 0.

    Args:
        beta2: weight β² of precision; 1 as in PySODMetrics and most publications, SAM-Adapter's code has 0.3.
        normalize: see `SaliencyMetric`.
    """

    def __init__(self, beta2: float = 1.0, normalize: bool = True) -> None:
        super().__init__(normalize)
        self.beta2 = beta2

    def _measure_map(self, prediction: np.ndarray, truth: np.ndarray, known: np.ndarray) -> float:
        return weighted_f(prediction, truth, known, self.beta2)

    def _scores(self, totals: np.ndarray) -> dict[str, Any]:
        return {"weighted_f": float(totals[0] / totals[1])}


class MaeMetric(SaliencyMetric):
    """Mean absolute error of probabilities 0..1, the mean over images. Any truth, empty or full, is like another."""

    def _measure_map(self, prediction: np.ndarray, truth: np.ndarray, known: np.ndarray) -> float:
        return mean_absolute_error(prediction[known], truth[known])

    def _scores(self, totals: np.ndarray) -> dict[str, Any]:
        return {"mae": float(totals[0] / totals[1])}


class SemanticMetric(StreamingMetric):
    """OA, mIoU, FWIoU and the scores of each class over all pixels (see `ConfusionMatrix.compute`).

    Predictions: integers 0..K-1, masks: the true classes and 255. What there is nothing to divide for is None.

    Args:
        num_labels: K >= 2, background included.
        ignore_background: see `ConfusionMatrix.compute`.
    """

    def __init__(self, num_labels: int, ignore_background: IgnoreBackground = False) -> None:
        self.matrix, self.ignore_background = ConfusionMatrix(num_labels), ignore_background
        super().__init__()

    def _size(self) -> int:
        return self.matrix.num_labels**2 + 1

    def _measure(self, prediction: np.ndarray, mask: np.ndarray) -> np.ndarray:
        one = ConfusionMatrix(self.matrix.num_labels)
        one.update(prediction, mask)
        return one.counts.ravel()

    def _scores(self, totals: np.ndarray) -> dict[str, Any]:
        # float64 holds counts up to 2^53 exactly.
        self.matrix.counts = totals[:-1].astype(np.int64).reshape(self.matrix.counts.shape)  # (K K,) -> (K, K)
        scores = self.matrix.compute(self.ignore_background)
        return {name: score for name, score in scores.items() if name != "ignore_background"}


# What `metrics` of a recipe or of `evaluate` takes, for images without prompts.
PROMPTLESS_METRICS: dict[str, type[StreamingMetric]] = {
    "s_measure": SMeasureMetric,
    "e_measure": EMeasureMetric,
    "f_measure": FMeasureMetric,
    "weighted_f": WeightedFMetric,
    "mae": MaeMetric,
    "auc": AucMetric,
    "ber": BerMetric,
}
# How tables name their scores.
TITLES = {
    "s_measure": "S-measure",
    "e_measure": "E-measure",
    "e_measure_max": "E-measure, best threshold",
    "e_measure_adaptive": "E-measure, adaptive threshold",
    "f_measure": "F-measure",
    "f_measure_max": "F-measure, best threshold",
    "f_measure_adaptive": "F-measure, adaptive threshold",
    "auc": "area under the ROC curve",
    "weighted_f": "weighted F",
    "mae": "MAE",
    "ber": "BER",
    "ber_pooled": "BER, pooled",
    "foreground_error": "error of the foreground, pooled",
    "background_error": "error of the background, pooled",
}


def make_metric(name: str, **settings: float | None) -> StreamingMetric:
    """The metric `name` of `PROMPTLESS_METRICS`; of `beta2` and `ber_threshold` it takes its own, unless None."""
    known = ((METRIC_SETTINGS[key].get(name), value) for key, value in settings.items())
    arguments: dict[str, Any] = {
        argument: value for argument, value in known if argument is not None and value is not None
    }
    return PROMPTLESS_METRICS[name](**arguments)


def gathered(metric: StreamingMetric) -> StreamingMetric:
    """The metric over the images of all processes, the same in each; in a single process the metric itself."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        totals: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(totals, metric.totals)
        metric.totals = np.sum(totals, axis=0)
    return metric


def check_probabilities(values: np.ndarray) -> tuple[float, float]:
    """The lowest and the highest of the known pixels. Raises `ValueError` unless all lie in 0..1."""
    low, high = values.min(), values.max()
    if not 0 <= low <= high <= 1:  # NaN, too
        raise ValueError(f"prediction holds {low:.3g} to {high:.3g}; give probabilities, e.g. logits.sigmoid()")
    return low, high


def as_mask(prediction: np.ndarray) -> np.ndarray:
    """A mask of 0 and 1 as booleans. Raises `ValueError` for anything else, such as logits or 0 and 255."""
    if prediction.dtype != bool and not (prediction.dtype.kind in "iu" and np.isin(prediction, (0, 1)).all()):
        raise ValueError(f"prediction must be a mask, boolean or of 0 and 1, got {prediction.dtype} of other values")
    return prediction.astype(bool)


def _balanced(wrong: Sequence[float], pixels: Sequence[float]) -> float:
    """Mean of the shares that are wrong, of foreground and background, as far as there are pixels."""
    errors = [error / count for error, count in zip(wrong, pixels) if count]
    return sum(errors) / len(errors)
