"""Semantic segmentation: OA, mIoU, FWIoU, per class, for `evaluate.load`."""

import hf_sam_adapt.metrics
import hf_sam_adapt.metrics.module


class Semantic(hf_sam_adapt.metrics.module.MetricModule):
    streaming = hf_sam_adapt.metrics.SemanticMetric
    citation = "Long et al., Fully Convolutional Networks for Semantic Segmentation, CVPR 2015."
