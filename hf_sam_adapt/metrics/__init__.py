"""Streaming segmentation metrics, computed at the original size of each image."""

from pathlib import Path

from .boundary import boundary_overlap
from .classes import ConfusionMatrix, plot_confusion
from .constant import ConstantMask, constant_mask
from .overlap import Overlap, mean_overlap, overlap
from .stream import (
    PROMPTLESS_METRICS,
    AucMetric,
    BerMetric,
    BoundaryMetric,
    EMeasureMetric,
    FMeasureMetric,
    MaeMetric,
    OverlapMetric,
    SemanticMetric,
    SMeasureMetric,
    StreamingMetric,
    WeightedFMetric,
    gathered,
    make_metric,
)


MODULES = Path(__file__).parent / "evaluate_modules"  # one folder a metric, for `evaluate.load(str(MODULES / name))`


__all__ = [
    "MODULES",
    "PROMPTLESS_METRICS",
    "AucMetric",
    "BerMetric",
    "BoundaryMetric",
    "ConfusionMatrix",
    "ConstantMask",
    "EMeasureMetric",
    "FMeasureMetric",
    "MaeMetric",
    "Overlap",
    "OverlapMetric",
    "SMeasureMetric",
    "SemanticMetric",
    "StreamingMetric",
    "WeightedFMetric",
    "boundary_overlap",
    "constant_mask",
    "gathered",
    "make_metric",
    "mean_overlap",
    "overlap",
    "plot_confusion",
]
