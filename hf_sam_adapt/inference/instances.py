"""Instances after adaptation: of a grid of points, or the connected components of the promptless mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..data.run_length_encoding import encode_runs
from ..data.tiles import Window
from ..prompts import MIN_AREA, Prompt, components
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor
from .forward import segment_scored
from .variants import image_logits, sizes_of


POINTS_PER_SIDE = 16  # of the grid
InstanceSource = Literal["grid", "components"]
POINTS_AT_ONCE = 64
OFFSET = 1.0  # by which a stable mask's threshold may move (SAM's automatic mask generator)
# SAM itself takes 0.88 and 0.95; a small model is less sure, and `min_score` of the user can be higher.
MIN_IOU_ESTIMATE = 0.3
MIN_STABILITY = 0.5
MAX_OVERLAP = 0.7  # IoU of two masks above which the one of lower score goes


@dataclass(frozen=True)
class Instance:
    """One object of an image.

    Attributes:
        part: bool (h, w) of the window in which it lies, not empty; without one, of the whole image.
        score: 0..1, higher is surer.
        window: where `part` is in the image.
        size: (height, width) of the image, with `window`.
    """

    part: np.ndarray
    score: float
    window: Window | None = None
    size: tuple[int, int] | None = None

    @property
    def where(self) -> Window:
        """What `part` shows of the image."""
        return self.window or Window(0, 0, self.part.shape[0], self.part.shape[1])

    @property
    def mask(self) -> np.ndarray:
        """bool (H, W) at original size."""
        if self.window is None or self.size is None:
            return self.part
        mask = np.zeros(self.size, bool)
        mask[self.window.slices] = self.part
        return mask

    @property
    def box(self) -> list[int]:
        """x, y, width, height, as COCO writes it."""
        columns, rows = np.flatnonzero(self.part.any(axis=0)), np.flatnonzero(self.part.any(axis=1))
        corner = [self.where.left + int(columns[0]), self.where.top + int(rows[0])]
        return [*corner, int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


def find_instances(
    model: nn.Module,
    processor: SamAdaptProcessor,
    inputs: Mapping[str, Any],
    embeddings: ImageEmbeddings,
    source: InstanceSource,
    *,
    has_estimate: bool = False,
    points_per_side: int = POINTS_PER_SIDE,
    cut: float = 0.0,
) -> list[list[Instance]]:
    """The instances of B images, surest first; call it inside `inference`.

    `grid`: a mask for each point of a grid (mask token 0), kept where it holds its point, is at least 0.05 % of the
    image, stable (see `stability`) and, by an IoU estimate that was trained, good; then `mask_nms`. The score is that
    estimate, or else the stability. `components`: of the promptless mask, by their mean probability.

    Args:
        inputs: the processor's output for the images, or `model_inputs` of embeddings; its sizes alone are read.
        embeddings: theirs, by `model`.
        has_estimate: whether the model's IoU estimate means anything: zero-shot SAM's, or `train_iou_head`.
        points_per_side: of the grid.
        cut: logit above which a pixel belongs to a mask.
    """
    if source == "components":
        promptless = [Prompt("none")] * len(embeddings)
        merged = image_logits(model, processor, inputs, embeddings, promptless)
        return [component_instances(logits, cut) for logits in merged]
    found = []
    for image, (size, inside) in enumerate(sizes_of(inputs)):
        prompt = processor.transform_prompts([point_grid(size, points_per_side)], [size])[0]
        logits, scores = _decode_grid(model, embeddings[image : image + 1], prompt, inside, processor, has_estimate)
        instances = []
        for part, part_scores in zip(logits.split(POINTS_AT_ONCE), scores.split(POINTS_AT_ONCE)):
            full = processor.post_process_masks([part], [size], [inside])[0] > cut
            instances += [Instance(m, s) for m, s in zip(full.cpu().numpy(), part_scores.tolist()) if m.any()]
        found.append(instances)
    return found


def component_instances(logits: torch.Tensor, cut: float = 0.0) -> list[Instance]:
    """The 8-connected components of a mask of at least 0.05 % of the image: float (H, W) -> instances."""
    foreground, probability = ((logits > cut).cpu().numpy(), logits.float().sigmoid().cpu().numpy())
    masks, _ = components(foreground.astype(np.uint8), max_objects=probability.size)
    instances = [Instance(mask, float(probability[mask].mean())) for mask in masks]
    return sorted(instances, key=lambda instance: -instance.score)


def scene_components(foreground: np.ndarray, probability: np.ndarray, smallest: float) -> list[Instance]:
    """The 8-connected components of a large mask, each in a window of its own: bool and float (H, W) -> instances.

    Args:
        smallest: pixels that a component has at least.
    """
    from scipy import ndimage

    numbered, count = ndimage.label(foreground, structure=np.ones((3, 3), bool), output=np.int32)
    areas = np.bincount(numbered.ravel(), minlength=count + 1)
    instances = []
    for number, rows_columns in enumerate(ndimage.find_objects(numbered), start=1):
        if areas[number] >= smallest:
            rows, columns = rows_columns
            part = numbered[rows_columns] == number
            window = Window(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start)
            score = float(probability[rows_columns][part].mean())
            instances.append(Instance(part, score, window, foreground.shape))
    return sorted(instances, key=lambda instance: -instance.score)


def point_grid(size: tuple[int, int], points_per_side: int) -> Prompt:
    """The middles of a grid of cells over an image of `size` (height, width): a prompt of one point an object."""
    height, width = size
    places = (np.arange(points_per_side) + 0.5) / points_per_side
    columns, rows = np.meshgrid(places * width - 0.5, places * height - 0.5)
    points = np.stack([columns.ravel(), rows.ravel()], axis=-1).astype(np.float32)[:, None]  # (n, 1, 2)
    return Prompt("point", points=points, point_labels=np.ones((len(points), 1), np.int64))


def stability(logits: torch.Tensor, offset: float) -> torch.Tensor:
    """IoU of each mask at the thresholds `offset` and `-offset`: (n, h, w) -> (n,), 0 where both are empty."""
    inner, outer = ((logits > threshold).sum(dim=(1, 2)) for threshold in (offset, -offset))
    return inner / outer.clamp(min=1)


def mask_nms(masks: torch.Tensor, scores: torch.Tensor, max_overlap: float = MAX_OVERLAP) -> torch.Tensor:
    """Greedy non-maximum suppression by the IoU of masks, which tells touching objects apart where boxes cannot.

    Args:
        masks: bool (n, h, w).
        scores: (n,).

    Returns:
        Indices of the masks that stay, by falling score.
    """
    order = scores.argsort(descending=True, stable=True)
    flat = masks[order].flatten(1).float()  # (n, h w)
    areas, shared = flat.sum(1), flat @ flat.T
    overlaps = (shared / (areas[:, None] + areas - shared).clamp(min=1)).tolist()
    kept: list[int] = []
    for place in range(len(order)):
        if all(overlaps[place][other] <= max_overlap for other in kept):
            kept.append(place)
    return order[kept]


def coco_content(names: Sequence[str], found: Sequence[Sequence[Instance]], sizes: Sequence[Any]) -> dict[str, Any]:
    """A COCO file of the instances of images: compressed run lengths, each with its `score`.

    Args:
        names: file names of the images.
        sizes: (height, width) of each.
    """
    images = [
        {"id": number, "file_name": name, "height": int(size[0]), "width": int(size[1])}
        for number, (name, size) in enumerate(zip(names, sizes), start=1)
    ]
    annotations: list[dict[str, Any]] = []
    for number, instances in enumerate(found, start=1):
        for instance in instances:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": encode_runs(instance.mask),
                    "bbox": instance.box,
                    "area": int(instance.part.sum()),
                    "iscrowd": 0,
                    "score": instance.score,
                }
            )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}


def _decode_grid(
    model: nn.Module,
    embedding: ImageEmbeddings,
    prompt: Prompt,
    inside: tuple[int, int],
    processor: SamAdaptProcessor,
    has_estimate: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, h, w) and scores (n,) of the masks that stay, by falling score; `embedding` of one image."""
    side, cells = processor.image_size, processor.mask_size
    height, width = (-(-length * cells // side) for length in inside)  # without the padding
    kept, kept_scores = [], []
    for start in range(0, len(prompt), POINTS_AT_ONCE):
        part = prompt.select(np.arange(start, min(start + POINTS_AT_ONCE, len(prompt))))
        ((logits, estimates),) = segment_scored(model, None, [part], image_embeddings=embedding)
        window = logits[:, :height, :width].float()
        stable = stability(window, OFFSET)
        masks = window > 0
        x, y = (torch.as_tensor(part.points)[:, 0] * cells // side).long().clamp(min=0).to(logits.device).T
        holds = masks[torch.arange(len(part)), y.clamp(max=height - 1), x.clamp(max=width - 1)]
        good = holds & (stable >= MIN_STABILITY) & (masks.sum(dim=(1, 2)) >= MIN_AREA * height * width)
        if has_estimate:
            good &= estimates.float() >= MIN_IOU_ESTIMATE
        kept.append(logits[good])
        kept_scores.append((estimates.float() if has_estimate else stable)[good].clamp(0, 1))
    logits, scores = torch.cat(kept), torch.cat(kept_scores)
    chosen = mask_nms(logits[:, :height, :width] > 0, scores)
    return logits[chosen], scores[chosen]
