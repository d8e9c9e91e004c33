"""Scenes of a split, scored window by window: logits of tiles blended, beside the true mask of each window."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers.image_processing_utils import BatchFeature

from ..data.dataset import OpenSample, Sample
from ..data.scenes import reduced, sample_window
from ..data.tiles import Tiles, Window
from ..distributed import rank_and_world
from ..inference.blending import blended
from ..inference.forward import pool_of, segment
from ..inference.tiled import Route, choose_domain, finite, full_maps, most_common
from ..inference.variants import Variant, domains_of, embeddings_of, predicted_logits, routed
from ..metrics import ConfusionMatrix
from ..prompts import Prompt
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor


BEST_OF_THREE = "zero_shot_best_of_3"
SHOWN = 1024  # longest side of a scene that is looked at
_LABELS = "labels"


class WindowConstant(Protocol):
    """A constant prediction that is asked for by windows."""

    def window(self, size: tuple[int, int], window: Window) -> np.ndarray:
        """(h, w) of an image of `size`."""


def own_scenes(split: Any, progress: bool, title: str = "evaluate") -> Iterator[OpenSample]:
    """Every `world`-th sample of a split from this process's rank on, opened one after the other.

    Args:
        split: a `SegmentationSplit`; embeddings are of whole images, and have nothing to open.
    """
    rank, world = rank_and_world()
    rows = range(rank, len(split), world)
    for index in tqdm(rows, desc=title, unit="image", disable=not progress or rank > 0, leave=False):
        with split.open(index) as scene:
            yield scene


def tiled_maps(
    variants: Sequence[Variant],
    processor: SamAdaptProcessor,
    scene: OpenSample,
    tiles: Tiles,
    kinds: Sequence[str],
    prompts: Callable[[np.ndarray, Window], dict[str, Prompt]],
    *,
    batch_size: int,
    precision: str,
    route: Route,
    domains: Counter[str] | None = None,
) -> Iterator[tuple[Window, np.ndarray, dict[tuple[str, str], torch.Tensor]]]:
    """Segment a scene by every variant and prompt kind; call it inside `inference`.

    Args:
        kinds: of prompts.
        prompts: the true mask of a tile (h, w) and its window -> a prompt of each kind, in pixels of the tile.
        domains: of a pool, grows by how many tiles went to each domain.

    Yields:
        Windows that cover the scene once, each with its true mask uint8 (h, w), and by (kind, variant) its logits
        float32 (h, w).
    """

    def predict(
        images: Sequence[np.ndarray], windows: Sequence[Window]
    ) -> Mapping[tuple[str, str], Sequence[torch.Tensor]]:
        masks = [scene.mask(window) for window in windows]
        samples = [Sample(image, mask, scene.id, scene.index) for image, mask in zip(images, masks)]
        drawn = [prompts(mask, window) for mask, window in zip(masks, windows)]
        per_kind = {kind: [one[kind] for one in drawn] for kind in kinds}
        maps: dict[tuple[str, str], list[torch.Tensor]] = defaultdict(list)
        how: dict[str, Any] = {"best_of_three": True, "encoded": note_domains}
        with routed(pool, domain):
            for kind, name, _, logits in predicted_logits(variants, processor, samples, per_kind, **how):
                maps[kind, name].append(finite(logits)[None])
        return maps

    def note_domains(variant: Variant, inputs: BatchFeature, embeddings: ImageEmbeddings) -> None:
        if domains is not None and not variant.adapter_off:
            domains.update(domains_of(variant.model, embeddings) or [])

    pool = next((variant.model for variant in variants if pool_of(variant.model) is not None), variants[0].model)
    domain = choose_domain(pool, processor, scene, precision)[0] if route == "image" else None
    names = [(kind, variant.name) for variant in variants for kind in kinds]
    if "point" in kinds and any(variant.name == "zero_shot" for variant in variants):
        names.append(("point", BEST_OF_THREE))
    for window, maps in blended(scene, tiles.grid(scene.size), predict, names, batch_size=batch_size):
        yield window, scene.mask(window), {name: logits[0] for name, logits in maps.items()}


def reduced_scene(
    variants: Sequence[Variant],
    processor: SamAdaptProcessor,
    scene: OpenSample,
    tiles: Tiles,
    kind: str,
    prompts: Callable[[np.ndarray, Window], dict[str, Prompt]],
    **how: Any,
) -> tuple[Sample, dict[str, np.ndarray]]:
    """A scene to look at, no side longer than `SHOWN` pixels, and by variant the mask that is predicted of it.

    The image has means of pixels, the masks every n-th. Call it inside `inference`; arguments as in `tiled_maps`.
    """
    picture, step = reduced(scene, SHOWN)
    size = picture.shape[:2]
    truth = np.zeros(size, np.uint8)
    masks = {variant.name: np.zeros(size, bool) for variant in variants}
    for window, mask, maps in tiled_maps(variants, processor, scene, tiles, [kind], prompts, **how):
        sample_window(truth, mask, window, step)
        for name, found in masks.items():
            sample_window(found, (maps[kind, name] > 0).numpy(), window, step)
    return Sample(picture, truth, scene.id, scene.index, scene.path), masks


def reduced_labels(
    model: nn.Module,
    processor: SamAdaptProcessor,
    scene: OpenSample,
    tiles: Tiles,
    num_labels: int,
) -> tuple[Sample, np.ndarray]:
    """As `reduced_scene`, with the label map uint8 (h, w) of a model with classes."""
    picture, step = reduced(scene, SHOWN)
    truth, labels = (np.zeros(picture.shape[:2], np.uint8) for _ in range(2))
    for window, found in label_windows(model, processor, scene, tiles, num_labels, None, 1):
        sample_window(truth, scene.mask(window), window, step)
        sample_window(labels, found, window, step)
    return Sample(picture, truth, scene.id, scene.index, scene.path), labels


def label_windows(
    model: nn.Module,
    processor: SamAdaptProcessor,
    scene: OpenSample,
    tiles: Tiles,
    num_labels: int,
    domain: str | None,
    batch_size: int,
    domains: Counter[str] | None = None,
) -> Iterator[tuple[Window, np.ndarray]]:
    """The label map of a scene by windows, uint8 (h, w); call it inside `inference`.

    Args:
        domain: of a pool, where all tiles go; None = where its router sends each.
        domains: of a pool, grows by how many tiles went to each domain.
    """

    def predict(images: Sequence[np.ndarray], windows: Sequence[Window]) -> dict[str, list[torch.Tensor]]:
        inputs = processor(list(images))
        with routed(model, domain):
            embeddings = embeddings_of(model, inputs)
            if domains is not None:
                domains.update(domains_of(model, embeddings) or [])
            low = segment(model, None, [Prompt("none")] * len(images), image_embeddings=embeddings)
        return {_LABELS: full_maps(processor, inputs, low)}

    grid = tiles.grid(scene.size)
    for window, maps in blended(scene, grid, predict, [_LABELS], channels=num_labels, batch_size=batch_size):
        yield window, maps[_LABELS].argmax(dim=0).to(torch.uint8).numpy()


@dataclass(frozen=True)
class LabelledImage:
    """The label map of one image, counted.

    Attributes:
        index, id: of the image in its split.
        counts: of the model's label map beside the truth.
        of_constant: the same of the constant label map; empty where none is scored.
        labels: uint8 (H, W), where it is kept.
        domain: of a pool, the domain that segmented the image, or most of its tiles.
    """

    index: int
    id: str
    counts: ConfusionMatrix
    of_constant: ConfusionMatrix
    labels: np.ndarray | None = None
    domain: str | None = None


def labelled_scenes(
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: Any,
    tiles: Tiles,
    num_labels: int,
    constant: WindowConstant | None,
    *,
    batch_size: int,
    precision: str,
    progress: bool,
    route: Route,
    keep: bool,
) -> Iterator[LabelledImage]:
    """Label maps of scenes, counted window by window; with `keep` they come along."""
    for scene in own_scenes(split, progress):
        domain = choose_domain(model, processor, scene, precision)[0] if route == "image" else None
        counts, of_constant = ConfusionMatrix(num_labels), ConfusionMatrix(num_labels)
        kept = np.zeros(scene.size, np.uint8) if keep else None
        domains: Counter[str] = Counter()
        for window, labels in label_windows(model, processor, scene, tiles, num_labels, domain, batch_size, domains):
            mask = scene.mask(window)
            counts.update(labels, mask)
            if constant is not None:
                of_constant.update(constant.window(scene.size, window), mask)
            if kept is not None:
                kept[window.slices] = labels
        yield LabelledImage(scene.index, scene.id, counts, of_constant, kept, most_common(domains))
