"""What a predictor refuses before it reads an image: options, and prompts that are incomplete or lie elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import numpy as np

from ..errors import UserError
from ..prompts import Prompt
from ..sam.image_inputs import checked_objects
from .instances import POINTS_PER_SIDE, InstanceSource


MAKE_PROMPT = "make it by Prompt.box, point, clicks or mask"


def check_options(
    instances: str | None,
    kinds: Iterable[str] = (),
    *,
    batch_size: int = 1,
    points_per_side: int = POINTS_PER_SIDE,
    min_score: float = 0.0,
) -> None:
    """Raise `UserError` for options that no model takes, or that have no effect where no instances are asked for;
    `kinds` are those of the prompts, `none` apart."""
    for key, value in (("batch_size", batch_size), ("points_per_side", points_per_side)):
        if not isinstance(value, (int, np.integer)):
            raise UserError(f"{value!r} is not a whole number", key=key)
        if value < 1:
            raise UserError(f"{value} is below 1", key=key)
    if not isinstance(min_score, (int, float, np.number)) or not 0 <= min_score <= 1:
        raise UserError(f"{min_score} is not a score, 0 to 1", key="min_score")
    for key, given in (("min_score", min_score != 0), ("points_per_side", points_per_side != POINTS_PER_SIDE)):
        if instances is None and given:
            raise UserError("no instances are asked for", key=key, fix="set instances, or leave it out")
    if instances is not None and instances not in (sources := get_args(InstanceSource)):
        raise UserError(f"{instances!r} is unknown", key="instances", fix=f"use {' or '.join(sources)}")
    if instances is not None and kinds:
        raise UserError(f"instances, {min(kinds)}: instances are found without a prompt", fix="give one of them")


def check_prompt(prompt: Prompt, size: tuple[int, int], where: object = "the image") -> None:
    """Raise `UserError` unless `prompt` is complete, its parts are of the same objects, its labels 0 and 1, its boxes'
    corners in order, and its boxes, points and masks those of an image of `size` (H, W)."""
    height, width = size
    fields = {"none": (), "box": prompt.boxes, "point": prompt.points, "mask": prompt.masks}
    if fields.get(prompt.kind) is None:
        raise UserError(f"no prompt of kind {prompt.kind!r}", key="prompts", fix=MAKE_PROMPT)
    if (prompt.points is None) != (prompt.point_labels is None):
        raise UserError("points and their labels go together", key="prompts", fix=MAKE_PROMPT)
    given = _given(prompt)
    count = len(prompt) or max((len(values) for values in given.values()), default=0)
    clicks = given["points"].shape[1] if "points" in given else 0
    wanted = {"boxes": (count, 4), "points": (count, clicks, 2), "point_labels": (count, clicks)}
    for name, values in given.items():
        shape = wanted.get(name, (count, *values.shape[1:]))
        if values.shape != shape or (name == "points" and count and not clicks):
            raise UserError(f"{name} of shape {values.shape} for {count} objects", key="prompts", fix=MAKE_PROMPT)
    if not np.isin(given.get("point_labels", ()), (0, 1)).all():
        raise UserError("labels other than 1 = on the object, 0 = off it", where="point", fix="give 1 or 0 for each")
    boxes = given.get("boxes", np.empty((0, 4)))
    if (boxes[:, :2] > boxes[:, 2:]).any():
        raise UserError("corners in another order", where="box", fix="give x0 y0 x1 y1 with x0 <= x1 and y0 <= y1")
    for places in (boxes, given.get("points", boxes)):
        corners = places.reshape(-1, 2)  # (x, y) pairs
        if not (np.isfinite(corners).all() and (corners >= 0).all() and (corners < [width, height]).all()):
            raise UserError(f"it reaches outside {where}, which has {width}x{height} pixels", where=prompt.kind)
    if "masks" in given:
        checked_objects(given["masks"], size)


def _given(prompt: Prompt) -> dict[str, np.ndarray]:
    """The parts of a prompt as arrays of numbers, each of as many dimensions as it has to have."""
    given = {}
    for name, dimensions in (("boxes", 2), ("points", 3), ("point_labels", 2), ("masks", 3)):
        if (values := getattr(prompt, name)) is None:
            continue
        try:
            given[name] = np.asarray(values)
        except ValueError as error:  # ragged
            raise UserError(f"{name}: rows of several lengths", key="prompts", fix=MAKE_PROMPT) from error
        if given[name].dtype.kind not in "biuf" or given[name].ndim != dimensions:
            found = f"{given[name].dtype} of shape {given[name].shape}"
            raise UserError(f"{name}: {found}, not {dimensions} dimensions", key="prompts", fix=MAKE_PROMPT)
    return given
