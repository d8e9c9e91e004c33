"""Streaming segmentation metrics, computed at the original size of each image."""

from .boundary import boundary_overlap
from .classes import ConfusionMatrix, plot_confusion
from .constant import ConstantMask, constant_mask
from .overlap import IouDice, Overlap, overlap


__all__ = [
    "ConfusionMatrix",
    "ConstantMask",
    "IouDice",
    "Overlap",
    "boundary_overlap",
    "constant_mask",
    "overlap",
    "plot_confusion",
]
