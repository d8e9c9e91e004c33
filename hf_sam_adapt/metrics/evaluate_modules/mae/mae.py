"""Mean absolute error of masks, for `evaluate.load`."""

import hf_sam_adapt.metrics
import hf_sam_adapt.metrics.module


class Mae(hf_sam_adapt.metrics.module.MetricModule):
    streaming = hf_sam_adapt.metrics.MaeMetric
    citation = "Perazzi et al., Saliency Filters, CVPR 2012."
