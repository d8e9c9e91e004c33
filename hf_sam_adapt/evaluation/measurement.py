"""What is measured of images once they are encoded: by a pass of its own, or along with an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch.utils.data import Dataset
from transformers.image_processing_utils import BatchFeature

from ..distributed import own_batches
from ..inference.variants import Variant, embeddings_of, inference, model_inputs
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor


class Measurement(Protocol):
    """Takes the images of this process batch by batch, and puts together what all processes have found."""

    def add(self, variant: Variant, inputs: BatchFeature, samples: Sequence[Any], embeddings: ImageEmbeddings) -> None:
        """A batch as a variant encodes it; called for each variant in turn, while it is active.

        Args:
            inputs: `model_inputs` of `samples`.
            samples: B images with their masks, or B embeddings.
            embeddings: of the B images, by the variant.
        """

    def result(self) -> dict[str, Any]:
        """Its part of `metrics.json`; every process has to ask for it."""


def measured(
    measurement: Measurement,
    variants: Sequence[Variant],
    processor: SamAdaptProcessor,
    split: Dataset,
    *,
    title: str,
    batch_size: int,
    precision: str,
    num_workers: int | None,
    progress: bool,
) -> dict[str, Any]:
    """The result of one measurement over a split, each of whose images every variant encodes once."""
    with inference([variant.model for variant in variants], precision):
        for samples in own_batches(split, batch_size, num_workers, title=title, progress=progress):
            inputs = model_inputs(processor, samples)
            for variant in variants:
                with variant.active():
                    measurement.add(variant, inputs, samples, embeddings_of(variant.model, inputs))
    return measurement.result()
