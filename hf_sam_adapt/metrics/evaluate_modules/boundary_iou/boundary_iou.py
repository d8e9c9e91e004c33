"""Boundary IoU, for `evaluate.load`."""

import hf_sam_adapt.metrics
import hf_sam_adapt.metrics.module


class BoundaryIou(hf_sam_adapt.metrics.module.MetricModule):
    streaming = hf_sam_adapt.metrics.BoundaryMetric
    citation = "Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021."
