"""Masks at the original size of each image, for several prompt kinds with one pass of the encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch import nn
from transformers.image_processing_utils import BatchFeature

from ..errors import UserError
from ..files import BASE
from ..prompts import Prompt
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor
from ..tuners.moda import ModaModel
from .embeddings.split import EmbeddedSample
from .forward import encode, pool_of, segment, segment_multimask
from .precision import autocast


if TYPE_CHECKING:
    from ..data import Sample

OBJECTS_AT_ONCE = 8


@dataclass(frozen=True)
class Variant:
    """One column of a comparison: a model, with or without its adapter.

    Attributes:
        name: the key in `metrics.json`, `zero_shot` or `adapted`.
        model: `SamModel`, `PeftModel` or `ModaModel`.
        adapter_off: run the base inside the adapted model.
    """

    name: str
    model: nn.Module
    adapter_off: bool = False

    def active(self) -> AbstractContextManager:
        return cast(PeftModel, self.model).disable_adapter() if self.adapter_off else nullcontext()


def variants_of(
    model: nn.Module, *, adapted: bool = True, zero_shot: bool = True, zero_shot_model: nn.Module | None = None
) -> list[Variant]:
    """The models to compare: zero-shot first, then adapted.

    Args:
        model: a `PeftModel` or `ModaModel`; a `SamModel` trained as a whole; or, with `adapted=False`, a `SamModel`
            as it came.
        adapted: whether `model` is adapted at all.
        zero_shot: whether zero-shot SAM is wanted.
        zero_shot_model: the base model, where it is not inside `model` (method `full`).

    Raises:
        ValueError: zero-shot SAM is wanted and can be found nowhere.
    """
    variants = [Variant("adapted", model)] if adapted else []
    if not zero_shot:
        return variants
    if zero_shot_model is not None:
        return [Variant("zero_shot", zero_shot_model), *variants]
    if isinstance(model, (PeftModel, ModaModel)):
        return [Variant("zero_shot", model, adapter_off=True), *variants]
    if adapted:
        raise ValueError("the base of a fully trained model is not inside it: pass zero_shot_model or zero_shot=False")
    return [Variant("zero_shot", model)]


@contextmanager
def inference(models: Sequence[nn.Module], precision: str = "no") -> Iterator[None]:
    """Evaluation mode without gradients, under autocast for `precision` "bf16" or "fp16".

    On exit every module's mode and every parameter's `requires_grad` are as they were: `disable_adapter` of PEFT turns
    them on for the adapter, which would thaw what a training keeps frozen.
    """
    modes = {module: module.training for model in models for module in model.modules()}
    grads = {parameter: parameter.requires_grad for model in models for parameter in model.parameters()}
    try:
        for model in models:
            model.eval()
        # Not inference_mode: buffers that a module caches lazily in there could not be used in a training step later.
        with torch.no_grad(), autocast(precision, device_of(models[0])):
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, grad in grads.items():
            parameter.requires_grad_(grad)


def check_domain(model: nn.Module, domain: str | None) -> None:
    """Raise `UserError` for a domain of a model that is no pool, or one that the pool does not have, or `base` of a
    pool whose domains have classes."""
    if domain is None:
        return
    if not isinstance(model, ModaModel):
        raise UserError(f"{domain}, but the adapter is not a pool of domains", key="domain", fix="leave domain out")
    if model.resolve(domain) == BASE and model.moda_config.num_labels is not None:
        raise UserError("base, but plain SAM has no classes", key="domain", fix="name one of the pool's domains")


def routed(model: nn.Module, domain: str | None) -> AbstractContextManager:
    """All images of a pool within go to `domain`, None: where its router sends them; raises as `check_domain`."""
    check_domain(model, domain)
    return nullcontext() if domain is None else cast(ModaModel, model).using(domain)


def domains_of(model: nn.Module, embeddings: ImageEmbeddings) -> list[str] | None:
    """The domain of each image by whose adapter a pool encoded it; None for a model that is no pool."""
    pool = pool_of(model)
    return None if pool is None or embeddings.domains is None else pool.names_of(embeddings.domains)


def router_scores_of(model: nn.Module, embeddings: ImageEmbeddings) -> list[dict[str, float]] | None:
    """Of each image domain -> the probability that a pool's router gave it; None where no router chose."""
    pool = pool_of(model)
    if pool is None or embeddings.router_scores is None:
        return None
    return [dict(zip(pool.domains, row)) for row in embeddings.router_scores.tolist()]


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def image_logits(
    model: nn.Module,
    processor: SamAdaptProcessor,
    inputs: Mapping[str, Any],
    embeddings: ImageEmbeddings,
    prompts: Sequence[Prompt],
) -> list[torch.Tensor]:
    """Logits of mask token 0 at the original size, the objects of an image merged by the larger logit.

    Args:
        inputs: the processor's output for B images.
        embeddings: theirs, by `model`.
        prompts: B prompts in input coordinates.

    Returns:
        Per image float32 (H, W); foreground is > 0. An image without objects is -inf everywhere.
    """
    per_image = segment(model, None, prompts, image_embeddings=embeddings)
    return merge_objects(processor, inputs, per_image)


def best_of_three_logits(
    model: nn.Module,
    processor: SamAdaptProcessor,
    inputs: Mapping[str, Any],
    embeddings: ImageEmbeddings,
    prompts: Sequence[Prompt],
) -> list[torch.Tensor]:
    """As `image_logits`, each object taken from that of SAM's three masks whose predicted IoU is highest."""
    per_image = []
    for masks, scores in segment_multimask(model, None, prompts, image_embeddings=embeddings):
        objects = torch.arange(len(masks), device=masks.device)
        per_image.append(masks[objects, scores.argmax(dim=-1)])  # (n, 3, h, w) -> (n, h, w)
    return merge_objects(processor, inputs, per_image)


def sizes_of(inputs: Mapping[str, Any]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Of each image of the processor's output its (height, width), and that inside the network's input."""
    pairs = zip(inputs["original_sizes"].tolist(), inputs["reshaped_input_sizes"].tolist(), strict=True)
    return [(tuple(original), tuple(reshaped)) for original, reshaped in pairs]


def place_prompts(processor: SamAdaptProcessor, inputs: Mapping[str, Any], prompts: Sequence[Prompt]) -> list[Prompt]:
    """Prompts of the images of `inputs`, from image coordinates to those of the network's input.

    Their targets stay behind: only a training needs them, and resizing them would cost more than the rest.
    """
    bare = [dataclasses.replace(prompt, targets=None) for prompt in prompts]
    return processor.transform_prompts(bare, inputs["original_sizes"])


def merge_objects(
    processor: SamAdaptProcessor, inputs: Mapping[str, Any], per_image: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Per image low-resolution logits (n, h, w) -> (H, W) at original size."""
    merged = []
    for logits, (original, reshaped) in zip(per_image, sizes_of(inputs), strict=True):
        largest = torch.full(original, -torch.inf, device=logits.device)
        # The union of masks at original size; n of them at once would not fit for large images.
        for part in logits.split(OBJECTS_AT_ONCE) if len(logits) else ():
            full = processor.post_process_masks([part], [original], [reshaped])[0]  # (≤ 8, H, W)
            largest = torch.maximum(largest, full.amax(dim=0))
        merged.append(largest)
    return merged


def predicted_logits(
    variants: Sequence[Variant],
    processor: SamAdaptProcessor,
    samples: Sequence[Sample | EmbeddedSample],
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    best_of_three: bool = False,
    encoded: Callable[[Variant, BatchFeature, ImageEmbeddings], None] | None = None,
) -> Iterator[tuple[str, str, int, torch.Tensor]]:
    """Segments a batch with every variant and prompt kind; call it inside `inference`.

    Each variant encodes each image once, or takes the embedding that comes in its place.

    Args:
        samples: B images with their masks, or B embeddings, which all variants share.
        prompts: per kind B prompts in image coordinates.
        best_of_three: also yield zero-shot SAM's best of three for `point`, as variant `zero_shot_best_of_3`.
        encoded: told of each variant's inputs and embeddings of the batch, while the variant is active.

    Yields:
        (kind, variant name, position in the batch, logits (H, W) on the model's device).
    """
    inputs = model_inputs(processor, samples)
    prompts = {kind: place_prompts(processor, inputs, items) for kind, items in prompts.items()}
    for variant in variants:
        with variant.active():
            embeddings = embeddings_of(variant.model, inputs)
            if encoded is not None:
                encoded(variant, inputs, embeddings)
            for kind, items in prompts.items():
                merged = image_logits(variant.model, processor, inputs, embeddings, items)
                for position, logits in enumerate(merged):
                    yield kind, variant.name, position, logits
                if best_of_three and kind == "point" and variant.name == "zero_shot":
                    merged = best_of_three_logits(variant.model, processor, inputs, embeddings, items)
                    for position, logits in enumerate(merged):
                        yield kind, "zero_shot_best_of_3", position, logits


def predicted_masks(*args: Any, **kwargs: Any) -> Iterator[tuple[str, str, int, np.ndarray]]:
    """As `predicted_logits`, with masks bool (H, W) in place of the logits."""
    for kind, name, position, logits in predicted_logits(*args, **kwargs):
        yield kind, name, position, (logits > 0).cpu().numpy()


def model_inputs(processor: SamAdaptProcessor, samples: Sequence[Any]) -> BatchFeature:
    """The processor's output for the images of `samples`; for embeddings `image_embeddings` and the sizes alone.

    Args:
        samples: all `EmbeddedSample`, or all with an `image`.
    """
    kept = [sample for sample in samples if isinstance(sample, EmbeddedSample)]
    if not kept:
        return processor([sample.image for sample in samples])
    sizes = [sample.mask.shape for sample in kept]
    return BatchFeature(
        {
            "image_embeddings": ImageEmbeddings.cat([sample.embedding[None] for sample in kept]),
            "original_sizes": torch.tensor(sizes),
            "reshaped_input_sizes": torch.tensor([processor.reshaped_size(size) for size in sizes]),
        }
    )


def embeddings_of(model: nn.Module, inputs: BatchFeature) -> ImageEmbeddings:
    """Image embeddings of `model_inputs` on the model's device: those that it holds, or encoded."""
    if "image_embeddings" in inputs:
        return inputs["image_embeddings"].to(device_of(model))
    return encode(model, inputs["pixel_values"].to(device_of(model)))


def label_maps(
    model: nn.Module,
    processor: SamAdaptProcessor,
    samples: Sequence[Sample | EmbeddedSample],
    encoded: Callable[[ImageEmbeddings], None] | None = None,
) -> list[np.ndarray]:
    """The class of every pixel, uint8 (H, W) per image at its original size; call it inside `inference`.

    Args:
        encoded: told of the embeddings of the images.
    """
    inputs = model_inputs(processor, samples)
    embeddings = embeddings_of(model, inputs)
    if encoded is not None:
        encoded(embeddings)
    logits = segment(model, None, [Prompt("none")] * len(samples), image_embeddings=embeddings)
    return largest_class(processor, inputs, logits)


def largest_class(
    processor: SamAdaptProcessor, inputs: Mapping[str, Any], logits: Sequence[torch.Tensor]
) -> list[np.ndarray]:
    """Logits (K, h, w) per image -> uint8 (H, W) at original size, a class at a time to bound memory."""
    labelled = []
    for image_logits, (original, reshaped) in zip(logits, sizes_of(inputs), strict=True):
        best = torch.full(original, -torch.inf, device=image_logits.device)
        labels = torch.zeros(original, dtype=torch.uint8, device=image_logits.device)
        for label, class_logits in enumerate(image_logits):
            full = processor.post_process_masks([class_logits[None]], [original], [reshaped])[0][0]  # (H, W)
            larger = full > best
            best = torch.where(larger, full, best)
            labels[larger] = label
        labelled.append(labels.cpu().numpy())
    return labelled
