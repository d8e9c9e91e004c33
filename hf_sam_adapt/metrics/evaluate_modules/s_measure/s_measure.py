"""S-measure, for `evaluate.load`."""

import hf_sam_adapt.metrics
import hf_sam_adapt.metrics.module


class SMeasure(hf_sam_adapt.metrics.module.MetricModule):
    streaming = hf_sam_adapt.metrics.SMeasureMetric
    citation = "Fan et al., Structure-measure: A New Way to Evaluate Foreground Maps, ICCV 2017."
