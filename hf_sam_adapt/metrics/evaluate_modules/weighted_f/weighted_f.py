"""Weighted F-measure, for `evaluate.load`."""

import hf_sam_adapt.metrics
import hf_sam_adapt.metrics.module


class WeightedF(hf_sam_adapt.metrics.module.MetricModule):
    streaming = hf_sam_adapt.metrics.WeightedFMetric
    citation = "Margolin et al., How to Evaluate Foreground Maps?, CVPR 2014."
