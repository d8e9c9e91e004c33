"""The streaming metrics as modules of the `evaluate` library; `evaluate_modules/` has one script for each."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from .stream import StreamingMetric, gathered


INPUTS = """
Args:
    predictions: one array (H, W) per image, of any size; of what, the description says.
    references: the masks (H, W): 0 background, anything else foreground or the class, 255 ignored.
"""


class MetricModule(evaluate.Metric):
    """An `evaluate.Metric` that keeps sums instead of the images: `add_batch` can be called without end.

    In a distributed run every process adds its own images, and `compute` gives each of them the scores over all. A
    metric's settings are arguments of `evaluate.load`.
    """

    streaming: ClassVar[type[StreamingMetric]]
    citation: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = inspect.signature(self.streaming).parameters
        self._settings = {name: kwargs.pop(name) for name in names if name in kwargs}
        super().__init__(*args, **kwargs)
        if self.num_process > 1:
            raise ValueError("leave num_process out: the processes of a distributed run are found without it")
        self._metric = self.streaming(**self._settings)

    def _info(self) -> evaluate.MetricInfo:
        pixels = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        masks = datasets.Sequence(datasets.Sequence(datasets.Value("uint8")))
        return evaluate.MetricInfo(
            description=inspect.getdoc(self.streaming),
            citation=self.citation,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": pixels, "references": masks}),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Adds one image."""
        self._metric.update(_array(prediction), _array(reference))

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Adds images: lists of arrays, or arrays (B, H, W)."""
        for prediction, reference in _pairs(predictions, references):
            self.add(prediction=prediction, reference=reference)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any]:
        """The scores over all images added since the last call, these included; every process has to call it.

        Raises:
            ValueError: no image was added by any process.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        metric, self._metric = gathered(self._metric), self.streaming(**self._settings)
        return metric.compute()


def _pairs(predictions: Any, references: Any) -> Iterable[tuple[Any, Any]]:
    if predictions is None or references is None or len(predictions) != len(references):
        counts = [None if images is None else len(images) for images in (predictions, references)]
        raise ValueError(f"predictions and references must be equally many images, got {counts[0]} and {counts[1]}")
    return zip(predictions, references)


def _array(image: Any) -> np.ndarray:
    return image.detach().cpu().numpy() if hasattr(image, "detach") else np.asarray(image)
