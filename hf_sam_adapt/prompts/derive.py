"""Prompts that an annotator with the ground truth at hand would give: those of every evaluation."""

from __future__ import annotations

import numpy as np

from ..data.encoding import decode_masks
from ..data.images import IGNORE
from ..names import check_prompt_kinds
from .prompt import Prompt


MIN_AREA = 0.0005  # components below 0.05 % of the image are noise of the annotation
MAX_OBJECTS = 32  # of an image


def derive_prompts(
    mask: np.ndarray,
    kind: str,
    *,
    num_labels: int | None = None,
    rng: np.random.Generator | None = None,
    max_objects: int = MAX_OBJECTS,
    mask_values: str = "auto",
) -> Prompt:
    """Prompts that an annotator with the truth at hand would give.

    One object per 8-connected component that covers at least 0.05 % of the image, the `max_objects` largest, largest
    first. Ignored pixels belong to no object. With `num_labels` the components are found in each class above 0.

    Args:
        mask: uint8 (H, W), classes 0..K-1 and 255 = ignore.
        kind: "none", "box" (tight, inclusive), "point" (the pixel farthest from the component's border) or "mask" (the
            component after a random dilation or erosion).
        num_labels: number of classes with the background, None = binary (every value in 1..254 is foreground).
        rng: draws the degradation of "mask"; a fixed seed when None.
        max_objects: most objects per image.
        mask_values: "auto" reads a mask that holds 0 and 255 alone as foreground, with a warning; "index" does not.

    Returns:
        `Prompt` in image coordinates, with `targets` and `labels` set; n = 0 when no component is large enough.
    """
    check_prompt_kinds([kind])
    if kind == "none":
        return Prompt("none")
    (mask,) = decode_masks([(mask, False)], mask_values)
    targets, labels, left_out = _components(mask, num_labels, max_objects)
    prompt = Prompt(kind, targets=targets, labels=labels, left_out=left_out)
    if kind == "box":
        prompt.boxes = np.stack([tight_box(t) for t in targets]) if len(targets) else np.zeros((0, 4), np.float32)
    elif kind == "point":
        points = [inner_point(t) for t in targets]
        prompt.points = np.stack(points)[:, None] if points else np.zeros((0, 1, 2), np.float32)  # (n, 1, 2)
        prompt.point_labels = np.ones((len(targets), 1), np.int64)
    else:
        rng = np.random.default_rng(0) if rng is None else rng
        prompt.masks = np.stack([degrade(t, rng) for t in targets]) if len(targets) else targets
    return prompt


def components(
    mask: np.ndarray, *, num_labels: int | None = None, max_objects: int = MAX_OBJECTS
) -> tuple[np.ndarray, np.ndarray]:
    """Connected components of `mask` (uint8 (H, W)), largest first: bool (n, H, W) and their classes int64 (n,)."""
    return _components(mask, num_labels, max_objects)[:2]


def _components(
    mask: np.ndarray, num_labels: int | None, max_objects: int
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """What `components` returns, and the number of those that are too small or too many, with their pixels."""
    from scipy import ndimage

    smallest = MIN_AREA * mask.size
    found = []  # (area, class, component image, number in it)
    for label in range(1, num_labels or 2):
        foreground = (mask == label) if num_labels else (mask > 0) & (mask != IGNORE)
        numbered, count = ndimage.label(foreground, structure=np.ones((3, 3), bool))
        areas = np.bincount(numbered.ravel(), minlength=count + 1)
        found += [(areas[i], label, numbered, i) for i in range(1, count + 1)]
    found.sort(key=lambda item: -item[0])
    kept = [item for item in found if item[0] >= smallest][:max_objects]
    left_out = len(found) - len(kept), int(sum(item[0] for item in found[len(kept) :]))
    targets = [numbered == i for _, _, numbered, i in kept]
    stacked = np.stack(targets) if targets else np.zeros((0, *mask.shape), bool)
    return stacked, np.array([label for _, label, _, _ in kept], np.int64), left_out


def degrade(target: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dilate or erode `target` (bool (H, W), not empty) by a pixel up to a sixth of its width, sqrt(area).

    The image's border does not count as the object's. An erosion that leaves nothing returns the target itself.
    """
    from scipy import ndimage

    radius = rng.uniform(1, max(1.0, np.sqrt(target.sum()) / 6))
    dilate = rng.random() < 0.5
    x1, y1, x2, y2 = tight_box(target).astype(int)
    margin = int(radius) + 1
    window = np.s_[max(0, y1 - margin) : y2 + margin + 1, max(0, x1 - margin) : x2 + margin + 1]
    inside = target[window]
    changed = target.copy()
    if dilate:
        changed[window] = ndimage.distance_transform_edt(~inside) <= radius
    elif not inside.all():
        eroded = ndimage.distance_transform_edt(inside) > radius
        if eroded.any():
            changed[window] = eroded
    return changed


def tight_box(target: np.ndarray) -> np.ndarray:
    """bool (H, W) -> float32 (4,), inclusive pixel indices x1, y1, x2, y2."""
    columns = np.flatnonzero(target.any(axis=0))
    rows = np.flatnonzero(target.any(axis=1))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


def inner_point(target: np.ndarray) -> np.ndarray:
    """bool (H, W) -> float32 (2,): (x, y) of the pixel farthest from the border; the image's edge is a border too."""
    from scipy import ndimage

    x1, y1, x2, y2 = tight_box(target).astype(int)
    window = np.pad(target[y1 : y2 + 1, x1 : x2 + 1], 1)
    distance = ndimage.distance_transform_edt(window)
    row, column = np.unravel_index(distance.argmax(), distance.shape)
    return np.array([column - 1 + x1, row - 1 + y1], np.float32)
