"""Scores zero-shot and adapted SAM on the images of a split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import nn
from torch.utils.data import Dataset
from transformers.image_processing_utils import BatchFeature

from ..data.images import IGNORE
from ..data.tiles import Tiles, Window
from ..distributed import of_all_ranks, own_batches
from ..errors import UserError
from ..inference.tiled import Route, most_common
from ..inference.variants import Variant, domains_of, inference, predicted_logits, variants_of
from ..metrics import ConstantMask, Overlap, boundary_overlap, gathered, make_metric, mean_overlap, overlap
from ..metrics.stream import StreamingMetric
from ..metrics.volume import TOLERANCE
from ..names import check_metrics
from ..prompts import Prompt, derive_prompts
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor
from .measurement import Measurement
from .objects import ObjectCount
from .tiled import own_scenes, tiled_maps
from .volumes import is_of_volumes, pack, score_volumes, summary


if TYPE_CHECKING:
    from ..data import Sample, SegmentationSplit
    from ..data.dataset import OpenSample
    from ..inference.embeddings.split import EmbeddedSample, EmbeddedSplit


T = TypeVar("T")


@dataclass(frozen=True)
class ImageRecord:
    """The scores of one image.

    Attributes:
        index: its place in the split.
        id: its name.
        scores: per prompt kind, per variant (the names in `EvalResult.test`), the pixel counts.
        boundaries: the same of the masks' boundaries; empty unless they were asked for.
        labelled: whether the mask holds anything but 255 = ignore.
        domain: of a pool, the domain that segmented the image, or most of its tiles; None otherwise.
        masks: per prompt kind and variant the mask by `pack`, of slices of volumes; empty for other images.
        objects: how many of its objects have a prompt, and how many have none.
    """

    index: int
    id: str
    scores: dict[str, dict[str, Overlap]]
    boundaries: dict[str, dict[str, Overlap]] = field(default_factory=dict)
    labelled: bool = True
    domain: str | None = None
    masks: dict[str, dict[str, bytes]] = field(default_factory=dict, repr=False)
    objects: ObjectCount = ObjectCount()


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found.

    Attributes:
        test: the part `test` of `metrics.json`. Per prompt kind `zero_shot` and `adapted`, each `{"iou", "dice"}` (and
            `"biou"` if boundaries were asked for), means over the images as fractions 0..1, or None where that model
            was not run; for `none` also `constant`, if it was given, and the scores of the `metrics` asked for; for
            `point` also `zero_shot_best_of_3`, zero-shot SAM with the one of its three masks whose IoU it estimates
            highest (the adapted model has no trained estimate to choose by). Images that are ignored everywhere do not
            count.
        records: one per image, in the order of the split.
        volumes: of slices of volumes per (prompt kind, variant) what `score_volumes` returns; `test` has their means
            under `volumes` of the variant.
    """

    test: dict[str, dict[str, dict[str, Any] | None]]
    records: list[ImageRecord]
    volumes: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)

    def empty_facts(self) -> dict[str, Any]:
        """The part `without_foreground` of `metrics.json`: images whose truth is empty, on how many of them something
        is found, and the mean IoU of the others, by the first kind of prompts; empty where there are none."""
        kind = next(iter(self.test))
        name = next(name for name in ("adapted", "zero_shot") if self.test[kind][name] is not None)
        scores = [record.scores[kind][name] for record in self.records if record.labelled]
        empty = [one for one in scores if not one.truth]
        if not empty:
            return {}
        others = mean_overlap([one for one in scores if one.truth])["iou"]
        found = sum(one.prediction > 0 for one in empty)
        return {"images": len(empty), "of": len(scores), "with_findings": found, "iou_of_others": others}

    @property
    def objects(self) -> ObjectCount:
        """Of all images that are scored."""
        return ObjectCount.total(record.objects for record in self.records if record.labelled)


class _Prompted(Dataset):
    """Samples with their derived prompts, so that worker processes do both."""

    def __init__(self, split: SegmentationSplit | EmbeddedSplit, kinds: Sequence[str], seed: int) -> None:
        self.split, self.kinds, self.seed = split, kinds, seed

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[int, Sample | EmbeddedSample, dict[str, Prompt]]:
        sample = self.split[index]
        return index, sample, prompts_of(sample.mask, self.kinds, index, self.seed)


def prompts_of(
    mask: np.ndarray, kinds: Sequence[str], index: int, seed: int = 0, place: Sequence[int] = ()
) -> dict[str, Prompt]:
    """Prompts of every kind for image `index`, or the part of it at `place`; equal at every call, in any process."""
    draws = {kind: np.random.default_rng([seed, index, *place]) for kind in kinds}
    return {kind: derive_prompts(mask, kind, rng=draws[kind], mask_values="index") for kind in kinds}


def evaluate(
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: SegmentationSplit | EmbeddedSplit,
    prompts: Sequence[str],
    *,
    batch_size: int = 4,
    adapted: bool = True,
    zero_shot: bool = True,
    zero_shot_model: nn.Module | None = None,
    constant: ConstantMask | None = None,
    boundary: bool = False,
    metrics: Sequence[str] = (),
    beta2: float | None = None,
    ber_threshold: float | None = None,
    precision: str = "no",
    num_workers: int | None = 0,
    seed: int = 0,
    progress: bool = True,
    tiles: Tiles | None = None,
    route: Route = "image",
    surface_tolerance: float = TOLERANCE,
    also: Sequence[Measurement] = (),
) -> EvalResult:
    """Segments every image once per model and prompt kind and scores the masks at original size.

    The masks are those of mask token 0, thresholded at logit 0 after resizing; the objects of an image are merged by
    the larger logit. An image without objects gives an empty prediction for `box`, `point` and `mask`.

    In a distributed run every rank calls it with its unwrapped model; the images are divided among the ranks, each is
    scored once, and all ranks return the same result. Modes and `requires_grad` of the models are left as they were.

    Args:
        model: what is evaluated, on its device; see `variants_of` for `adapted`, `zero_shot` and `zero_shot_model`.
        split: images with masks, read once; or their embeddings by the encoder that `model` shares with its base.
        prompts: kinds among `none`, `box`, `point`, `mask`, derived from the true masks.
        batch_size: images encoded together; no influence on the result.
        constant: from `constant_mask(train split)`, scored beside `none`.
        boundary: also score the boundaries of the masks, as `biou`.
        metrics: names in `PROMPTLESS_METRICS` to compute for the prompt kind `none` besides: of the logits' sigmoid,
            `ber` of the masks.
        beta2: weight β² of precision in the F-measures; None = 0.3, of `weighted_f` 1.
        ber_threshold: probability above which a pixel is foreground for `ber`; None = that of the masks, 0.5.
        precision: "no", "bf16" or "fp16" autocast.
        num_workers: processes that read images and derive prompts.
        seed: of the degradation of `mask` prompts.
        progress: show a bar on the main process.
        tiles: how images are cut; the logits of their tiles are blended, and prompts derived from the true mask of
            each tile. Images are read by windows and scored window by window, except for `boundary` and `metrics`,
            which take a whole map. None = images are not cut.
        route: of a pool with `tiles`, whether its router chooses for each image as a whole or for each tile.
        surface_tolerance: of slices of volumes, millimetres within which surfaces agree.
        also: measurements of whole images that share each variant's encoding; their results are asked of them.

    Raises:
        UserError: metrics that are unknown, or without `none` among the prompts; no mask holds any foreground.
        ValueError: the split is empty, or zero-shot SAM is wanted and not there, or embeddings and two encoders, or
            `tiles` and `also`.
    """
    settings = {"beta2": beta2, "ber_threshold": ber_threshold}
    check_metrics(metrics, prompts, None, **settings)
    if len(split) == 0:
        raise ValueError("the split holds no image to evaluate on")
    if zero_shot_model is not None and hasattr(split, "store"):
        raise ValueError("zero_shot_model has an encoder of its own: pass a split of images instead of embeddings")
    if tiles is not None and also:
        raise ValueError("`also` measures whole images, and `tiles` cuts them")
    variants = variants_of(model, adapted=adapted, zero_shot=zero_shot, zero_shot_model=zero_shot_model)
    names = [variant.name for variant in variants] + (["constant"] if constant is not None else [])
    streams = {name: {metric: make_metric(metric, **settings) for metric in metrics} for name in names}
    records: list[ImageRecord] = []
    prompted = _Prompted(split, prompts, seed)
    with inference([variant.model for variant in variants], precision):
        keep = is_of_volumes(split)
        if tiles is None:
            for batch in own_batches(prompted, batch_size, num_workers, progress=progress):
                records += _score_batch(variants, processor, batch, constant, boundary, streams, keep, also)
        else:
            for scene in own_scenes(split, progress):
                options: Any = {"seed": seed, "batch_size": batch_size, "precision": precision, "route": route}
                options |= {"boundary": boundary, "keep": keep}
                records.append(_score_scene(variants, processor, scene, tiles, prompts, constant, streams, **options))
    records = _gather(records)
    scored = [record for record in records if record.labelled]
    if not any(one.truth for record in scored for kind in record.scores.values() for one in kind.values()):
        raise no_foreground(len(records))
    test = _means(scored, prompts)
    for name, own in streams.items():
        for metric in own.values():
            test["none"][name] = (test["none"][name] or {}) | gathered(metric).compute()
    volumes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kind, name in ((kind, name) for kind, masks in records[0].masks.items() for name in masks):
        packed = [record.masks[kind][name] for record in records]
        rows = volumes[kind, name] = score_volumes(split, packed, tolerance=surface_tolerance)
        test[kind][name] = (test[kind][name] or {}) | {"volumes": summary(rows)}
    return EvalResult(test, records, volumes)


def no_foreground(images: int) -> UserError:
    """The error for a split on which a model that finds nothing would be right."""
    return UserError(
        f"none of the {images} masks that are scored holds any foreground, so that finding nothing would be right",
        fix="add images with objects, or check the masks, mask_values and label_map",
        code="no-foreground",
    )


def _score_batch(
    variants: Sequence[Variant],
    processor: SamAdaptProcessor,
    batch: list[tuple[int, Sample | EmbeddedSample, dict[str, Prompt]]],
    constant: ConstantMask | None,
    boundary: bool,
    streams: dict[str, dict[str, StreamingMetric]],
    keep: bool,
    also: Sequence[Measurement],
) -> list[ImageRecord]:
    samples = [sample for _, sample, _ in batch]
    prompts = {kind: [derived[kind] for _, _, derived in batch] for kind in batch[0][2]}
    scores: list[dict[str, dict[str, Overlap]]] = [defaultdict(dict) for _ in batch]
    boundaries: list[dict[str, dict[str, Overlap]]] = [defaultdict(dict) for _ in batch]
    masks: list[dict[str, dict[str, bytes]]] = [defaultdict(dict) for _ in batch]

    def score(kind: str, name: str, position: int, mask: np.ndarray) -> None:
        scores[position][kind][name] = overlap(mask, samples[position].mask)
        if boundary:
            boundaries[position][kind][name] = boundary_overlap(mask, samples[position].mask)

    labelled = [bool((sample.mask != IGNORE).any()) for sample in samples]

    def stream(name: str, position: int, mask: np.ndarray, probabilities: np.ndarray) -> None:
        if not labelled[position]:
            return
        for metric in streams[name].values():
            prediction = probabilities if metric.takes_probabilities else mask
            metric.update(prediction, samples[position].mask)

    domains: list[str | None] = [None] * len(samples)

    def encoded(variant: Variant, inputs: BatchFeature, embeddings: ImageEmbeddings) -> None:
        if not variant.adapter_off:
            domains[:] = domains_of(variant.model, embeddings) or domains
        for measurement in also:
            measurement.add(variant, inputs, samples, embeddings)

    how: dict[str, Any] = {"best_of_three": True, "encoded": encoded}
    for kind, name, position, logits in predicted_logits(variants, processor, samples, prompts, **how):
        mask = (logits > 0).cpu().numpy()
        score(kind, name, position, mask)
        if keep:
            masks[position][kind][name] = pack(mask)
        if kind == "none" and streams[name]:
            stream(name, position, mask, logits.float().sigmoid().cpu().numpy())
    if constant is not None and "none" in prompts:
        for position, sample in enumerate(samples):
            mask = constant.at(*sample.mask.shape)
            score("none", "constant", position, mask)
            stream("constant", position, mask, mask)
    return [
        ImageRecord(
            index,
            sample.id,
            dict(scores[position]),
            dict(boundaries[position]),
            labelled[position],
            domains[position],
            dict(masks[position]),
            ObjectCount.of(derived),
        )
        for position, (index, sample, derived) in enumerate(batch)
    ]


def _score_scene(
    variants: Sequence[Variant],
    processor: SamAdaptProcessor,
    scene: OpenSample,
    tiles: Tiles,
    kinds: Sequence[str],
    constant: ConstantMask | None,
    streams: dict[str, dict[str, StreamingMetric]],
    *,
    boundary: bool,
    keep: bool,
    seed: int,
    **how: Any,
) -> ImageRecord:
    """The record of an image of which windows alone are in memory, but for what takes a whole map.

    Args:
        keep: whether the record has the masks.
    """

    def prompts(mask: np.ndarray, window: Window) -> dict[str, Prompt]:
        derived = prompts_of(mask, kinds, scene.index, seed, window[:2])
        objects.append(ObjectCount.of(derived))
        return derived

    objects: list[ObjectCount] = []
    sums: dict[tuple[str, str], Overlap] = {}
    whole: dict[tuple[str, str], np.ndarray] = {}
    chances: dict[tuple[str, str], np.ndarray] = {}
    domains: Counter[str] = Counter()
    labelled = False
    for window, mask, maps in tiled_maps(variants, processor, scene, tiles, kinds, prompts, domains=domains, **how):
        labelled |= bool((mask != IGNORE).any())
        found = {key: (logits > 0).numpy() for key, logits in maps.items()}
        if constant is not None and "none" in kinds:
            found["none", "constant"] = constant.window(scene.size, window)
        for key, prediction in found.items():
            counts = overlap(prediction, mask)
            sums[key] = counts if key not in sums else sums[key] + counts
            measured = key[0] == "none" and bool(streams[key[1]])
            if boundary or keep or measured:
                whole.setdefault(key, np.zeros(scene.size, bool))[window.slices] = prediction
            if measured:
                shown = maps[key].sigmoid().numpy() if key in maps else prediction
                chances.setdefault(key, np.zeros(scene.size, np.float32))[window.slices] = shown
    truth = scene.mask(Window(0, 0, *scene.size)) if boundary or chances else np.zeros(0)
    for key, map_ in chances.items() if labelled else ():
        for metric in streams[key[1]].values():
            metric.update(map_ if metric.takes_probabilities else whole[key], truth)
    boundaries = {key: boundary_overlap(mask, truth) for key, mask in whole.items()} if boundary else {}
    masks = {key: pack(mask) for key, mask in whole.items() if key[1] != "constant"} if keep else {}
    parts = _by_kind(sums), _by_kind(boundaries), labelled, most_common(domains), _by_kind(masks)
    return ImageRecord(scene.index, scene.id, *parts, ObjectCount.total(objects))


def _by_kind(values: Mapping[tuple[str, str], T]) -> dict[str, dict[str, T]]:
    """Values by (prompt kind, variant) -> by prompt kind, by variant."""
    nested: dict[str, dict[str, T]] = defaultdict(dict)
    for (kind, name), value in values.items():
        nested[kind][name] = value
    return dict(nested)


def _means(records: Sequence[ImageRecord], kinds: Sequence[str]) -> dict[str, dict[str, dict[str, Any] | None]]:
    test: dict[str, dict[str, dict[str, Any] | None]] = {}
    for kind in kinds:
        test[kind] = {"zero_shot": None, "adapted": None}
        for name in records[0].scores[kind]:
            means = mean_overlap([record.scores[kind][name] for record in records])
            if kind in records[0].boundaries:
                means["biou"] = mean_overlap([record.boundaries[kind][name] for record in records])["iou"]
            test[kind][name] = means
    return test


def _gather(records: list[ImageRecord]) -> list[ImageRecord]:
    """The records of all ranks in the order of the split."""
    records = [record for part in of_all_ranks(records) for record in part]
    return sorted(records, key=lambda record: record.index)
