"""Streaming segmentation metrics, computed at the original size of each image."""

from .constant import ConstantMask, constant_mask
from .overlap import IGNORE, IouDice, Overlap, overlap


__all__ = ["IGNORE", "ConstantMask", "IouDice", "Overlap", "constant_mask", "overlap"]
