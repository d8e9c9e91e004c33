"""E-measure, for `evaluate.load`."""

import hf_sam_adapt.metrics
import hf_sam_adapt.metrics.module


class EMeasure(hf_sam_adapt.metrics.module.MetricModule):
    streaming = hf_sam_adapt.metrics.EMeasureMetric
    citation = "Fan et al., Enhanced-alignment Measure for Binary Foreground Map Evaluation, IJCAI 2018."
