"""What a model finds in one image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from peft import PeftConfig

from ..errors import UserError
from ..names import class_names
from ..sam.processing import SamAdaptProcessor
from .instances import Instance
from .variants import merge_objects


@dataclass(frozen=True, eq=False)
class Prediction:
    """What the model finds in one image.

    Attributes:
        mask: bool (H, W), the union of the prompted objects; of a model with classes uint8 (H, W) of labels. At the
            image's own size.
        score: the model's estimate of the mask's IoU, 0..1, of several objects the highest; None where the model's
            estimate means nothing (an adapter that did not train it, classes).
        classes: name -> fraction of the pixels, in the order of the labels; None for one class.
        domain: of a pool, the domain that was used, `base` for plain SAM; None without a pool.
        router_scores: of a pool whose router chose, domain -> probability; None otherwise.
        instances: the objects, surest first, if they were asked for.
    """

    mask: np.ndarray
    score: float | None
    classes: dict[str, float] | None
    domain: str | None
    router_scores: dict[str, float] | None
    instances: list[Instance] | None
    _low_resolution: torch.Tensor = field(repr=False)
    _sizes: Mapping[str, torch.Tensor] = field(repr=False)
    _processor: SamAdaptProcessor = field(repr=False)

    @cached_property
    def logits(self) -> np.ndarray:
        """float32 (H, W), foreground above 0; of a model with K classes (K, H, W). Computed when it is asked for."""
        if self.classes is None:
            full = merge_objects(self._processor, self._sizes, [self._low_resolution])[0]
        else:
            full = self._processor.post_process_masks([self._low_resolution], *self._sizes.values())[0]
        return full.float().cpu().numpy()

    @property
    def probabilities(self) -> np.ndarray:
        """float32 (H, W), of foreground; of a model with K classes (K, H, W), which sum to 1."""
        logits = torch.from_numpy(self.logits)
        return (logits.sigmoid() if self.classes is None else logits.softmax(dim=0)).numpy()


class TiledPrediction(Prediction):
    """What the model finds in an image that was cut into tiles; its logits are kept.

    Its `domain` is that of most tiles, and its `router_scores` are means over them where the router chose for each.
    """

    @cached_property
    def logits(self) -> np.ndarray:
        """As in `Prediction`."""
        return self._low_resolution.numpy()


def logit_of(threshold: float) -> float:
    """The logit of a probability. Raises `UserError` unless it lies between 0 and 1."""
    if not isinstance(threshold, (int, float, np.number)) or not 0 < threshold < 1:
        raise UserError(f"{threshold} is not a probability between 0 and 1", key="threshold")
    return math.log(threshold / (1 - threshold))


def classes_of(config: PeftConfig | None) -> list[str] | None:
    """Names of an adapter's classes in the order of their labels; None for one class."""
    num_labels = getattr(config, "num_labels", None)
    return None if num_labels is None else class_names(num_labels, getattr(config, "id2label", None))


def trains_estimate(config: PeftConfig | None) -> bool:
    """Whether an adapter trained the estimate of a mask's IoU; of a pool, whether its domains did, which all agree."""
    return bool(getattr(getattr(config, "inner", config), "train_iou_head", False))
