"""Average precision of instance masks, by pycocotools."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from transformers.image_processing_utils import BatchFeature

from ..data.images import IGNORE
from ..data.tiles import Tiles, Window
from ..distributed import of_all_ranks
from ..errors import UserError, require_extra
from ..inference.instances import (
    MIN_AREA,
    POINTS_PER_SIDE,
    Instance,
    InstanceSource,
    coco_content,
    find_instances,
    scene_components,
)
from ..inference.prediction import trains_estimate
from ..inference.tiled import TiledRun, assembled
from ..inference.variants import Variant, inference, variants_of
from ..prompts import Prompt, components, instance_masks
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor
from .measurement import Measurement, measured
from .tiled import own_scenes


if TYPE_CHECKING:
    from ..data import Sample, SegmentationSplit
    from ..data.dataset import OpenSample
    from ..inference.embeddings.split import EmbeddedSample, EmbeddedSplit


Described = tuple[dict[str, Any], list[dict[str, Any]]]  # an image and its annotations, as COCO has them


def evaluate_instances(
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: SegmentationSplit | EmbeddedSplit,
    source: InstanceSource,
    *,
    points_per_side: int = POINTS_PER_SIDE,
    batch_size: int = 4,
    adapted: bool = True,
    zero_shot: bool = True,
    zero_shot_model: nn.Module | None = None,
    precision: str = "no",
    num_workers: int | None = 0,
    progress: bool = True,
    tiles: Tiles | None = None,
) -> dict[str, Any]:
    """Finds the instances of every image and compares them with the true ones.

    The true ones are those that the data set tells apart (COCO files), or else the connected components of at least
    0.05 % of the image. Ignored pixels are left out of the found ones; those that lie mostly on them do not count. In
    a distributed run every rank calls it; all return the same.

    Args:
        model, adapted, zero_shot, zero_shot_model: see `variants_of`.
        source, points_per_side: see `find_instances`.
        tiles: how images are cut; the instances of their tiles are joined, and the smallest true one is 0.05 % of a
            tile.

    Returns:
        `{"source", "objects": n, "zero_shot": {"ap", "ap50", "ap75"}, "adapted": {…}}`, COCO's average precision over
        IoU 0.5 to 0.95, at 0.5 and at 0.75, for at most 100 instances an image; None for a model that was not run.

    Raises:
        UserError: pycocotools is not installed, or the images hold no object.
    """
    require_extra("instances", "average precision")
    variants = variants_of(model, adapted=adapted, zero_shot=zero_shot, zero_shot_model=zero_shot_model)
    found = Instances(processor, variants, split, source, points_per_side)
    how: dict[str, Any] = {"batch_size": batch_size, "precision": precision}
    if tiles is None:
        how |= {"num_workers": num_workers, "progress": progress}
        return measured(found, variants, processor, split, title="instances", **how)
    with inference([variant.model for variant in variants], precision):
        for scene in own_scenes(split, progress, "instances"):
            sample, true_ones = _true_instances(split, scene, tiles)
            found.truth.append(_described(sample, true_ones))
            grid = tiles.grid(scene.size)
            for variant in variants:
                options: Any = {"instances": source, "instance_options": found.options(variant)}
                with variant.active():
                    run = TiledRun(variant.model, processor, scene, grid, Prompt("none"), **options, **how)
                    own = assembled(run, None, False).instances or []
                found.found[variant.name].append(_described(sample, without_ignored(own, sample.mask)))
    return found.result()


class Instances(Measurement):
    """What `evaluate_instances` measures."""

    def __init__(
        self,
        processor: SamAdaptProcessor,
        variants: Sequence[Variant],
        split: SegmentationSplit | EmbeddedSplit,
        source: InstanceSource,
        points_per_side: int = POINTS_PER_SIDE,
    ) -> None:
        self.processor, self.split, self.source, self.points_per_side = processor, split, source, points_per_side
        self.truth: list[Described] = []
        self.found: dict[str, list[Described]] = {variant.name: [] for variant in variants}

    def options(self, variant: Variant) -> dict[str, Any]:
        """Of `find_instances`, for a variant."""
        config = getattr(variant.model, "peft_config", {}).get("default")
        rated = variant.name == "zero_shot" or trains_estimate(config)
        return {"has_estimate": rated, "points_per_side": self.points_per_side}

    def add(self, variant: Variant, inputs: BatchFeature, samples: Sequence[Any], embeddings: ImageEmbeddings) -> None:
        if variant.name == next(iter(self.found)):
            for sample in samples:
                true_ones = [Instance(mask, 1.0) for mask in _true_masks(self.split, sample)]
                self.truth.append(_described(sample, true_ones))
        options = self.options(variant)
        per_image = find_instances(variant.model, self.processor, inputs, embeddings, self.source, **options)
        for sample, own in zip(samples, per_image, strict=True):
            self.found[variant.name].append(_described(sample, without_ignored(own, sample.mask)))

    def result(self) -> dict[str, Any]:
        parts = of_all_ranks((self.truth, self.found))
        truth = [one for part in parts for one in part[0]]
        found = {name: [one for part in parts for one in part[1][name]] for name in self.found}
        objects = sum(len(annotations) for _, annotations in truth)
        if not objects:
            raise UserError(
                "the masks hold no object, so there is no average precision",
                key="instances",
                fix="leave instances out",
            )
        scores = {name: average_precision(truth, own) for name, own in found.items()}
        return {
            "source": self.source,
            "objects": objects,
            "zero_shot": scores.get("zero_shot"),
            "adapted": scores.get("adapted"),
        }


def average_precision(truth: Sequence[Described], found: Sequence[Described]) -> dict[str, float]:
    """`ap`, `ap50` and `ap75` of COCO annotations.

    Args:
        truth, found: per image its entry and its annotations, with `score` in `found`; see `coco_content`.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # pycocotools prints at every step.
    with contextlib.redirect_stdout(io.StringIO()):
        sets = []
        for part in (truth, found):
            coco = COCO()
            annotations = [one | {"image_id": image["id"]} for image, own in part for one in own]
            annotations = [one | {"id": number} for number, one in enumerate(annotations, start=1)]
            coco.dataset = {
                "images": [image for image, _ in truth],
                "annotations": annotations,
                "categories": [{"id": 1}],
            }
            coco.createIndex()
            sets.append(coco)
        evaluation = COCOeval(*sets, iouType="segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {name: max(0.0, float(evaluation.stats[place])) for place, name in enumerate(("ap", "ap50", "ap75"))}


def without_ignored(instances: Sequence[Instance], mask: np.ndarray) -> list[Instance]:
    """Found instances without the pixels that `mask` (H, W) ignores; those with more than half of them there go."""
    known, kept = mask != IGNORE, []
    for instance in instances:
        part = instance.part & known[instance.where.slices]
        if 2 * np.count_nonzero(part) >= np.count_nonzero(instance.part):
            kept.append(dataclasses.replace(instance, part=part))
    return kept


def _true_masks(split: SegmentationSplit | EmbeddedSplit, sample: Sample | EmbeddedSample) -> np.ndarray:
    """bool (n, H, W)."""
    read = getattr(split, "instances", None)
    instances = None if read is None else read(sample.index)
    if instances is None:
        return components(sample.mask, max_objects=sample.mask.size)[0]
    return instance_masks(instances, sample.mask)[0]


def _true_instances(split: Any, scene: OpenSample, tiles: Tiles) -> tuple[Sample, list[Instance]]:
    """A scene as a whole, and its true instances."""
    sample = scene.sample(Window(0, 0, *scene.size))
    numbered = split.instances(scene.index)
    if numbered is not None:
        return sample, [Instance(mask, 1.0) for mask in instance_masks(numbered, sample.mask)[0]]
    truth = (sample.mask > 0) & (sample.mask != IGNORE)
    tile = tiles.grid(scene.size).tile
    return sample, scene_components(truth, truth.astype(np.float32), MIN_AREA * tile[0] * tile[1])


def _described(sample: Sample | EmbeddedSample, instances: Sequence[Instance]) -> Described:
    """The image, numbered from 1, and its annotations: run lengths are small where masks are not."""
    content = coco_content([sample.id], [instances], [sample.mask.shape])
    return content["images"][0] | {"id": sample.index + 1}, content["annotations"]
