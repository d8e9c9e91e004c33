"""Balanced error rate of masks, for `evaluate.load`."""

import hf_sam_adapt.metrics
import hf_sam_adapt.metrics.module


class Ber(hf_sam_adapt.metrics.module.MetricModule):
    streaming = hf_sam_adapt.metrics.BerMetric
    citation = (
        "Vicente et al., Large-scale Training of Shadow Detectors with Noisily-Annotated Shadow Examples, ECCV 2016."
    )
