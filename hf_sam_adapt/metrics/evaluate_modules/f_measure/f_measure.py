"""F-measure at 256 thresholds and its curves, for `evaluate.load`."""

import hf_sam_adapt.metrics
import hf_sam_adapt.metrics.module


class FMeasure(hf_sam_adapt.metrics.module.MetricModule):
    streaming = hf_sam_adapt.metrics.FMeasureMetric
    citation = "Achanta et al., Frequency-tuned Salient Region Detection, CVPR 2009."
