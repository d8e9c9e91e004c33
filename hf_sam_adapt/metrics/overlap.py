"""IoU and Dice of binary masks, per image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.images import IGNORE


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of one image, Python integers (exact for any image size).

    `intersection` = |P & T|, `prediction` = |P|, `truth` = |T|, all without the ignored pixels. An image whose truth
    and prediction are both empty scores 1.0 in both metrics: nothing was to be found and nothing was claimed. So
    does an image that is ignored everywhere.
    """

    intersection: int
    prediction: int
    truth: int

    def __add__(self, other: "Overlap") -> "Overlap":
        """The counts of two parts of an image."""
        return Overlap(
            self.intersection + other.intersection, self.prediction + other.prediction, self.truth + other.truth
        )

    @property
    def iou(self) -> float:
        union = self.prediction + self.truth - self.intersection
        return self.intersection / union if union else 1.0

    @property
    def dice(self) -> float:
        total = self.prediction + self.truth
        return 2 * self.intersection / total if total else 1.0

    def scores(self) -> dict[str, float]:
        """`{"iou": …, "dice": …}`, fractions 0..1."""
        return {"iou": self.iou, "dice": self.dice}


def overlap(prediction: np.ndarray, mask: np.ndarray) -> Overlap:
    """Counts the overlap of one prediction with its truth.

    Args:
        prediction: bool (H, W).
        mask: uint8 (H, W), 0 background, 255 ignored, anything else foreground.

    Raises:
        ValueError: the shapes differ, or `prediction` is not boolean (logits or 0/255 masks would be counted wrongly).
    """
    prediction, mask = np.asarray(prediction), np.asarray(mask)
    if prediction.shape != mask.shape or prediction.ndim != 2:
        raise ValueError(f"prediction {prediction.shape} and mask {mask.shape} must both be (H, W), of one size")
    if prediction.dtype != bool:
        raise ValueError(f"prediction must be boolean, got {prediction.dtype}")
    truth = (mask != 0) & (mask != IGNORE)
    return Overlap(
        intersection=int(np.count_nonzero(prediction & truth)),
        prediction=int(np.count_nonzero(prediction & (mask != IGNORE))),
        truth=int(np.count_nonzero(truth)),
    )


def mean_overlap(images: Sequence[Overlap]) -> dict[str, float]:
    """Means over images, `{"iou": …, "dice": …}` as fractions 0..1."""
    return {
        "iou": sum(image.iou for image in images) / len(images),
        "dice": sum(image.dice for image in images) / len(images),
    }
