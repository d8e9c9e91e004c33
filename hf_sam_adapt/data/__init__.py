"""Data sets of images and masks: found, checked, split and read."""

from .dataset import Sample, SegmentationData, SegmentationSplit
from .sources import load_segmentation_dataset


__all__ = ["Sample", "SegmentationData", "SegmentationSplit", "load_segmentation_dataset"]
