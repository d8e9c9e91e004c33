"""IoU and Dice, for `evaluate.load`."""

import hf_sam_adapt.metrics
import hf_sam_adapt.metrics.module


class IouDice(hf_sam_adapt.metrics.module.MetricModule):
    streaming = hf_sam_adapt.metrics.OverlapMetric
    citation = "Everingham et al., The PASCAL Visual Object Classes Challenge, IJCV 2010."
