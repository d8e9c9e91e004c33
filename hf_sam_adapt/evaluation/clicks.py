"""A simulated user: each click goes to the middle of the largest error, and the mask so far is the next prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers.image_processing_utils import BatchFeature

from ..data.images import IGNORE
from ..distributed import of_all_ranks
from ..inference.forward import segment
from ..inference.variants import OBJECTS_AT_ONCE, Variant, variants_of
from ..prompts import MAX_OBJECTS, Prompt, components, inner_point
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor
from .measurement import Measurement, measured


if TYPE_CHECKING:
    from ..data import Sample, SegmentationSplit
    from ..inference.embeddings.split import EmbeddedSample, EmbeddedSplit

MARKS = (1, 3, 5)  # clicks after which the IoU is reported
GOALS = (0.8, 0.9)  # IoUs whose number of clicks is reported
Trace = list[float]  # IoU of one object after 1, 2, … clicks


def evaluate_clicks(
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: SegmentationSplit | EmbeddedSplit,
    clicks: int = 20,
    *,
    batch_size: int = 4,
    adapted: bool = True,
    zero_shot: bool = True,
    zero_shot_model: nn.Module | None = None,
    precision: str = "no",
    num_workers: int | None = 0,
    max_objects: int = MAX_OBJECTS,
    progress: bool = True,
) -> dict[str, Any]:
    """Clicks on the objects of every image, each on its own, and scores the masks at original size.

    The first click is on the object's middle, each further one on the middle of the largest connected region that is
    missed or wrongly claimed (`next_click`); the decoder also gets the logits of the mask before. Each image is
    encoded once for all clicks. In a distributed run every rank calls it; all return the same.

    Args:
        model, adapted, zero_shot, zero_shot_model: see `variants_of`.
        split: images with masks, or their embeddings.
        clicks: most clicks on an object.
        max_objects: the largest of an image that are clicked on.

    Returns:
        `{"cap": clicks, "objects": n, "zero_shot": {…}, "adapted": {…}}`, each with `iou` (after 1, 3 and 5 clicks, as
        far as there are so many), `noc` (mean number of clicks until the IoU is 0.8 and 0.9, `cap` where it never is)
        and `failures` (the fraction of objects where it never is); None for a model that was not run or where no
        object was found.
    """
    variants = variants_of(model, adapted=adapted, zero_shot=zero_shot, zero_shot_model=zero_shot_model)
    how: dict[str, Any] = {"batch_size": batch_size, "precision": precision, "num_workers": num_workers}
    measurement = Clicks(processor, variants, clicks, max_objects)
    return measured(measurement, variants, processor, split, title="clicks", progress=progress, **how)


class Clicks(Measurement):
    """What `evaluate_clicks` measures."""

    def __init__(
        self, processor: SamAdaptProcessor, variants: Sequence[Variant], clicks: int, max_objects: int = MAX_OBJECTS
    ) -> None:
        self.processor, self.clicks, self.max_objects = processor, clicks, max_objects
        self.traces: dict[str, list[Trace]] = {variant.name: [] for variant in variants}

    def add(self, variant: Variant, inputs: BatchFeature, samples: Sequence[Any], embeddings: ImageEmbeddings) -> None:
        session = _Session(self.processor, inputs, samples, self.max_objects)
        self.traces[variant.name] += session.run(variant.model, embeddings, self.clicks)

    def result(self) -> dict[str, Any]:
        parts = of_all_ranks(self.traces)
        traces = {name: [trace for part in parts for trace in part[name]] for name in self.traces}
        found = {
            name: click_scores(traces[name], self.clicks) if traces.get(name) else None
            for name in ("zero_shot", "adapted")
        }
        return {"cap": self.clicks, "objects": len(next(iter(traces.values()))), **found}


def click_scores(traces: Sequence[Trace], cap: int) -> dict[str, dict[str, float]]:
    """`iou`, `noc` and `failures` of objects whose IoUs after 1, 2, … clicks are `traces`.

    A trace ends early where there was nothing left to click on, or nothing left to learn: its last IoU stands.
    """
    marks = [mark for mark in MARKS if mark <= cap]
    needed = {goal: [clicks_needed(trace, goal, cap) for trace in traces] for goal in GOALS}
    return {
        "iou": {str(mark): float(np.mean([trace[min(mark, len(trace)) - 1] for trace in traces])) for mark in marks},
        "noc": {
            str(goal): float(np.mean([cap if one is None else one for one in counts]))
            for goal, counts in needed.items()
        },
        "failures": {str(goal): float(np.mean([one is None for one in counts])) for goal, counts in needed.items()},
    }


def clicks_needed(trace: Trace, goal: float, cap: int) -> int | None:
    """The first click after which the IoU is at least `goal`; None if that takes more than `cap`."""
    return next((count for count, iou in enumerate(trace[:cap], start=1) if iou >= goal), None)


def next_click(prediction: np.ndarray, target: np.ndarray, known: np.ndarray) -> tuple[float, float, int] | None:
    """Where a user would click: the middle of the largest wrong region, None where nothing is wrong.

    Regions are 8-connected, of missed and of wrongly claimed pixels apart; their middle is the pixel farthest from
    their border.

    Args:
        prediction, target, known: bool (H, W); pixels that are not known are never wrong.

    Returns:
        x, y, and 1 for a missed or 0 for a wrongly claimed region.
    """
    from scipy import ndimage

    wrong = (prediction != target) & known
    if not wrong.any():
        return None
    rows, columns = np.flatnonzero(wrong.any(axis=1)), np.flatnonzero(wrong.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    largest, region, label = 0, wrong[window], 1
    for value, side in ((1, target), (0, ~target)):
        numbered, _ = ndimage.label(wrong[window] & side[window], structure=np.ones((3, 3), bool))
        areas = np.bincount(numbered.ravel())[1:]
        if len(areas) and areas.max() > largest:
            largest, region, label = int(areas.max()), numbered == areas.argmax() + 1, value
    x, y = inner_point(region)
    return float(x + columns[0]), float(y + rows[0]), label


class _Session:
    """The clicks on the objects of one batch of images, in the order image by image."""

    def __init__(
        self,
        processor: SamAdaptProcessor,
        inputs: BatchFeature,
        samples: Sequence[Sample | EmbeddedSample],
        max_objects: int,
    ) -> None:
        self.processor = processor
        self.sizes = [(int(height), int(width)) for height, width in inputs["original_sizes"]]
        self.reshaped = [(int(height), int(width)) for height, width in inputs["reshaped_input_sizes"]]
        self.known = [sample.mask != IGNORE for sample in samples]
        self.objects = [
            _Objects(components(sample.mask, max_objects=max_objects)[0], known)
            for sample, known in zip(samples, self.known)
        ]

    def run(self, model: nn.Module, embeddings: ImageEmbeddings, clicks: int) -> list[Trace]:
        for number in range(clicks):
            for objects in self.objects:
                objects.click(keep_all=number < max(MARKS))
            busy = [i for i, objects in enumerate(self.objects) if len(objects.active)]
            if not busy:
                break
            prompts = [self.objects[i].prompt() for i in busy]
            prompts = self.processor.transform_prompts(prompts, [self.sizes[i] for i in busy])
            for image, prompt in zip(busy, prompts):
                prompt.masks = self.objects[image].logits
            logits = segment(model, None, prompts, image_embeddings=embeddings[busy])
            for image, low in zip(busy, logits):
                self.objects[image].show(low, self._masks(image, low))
        return [trace for objects in self.objects for trace in objects.traces]

    def _masks(self, image: int, low: torch.Tensor) -> np.ndarray:
        """Logits (n, h, w) -> masks bool (n, H, W) at original size."""
        parts = []
        for part in low.split(OBJECTS_AT_ONCE):
            full = self.processor.post_process_masks([part], [self.sizes[image]], [self.reshaped[image]])[0]
            parts.append((full > 0).cpu().numpy())
        return np.concatenate(parts)


class _Objects:
    """The objects of one image under the clicks of their user.

    Attributes:
        active: numbers of the m objects that are still clicked on; the fields below have a row for each.
        points, labels: float32 (m, clicks, 2) in image coordinates and int64 (m, clicks).
        logits: (m, h, w), None before the first click.
        traces: of all objects.
    """

    def __init__(self, targets: np.ndarray, known: np.ndarray) -> None:
        self.targets, self.known = targets, known
        self.active = np.arange(len(targets))
        self.points = np.zeros((len(targets), 0, 2), np.float32)
        self.labels = np.zeros((len(targets), 0), np.int64)
        self.logits: torch.Tensor | None = None
        self.masks = np.zeros_like(targets)
        self.traces: list[Trace] = [[] for _ in targets]

    def click(self, keep_all: bool) -> None:
        """One more click on each object that has an error; without `keep_all` not on those that reached every goal."""
        kept, points, labels = [], [], []
        for row, number in enumerate(self.active):
            if not keep_all and max(self.traces[number], default=0) >= max(GOALS):
                continue
            found = next_click(self.masks[row], self.targets[number], self.known)
            if found is not None:
                kept.append(row)
                points.append(found[:2])
                labels.append(found[2])
        self.active = self.active[kept]
        self.logits = None if self.logits is None else self.logits[kept]
        self.points = np.concatenate([self.points[kept], np.array(points, np.float32).reshape(-1, 1, 2)], axis=1)
        self.labels = np.concatenate([self.labels[kept], np.array(labels, np.int64).reshape(-1, 1)], axis=1)

    def prompt(self) -> Prompt:
        return Prompt("point", points=self.points, point_labels=self.labels)

    def show(self, logits: torch.Tensor, masks: np.ndarray) -> None:
        """The masks after the click: logits (m, h, w), masks bool (m, H, W)."""
        self.logits, self.masks = logits.float(), masks
        for number, mask in zip(self.active, masks):
            target, found = self.targets[number], mask & self.known
            self.traces[number].append(float((found & target).sum() / (found | target).sum()))
