"""Prompts that are drawn anew each time an image is trained on."""

from __future__ import annotations

import numpy as np

from ..data.images import IGNORE
from .derive import MIN_AREA, components, degrade, tight_box
from .prompt import Prompt


BOX_JITTER = 0.1  # standard deviation of a box's sides, in their lengths (SAM, arXiv 2304.02643, appendix A)
_MAX_JITTER = 20 / 1024  # of the image's longer side: SAM's 20 pixels of its input


def training_prompt(
    mask: np.ndarray,
    kind: str,
    rng: np.random.Generator,
    *,
    jitter: float = BOX_JITTER,
    points: int = 1,
    rounds: int = 0,
    max_objects: int = 8,
    instances: np.ndarray | None = None,
) -> Prompt:
    """A prompt as a user may give it, unlike `derive_prompts`, whose prompts are as good as they can be.

    Args:
        mask: uint8 (H, W), 0 = background, 255 = ignore.
        kind: "box" (tight, then moved, see `jittered`), "point" (any pixels of the object) or "mask" (the object after
            a random dilation or erosion).
        rng: everything is drawn from it.
        jitter: standard deviation of a box's sides, in their lengths.
        points: of each object, for kind "point".
        rounds: corrections that follow, each with a draw of its own.
        max_objects: of more, a random choice.
        instances: uint8 (H, W), the number of the object that a pixel belongs to, 0 and 255 = none; None = the objects
            are the connected components of `mask`.

    Returns:
        `Prompt` in image coordinates with `targets`, `labels` and, with rounds, `draws`.
    """
    targets, labels = components(mask) if instances is None else instance_masks(instances, mask)
    if len(targets) > max_objects:
        chosen = rng.choice(len(targets), max_objects, replace=False)
        targets, labels = targets[chosen], labels[chosen]
    prompt = Prompt(kind, targets=targets, labels=labels)
    if rounds:
        prompt.draws = rng.random((len(targets), rounds), np.float32)
    if kind == "box":
        boxes = [jittered(tight_box(target), target.shape, rng, jitter) for target in targets]
        prompt.boxes = np.stack(boxes) if boxes else np.zeros((0, 4), np.float32)
    elif kind == "point":
        drawn = [any_point(target, rng) for target in targets for _ in range(points)]
        prompt.points = np.array(drawn, np.float32).reshape(len(targets), points, 2)  # (n points, 2) -> (n, points, 2)
        prompt.point_labels = np.ones((len(targets), points), np.int64)
    else:
        prompt.masks = np.stack([degrade(target, rng) for target in targets]) if len(targets) else targets
    return prompt


def instance_masks(instances: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The objects of an instance map by their numbers: bool (n, H, W), their classes int64 (n,), all 1.

    Args:
        instances: uint8 (H, W), 0 and 255 = none.
        mask: uint8 (H, W); an object has no background and no ignored pixels, and at least 0.05 % of the image.
    """
    counted = np.where((mask > 0) & (mask != IGNORE) & (instances != IGNORE), instances, 0)
    areas = np.bincount(counted.ravel(), minlength=IGNORE)
    numbers = np.flatnonzero(areas[1:] >= MIN_AREA * mask.size) + 1
    return counted == numbers[:, None, None], np.ones(len(numbers), np.int64)


def jittered(box: np.ndarray, size: tuple[int, int], rng: np.random.Generator, jitter: float) -> np.ndarray:
    """Move each coordinate of `box` (4,) by a normal draw, at most 20/1024 of the image's longer side; float32 (4,).

    The result stays inside the image of `size` (height, width), its corners in their order.
    """
    length = np.tile(box[2:] - box[:2] + 1, 2)  # width, height, width, height
    limit = _MAX_JITTER * max(size)
    moved = box + (jitter * length * rng.standard_normal(4)).clip(-limit, limit)
    corners = np.sort(moved.reshape(2, 2), axis=0)  # x1 <= x2, y1 <= y2
    return corners.clip(0, [size[1] - 1, size[0] - 1]).reshape(4).astype(np.float32)


def any_point(target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """bool (H, W), not empty -> float32 (2,): (x, y) of one of its pixels, each as likely."""
    places = np.flatnonzero(target)
    row, column = divmod(int(places[rng.integers(len(places))]), target.shape[1])
    return np.array([column, row], np.float32)
