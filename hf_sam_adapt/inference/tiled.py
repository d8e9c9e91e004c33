"""One image of any size, predicted tile by tile: the maps blended, the objects of neighbouring tiles joined."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..data.scenes import ImageWindows, WholeImage, open_image, reduced
from ..data.tiles import Grid, Window
from ..prompts import Prompt
from ..sam.image_inputs import image_array
from ..sam.processing import SamAdaptProcessor
from .blending import NOTHING, blended
from .forward import pool_of, segment, segment_scored
from .instances import MIN_AREA, Instance, InstanceSource, find_instances, scene_components
from .prediction import TiledPrediction
from .variants import (
    domains_of,
    embeddings_of,
    inference,
    merge_objects,
    place_prompts,
    routed,
    router_scores_of,
    sizes_of,
)


Route = Literal["image", "tile"]
SAME_OBJECT = 0.5  # IoU, where two tiles show the same pixels, from which their instances are one
MAP = "map"


@dataclass
class TiledRun:
    """A pass over the tiles of one image; iterate over it once.

    Attributes:
        model: on its device.
        image: what is read.
        grid: of `image.size`.
        prompt: in pixels of the image. A tile is given the part that lies in it; without one, nothing is found there.
        labels: number of classes, None = one class by prompts.
        domain: of a pool, for all tiles; None = what the router chooses for each tile.
        instances: "grid": also collect the instances of each tile.
        instance_options: arguments of `find_instances`.
        lock: held during each forward.
        domains: of a pool, how many tiles went to each domain.
        routed: of a pool whose router chose, what it made of the whole image, or of each tile so far: domain ->
            probability.
        score: the highest estimate of a mask's IoU so far.
        shown, found: windows of the tiles and, with "grid", their instances.
    """

    model: nn.Module
    processor: SamAdaptProcessor
    image: ImageWindows
    grid: Grid
    prompt: Prompt
    labels: int | None = None
    domain: str | None = None
    batch_size: int = 4
    precision: str = "no"
    instances: InstanceSource | None = None
    instance_options: Mapping[str, Any] = field(default_factory=dict)
    lock: AbstractContextManager = field(default_factory=nullcontext)
    domains: Counter[str] = field(default_factory=Counter)
    routed: list[dict[str, float]] = field(default_factory=list)
    score: float | None = None
    shown: list[Window] = field(default_factory=list)
    found: list[list[Instance]] = field(default_factory=list)

    def __iter__(self) -> Iterator[tuple[Window, torch.Tensor]]:
        """Complete windows, which cover the image once, with their logits float32 (C, h, w) on the CPU."""
        channels = self.labels or 1
        for window, maps in blended(
            self.image, self.grid, self._predict, [MAP], channels=channels, batch_size=self.batch_size
        ):
            yield window, maps[MAP]

    @property
    def router_scores(self) -> dict[str, float] | None:
        """The mean of `routed`; None without."""
        if not self.routed:
            return None
        return {name: float(np.mean([one[name] for one in self.routed])) for name in self.routed[0]}

    def _predict(self, images: Sequence[np.ndarray], windows: Sequence[Window]) -> dict[str, list[torch.Tensor]]:
        inputs = self.processor(list(images))
        with self.lock, inference([self.model], self.precision), routed(self.model, self.domain):
            embeddings = embeddings_of(self.model, inputs)
            self.domains.update(domains_of(self.model, embeddings) or [])
            self.routed += router_scores_of(self.model, embeddings) or []
            prompts = place_prompts(self.processor, inputs, [within(self.prompt, window) for window in windows])
            if self.labels is not None:
                low = segment(self.model, None, prompts, image_embeddings=embeddings)
                return {MAP: full_maps(self.processor, inputs, low)}
            scored = segment_scored(self.model, None, prompts, image_embeddings=embeddings)
            best = [float(scores.max()) for _, scores in scored if len(scores)]
            self.score = max([*best, *([] if self.score is None else [self.score])], default=None)
            if self.instances == "grid":
                per_tile = find_instances(
                    self.model, self.processor, inputs, embeddings, "grid", **self.instance_options
                )
                for window, instances in zip(windows, per_tile, strict=True):
                    self.shown.append(window)
                    self.found.append([placed(instance, window, self.image.size) for instance in instances])
            merged = merge_objects(self.processor, inputs, [masks for masks, _ in scored])
        return {MAP: [finite(logits)[None] for logits in merged]}


def assembled(
    run: TiledRun, classes: Sequence[str] | None, has_estimate: bool, *, cut: float = 0.0, min_score: float = 0.0
) -> TiledPrediction:
    """All of a run as one map in memory, with its instances if they were asked for.

    Args:
        classes: names, None for one class.
        has_estimate: whether the model's estimate of a mask's IoU means anything.
        cut: logit above which a pixel is foreground.
        min_score: instances of a lower score are left out.
    """
    size = run.image.size
    logits = torch.empty((run.labels or 1, *size))
    for window, values in run:
        logits[(slice(None), *window.slices)] = values
    domain = most_common(run.domains)
    if classes is not None:
        labels = logits.argmax(dim=0).to(torch.uint8).numpy()
        shares = np.bincount(labels.ravel(), minlength=len(classes)) / labels.size
        named = dict(zip(classes, shares.tolist()))
        return TiledPrediction(labels, None, named, domain, run.router_scores, None, logits, {}, run.processor)
    mask = (logits[0] > cut).numpy()
    found = None
    if run.instances == "grid":
        found = joined(run.found, run.shown)
    elif run.instances == "components":
        smallest = MIN_AREA * min(size[0] * size[1], run.grid.tile[0] * run.grid.tile[1])
        found = scene_components(mask, logits[0].sigmoid().numpy(), smallest)
    found = None if found is None else [instance for instance in found if instance.score >= min_score]
    score = run.score if has_estimate else None
    return TiledPrediction(mask, score, None, domain, run.router_scores, found, logits[0], {}, run.processor)


def most_common(domains: Counter[str]) -> str | None:
    """The domain that most tiles went to; None where none did."""
    return domains.most_common(1)[0][0] if domains else None


def opened_any(image: Any, channels: int | None) -> AbstractContextManager[ImageWindows]:
    """A file, or an image in any form that the processor takes, to be read by windows."""
    if isinstance(image, (str, Path)):
        return open_image(image, channels)
    return nullcontext(WholeImage(image_array(image, channels)))


def full_maps(
    processor: SamAdaptProcessor, inputs: Mapping[str, Any], low: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Per image logits (K, h, w) of classes -> float32 (K, H, W) at its original size."""
    sizes = sizes_of(inputs)
    return [processor.post_process_masks([logits], [size], [inside])[0] for logits, (size, inside) in zip(low, sizes)]


def finite(logits: torch.Tensor) -> torch.Tensor:
    """`NOTHING` in place of the -inf of a tile in which no object was asked for."""
    return logits.where(logits != -torch.inf, NOTHING)


def choose_domain(
    model: nn.Module, processor: SamAdaptProcessor, image: ImageWindows, precision: str
) -> tuple[str | None, list[dict[str, float]]]:
    """The domain that a pool's router chooses for the whole image, made small, and its probabilities for `TiledRun`;
    None and none for a model that is no pool."""
    if pool_of(model) is None:
        return None, []
    pixels, _ = reduced(image, 2 * processor.image_size)
    with inference([model], precision):
        embeddings = embeddings_of(model, processor([pixels]))
    domains = domains_of(model, embeddings)
    return None if domains is None else domains[0], router_scores_of(model, embeddings) or []


def within(prompt: Prompt, window: Window) -> Prompt:
    """The part of a prompt that lies in a window, in pixels of it: the objects that it shows, each with all it has.

    It shows the object of a box that reaches into it, of a point on the object in it, of a mask with a pixel in it.
    What else an object has beyond the window's edge is moved onto it.
    """
    if prompt.kind == "none":
        return prompt
    corner = np.array([window.left, window.top], np.float32)
    size = np.array([window.width, window.height], np.float32)
    cut: dict[str, Any] = {}
    if prompt.boxes is not None:
        cut["boxes"] = np.asarray(prompt.boxes, np.float32) - np.tile(corner, 2)  # (n, 4)
    if prompt.points is not None:
        cut["points"] = np.asarray(prompt.points, np.float32) - corner  # (n, p, 2)
    for name in ("masks", "targets"):
        if getattr(prompt, name) is not None:
            cut[name] = np.asarray(getattr(prompt, name))[:, window.slices[0], window.slices[1]]
    if prompt.kind == "box":
        shown = ((cut["boxes"][:, 2:] >= 0) & (cut["boxes"][:, :2] < size)).all(axis=1)
    elif prompt.kind == "point":
        inside = ((cut["points"] >= 0) & (cut["points"] < size)).all(axis=2)  # (n, p)
        shown = (inside & (np.asarray(prompt.point_labels) == 1)).any(axis=1)
    else:
        shown = cut["masks"].any(axis=(1, 2))
    for name, end in (("boxes", np.tile(size, 2)), ("points", size)):
        if name in cut:
            places = cut[name]
            cut[name] = np.where((places >= 0) & (places < end), places, places.clip(0, end - 1))
    for name in ("point_labels", "labels", "draws"):
        if getattr(prompt, name) is not None:
            cut[name] = np.asarray(getattr(prompt, name))
    return dataclasses.replace(prompt, **cut).select(shown)


def placed(instance: Instance, window: Window, size: tuple[int, int]) -> Instance:
    """An instance of a tile as one of the image, without the empty rows and columns around it."""
    left, top, width, height = instance.box
    part = instance.mask[top : top + height, left : left + width]
    return Instance(part, instance.score, Window(window.top + top, window.left + left, height, width), size)


def joined(found: Sequence[Sequence[Instance]], windows: Sequence[Window]) -> list[Instance]:
    """The instances of an image from those of its tiles, surest first.

    Two instances of different tiles are one object where, on the pixels that both tiles show, the IoU of their masks
    is at least a half. The object is their union, its score the higher one.

    Args:
        found: of each tile, as `placed` returns them.
        windows: of each tile.
    """
    every = [(tile, instance) for tile, instances in enumerate(found) for instance in instances]
    ends = np.cumsum([len(instances) for instances in found]).tolist()
    leader = list(range(len(every)))

    def root(place: int) -> int:
        while leader[place] != place:
            place = leader[place]
        return place

    for tile, window in enumerate(windows):
        for other in range(tile):
            shared = common(window, windows[other])
            if shared is None:
                continue
            for place in range(ends[tile] - len(found[tile]), ends[tile]):
                for candidate in range(ends[other] - len(found[other]), ends[other]):
                    if _same(every[place][1], every[candidate][1], shared):
                        leader[root(place)] = root(candidate)
    groups: dict[int, list[Instance]] = {}
    for place, (_, instance) in enumerate(every):
        groups.setdefault(root(place), []).append(instance)
    return sorted(map(united, groups.values()), key=lambda instance: -instance.score)


def _same(first: Instance, second: Instance, shared: Window) -> bool:
    """Whether two instances are one object, by the pixels that the tiles of both show."""
    if common(first.where, second.where) is None:
        return False
    masks = cropped(first, shared), cropped(second, shared)
    union = np.count_nonzero(masks[0] | masks[1])
    return bool(union and np.count_nonzero(masks[0] & masks[1]) >= SAME_OBJECT * union)


def united(instances: Sequence[Instance]) -> Instance:
    """Instances of one image as one."""
    if len(instances) == 1:
        return instances[0]
    parts = [instance.where for instance in instances]
    top, left = min(part.top for part in parts), min(part.left for part in parts)
    bottom = max(part.top + part.height for part in parts)
    right = max(part.left + part.width for part in parts)
    window = Window(top, left, bottom - top, right - left)
    mask = np.logical_or.reduce([cropped(instance, window) for instance in instances])
    return Instance(mask, max(instance.score for instance in instances), window, instances[0].size)


def cropped(instance: Instance, window: Window) -> np.ndarray:
    """What an instance has in a window of its image, bool (h, w)."""
    result, shared = np.zeros(window.size, bool), common(instance.where, window)
    if shared is not None:
        to = Window(shared.top - window.top, shared.left - window.left, *shared.size)
        of = Window(shared.top - instance.where.top, shared.left - instance.where.left, *shared.size)
        result[to.slices] = instance.part[of.slices]
    return result


def common(first: Window, second: Window) -> Window | None:
    """The pixels that two windows have in common; None where there are none."""
    top, left = max(first.top, second.top), max(first.left, second.left)
    height = min(first.top + first.height, second.top + second.height) - top
    width = min(first.left + first.width, second.left + second.width) - left
    return Window(top, left, height, width) if height > 0 and width > 0 else None
