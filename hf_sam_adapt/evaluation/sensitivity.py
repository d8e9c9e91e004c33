"""Whether a model still listens to its prompt: the same object with its own prompt, another object's, and none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from transformers.image_processing_utils import BatchFeature

from ..data.images import IGNORE
from ..distributed import of_all_ranks
from ..inference.forward import segment
from ..inference.variants import Variant, variants_of
from ..prompts import Prompt, derive_prompts
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor
from .measurement import Measurement, measured


if TYPE_CHECKING:
    from ..data import Sample, SegmentationSplit
    from ..inference.embeddings.split import EmbeddedSample, EmbeddedSplit

MAX_OBJECTS = 8  # of an image that are prompted


@dataclass(frozen=True)
class Answer:
    """What one object's prompt gave.

    Attributes:
        index: of the image in the split.
        iou: `own`, `moved` (the prompt of another object of the image) and `removed` (no prompt), each against the
            object; `moved` is missing for the only object of an image.
        change: `moved` and `removed`, 1 - IoU of that mask against the mask of the object's own prompt.
    """

    index: int
    iou: dict[str, float]
    change: dict[str, float]


def prompt_sensitivity(
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: SegmentationSplit | EmbeddedSplit,
    kind: str = "box",
    *,
    batch_size: int = 4,
    adapted: bool = True,
    zero_shot: bool = True,
    zero_shot_model: nn.Module | None = None,
    precision: str = "no",
    num_workers: int | None = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Moves each object's prompt to another object and takes it away, and measures how the mask changes.

    A model that has forgotten its prompts gives the same mask each time: `change` near 0, the three IoUs equal. One
    that follows them leaves the object when its prompt does: `iou.moved` near 0, `change.moved` near 1. Each image is
    encoded once. In a distributed run every rank calls it; all return the same.

    Args:
        model, adapted, zero_shot, zero_shot_model: see `variants_of`.
        split: images with masks, or their embeddings; of each its 8 largest connected components are the objects.
        kind: "box" or "point".

    Returns:
        `{"prompt": kind, "objects": n, "pairs": m, "zero_shot": {"iou": {"own", "moved", "removed"}, "change":
        {"moved", "removed"}}, "adapted": {…}}`, means over the n objects, of `moved` over the m that are not alone;
        None where there is none to average, and for a model that was not run.
    """
    variants = variants_of(model, adapted=adapted, zero_shot=zero_shot, zero_shot_model=zero_shot_model)
    how: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "num_workers": num_workers}
    measurement = Sensitivity(processor, variants, kind)
    return measured(measurement, variants, processor, split, title="sensitivity", progress=progress, **how)


class Sensitivity(Measurement):
    """What `prompt_sensitivity` measures."""

    def __init__(self, processor: SamAdaptProcessor, variants: Sequence[Variant], kind: str) -> None:
        self.processor, self.kind = processor, kind
        self.answers: dict[str, list[Answer]] = {variant.name: [] for variant in variants}

    def add(self, variant: Variant, inputs: BatchFeature, samples: Sequence[Any], embeddings: ImageEmbeddings) -> None:
        prompts = [
            derive_prompts(sample.mask, self.kind, max_objects=MAX_OBJECTS, mask_values="index") for sample in samples
        ]
        masks = own_and_removed(variant.model, self.processor, inputs, embeddings, prompts)
        for sample, prompt, (own, removed) in zip(samples, prompts, masks):
            self.answers[variant.name] += _answers(sample, np.asarray(prompt.targets), own, removed)

    def result(self) -> dict[str, Any]:
        parts = of_all_ranks(self.answers)
        answers = {name: [one for part in parts for one in part[name]] for name in self.answers}
        first = next(iter(answers.values()))
        found = {name: _means(answers[name]) if answers.get(name) else None for name in ("zero_shot", "adapted")}
        pairs = sum("moved" in answer.iou for answer in first)
        return {"prompt": self.kind, "objects": len(first), "pairs": pairs, **found}


def own_and_removed(
    model: nn.Module,
    processor: SamAdaptProcessor,
    inputs: BatchFeature,
    embeddings: ImageEmbeddings,
    prompts: Sequence[Prompt],
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Masks at original size, bool (n, H, W) with the prompt of each object and (H, W) without a prompt, per image."""
    sizes, reshaped = inputs["original_sizes"], inputs["reshaped_input_sizes"]
    ready = processor.transform_prompts(prompts, sizes)
    found = []
    for parts in (ready, [Prompt("none")] * len(ready)):
        logits = segment(model, None, parts, image_embeddings=embeddings)
        full = processor.post_process_masks(logits, sizes, reshaped)
        found.append([(one > 0).cpu().numpy() for one in full])
    return [(own, removed[0]) for own, removed in zip(*found, strict=True)]


def _answers(
    sample: Sample | EmbeddedSample, targets: np.ndarray, own: np.ndarray, removed: np.ndarray
) -> list[Answer]:
    known = sample.mask != IGNORE
    answers = []
    for number, (target, mask) in enumerate(zip(targets, own)):
        others = {"removed": removed}
        if len(targets) > 1:
            others["moved"] = own[(number + 1) % len(own)]
        iou = {"own": _iou(mask, target, known)} | {name: _iou(one, target, known) for name, one in others.items()}
        change = {name: 1 - _iou(mask, one, known) for name, one in others.items()}
        answers.append(Answer(sample.index, iou, change))
    return answers


def _iou(one: np.ndarray, other: np.ndarray, known: np.ndarray) -> float:
    union = ((one | other) & known).sum()
    return float((one & other & known).sum() / union) if union else 1.0


def _means(answers: Sequence[Answer]) -> dict[str, dict[str, float | None]]:
    def mean(values: list[float]) -> float | None:
        return float(np.mean(values)) if values else None

    iou, change = ([getattr(answer, name) for answer in answers] for name in ("iou", "change"))
    return {
        "iou": {name: mean([one[name] for one in iou if name in one]) for name in ("own", "moved", "removed")},
        "change": {name: mean([one[name] for one in change if name in one]) for name in ("moved", "removed")},
    }
