"""Streaming segmentation metrics, computed at the original size of each image."""

from .constant import ConstantMask, constant_mask
from .overlap import IouDice, Overlap, overlap


__all__ = ["ConstantMask", "IouDice", "Overlap", "constant_mask", "overlap"]
