"""Area under the ROC curve of masks, for `evaluate.load`."""

import hf_sam_adapt.metrics
import hf_sam_adapt.metrics.module


class Auc(hf_sam_adapt.metrics.module.MetricModule):
    streaming = hf_sam_adapt.metrics.AucMetric
    citation = "Borji et al., Salient Object Detection: A Benchmark, IEEE TIP 2015."
