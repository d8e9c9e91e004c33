"""The names that keys take, of losses, metrics, classes and drawn data sets, and what can be checked by them alone.

Nothing here needs torch, so that a recipe is read, and the help shown, without it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import yaml

from .errors import UserError


DRAWN = "synthetic:"  # starts the name of a drawn data set

BINARY_LOSSES = ("bce", "bbce", "iou", "dice", "structure", "structure_unweighted", "points")
CLASS_LOSSES = ("ce", "ce_official", "dice", "focal")
DEFAULT_LOSS = {"binary": "structure", "classes": "ce+dice"}

# What `augment` takes.
AUGMENTATIONS = ("flip", "vflip", "rotate", "scale", "crop", "colour", "jitter")

# What `metrics` of a recipe or of `evaluate` takes, for images without prompts.
METRIC_NAMES = ("s_measure", "e_measure", "f_measure", "weighted_f", "mae", "auc", "ber")
# The settings that are keys, and the arguments that they are, by metric.
METRIC_SETTINGS = {"beta2": {"f_measure": "beta2", "weighted_f": "beta2"}, "ber_threshold": {"ber": "threshold"}}
MaskValues = Literal["auto", "binary", "index", "alpha"]
IgnoreBackground = bool | Literal["official"]
PromptKind = Literal["none", "box", "point", "mask"]
PROMPT_KINDS: tuple[str, ...] = get_args(PromptKind)


def check_prompt_kinds(kinds: Sequence[str], num_labels: int | None = None) -> None:
    """Raise `UserError` unless all are known, and of a model with classes, which takes no prompts, only "none"."""
    unknown = [kind for kind in kinds if kind not in PROMPT_KINDS]
    if unknown:
        raise UserError(f"unknown '{unknown[0]}'", key="prompts", fix=f"choose from {', '.join(PROMPT_KINDS)}")
    if not kinds:
        raise UserError("empty", key="prompts", fix=f"name at least one of {', '.join(PROMPT_KINDS)}")
    if num_labels is not None and set(kinds) != {"none"}:
        raise UserError(
            f"{' '.join(kinds)}, but classes are segmented without prompts", key="prompts", fix="leave it unset"
        )


def check_image_size(image_size: int, step: int, user: str) -> None:
    """Raise `UserError`, with the nearest size, unless the side of an input is a multiple of `step` pixels.

    Args:
        user: what needs that.
    """
    if image_size < step or image_size % step:
        nearest = max(step, (image_size + step // 2) // step * step)
        problem = f"{image_size} is not a multiple of {step}, which {user} needs"
        raise UserError(problem, key="image_size", fix=f"the nearest is {nearest}")


def parse_loss(loss: str, channels: int | None = None) -> list[str]:
    """Split a loss name such as `"ce+dice"` into its terms.

    Args:
        loss: a name of `BINARY_LOSSES` or of `CLASS_LOSSES`, or a sum of names of one of them.
        channels: of the logits the loss is for, 1 = binary, K = classes; None = not known yet.

    Raises:
        UserError: a term is unknown, or no model with `channels` channels could use all of them.
    """
    terms = [term.strip() for term in loss.split("+")]
    for term in terms:
        if term not in BINARY_LOSSES + CLASS_LOSSES:
            raise UserError(
                f"unknown term '{term}' in '{loss}'",
                key="loss",
                fix=f"use one of {', '.join(BINARY_LOSSES)}, with num_labels one of {', '.join(CLASS_LOSSES)}, or a "
                "sum such as bce+dice",
            )
    if channels is None:
        if not set(terms) <= set(BINARY_LOSSES) and not set(terms) <= set(CLASS_LOSSES):
            raise UserError(
                f"'{loss}' mixes the losses of binary masks ({', '.join(BINARY_LOSSES)}) with those of several "
                f"classes ({', '.join(CLASS_LOSSES)})",
                key="loss",
            )
        return terms
    names, masks = (BINARY_LOSSES, "binary masks") if channels == 1 else (CLASS_LOSSES, f"masks of {channels} classes")
    for term in terms:
        if term not in names:
            raise UserError(
                f"'{term}' is not a loss for {masks}",
                key="loss",
                fix=f"use one of {', '.join(names)}, or a sum such as {('bce' if channels == 1 else 'ce')}+dice",
            )
    return terms


def check_metrics(
    metrics: Sequence[str], prompts: Sequence[str], num_labels: int | None, **settings: float | None
) -> None:
    """Raise `UserError` unless `metrics` are known, and can be computed for such prompts, masks and settings."""
    unknown = [name for name in metrics if name not in METRIC_NAMES]
    if unknown:
        raise UserError(f"unknown '{unknown[0]}'", key="metrics", fix=f"choose from {', '.join(METRIC_NAMES)}")
    for key, value in settings.items():
        if value is not None and not METRIC_SETTINGS[key].keys() & set(metrics):
            raise UserError(
                f"of {' and '.join(METRIC_SETTINGS[key])}, which metrics does not name",
                key=key,
                fix="add one, or leave it",
            )
        if value is not None and not (0 < value < (1 if key == "ber_threshold" else math.inf)):
            raise UserError(
                f"{value} is out of range",
                key=key,
                fix=f"give {('0 to 1' if key == 'ber_threshold' else 'above 0')}",
            )
    if metrics and "none" not in prompts:
        raise UserError(f"{' '.join(metrics)} are computed without prompts", key="metrics", fix="add none to prompts")
    if metrics and num_labels is not None:
        raise UserError(
            f"{' '.join(metrics)} are of binary masks, and this data set has classes",
            key="metrics",
            fix="leave it out",
        )


def check_tile(tile: int | str | None, overlap: int | str | None) -> None:
    """Raise `UserError` for tiles of no pixels, and an overlap without tiles or not smaller than them."""
    if tile is None and overlap is not None:
        raise UserError(f"{overlap}, but images are not cut", key="overlap", fix="set tile, or leave it out")
    if isinstance(tile, int) and tile < 1:
        raise UserError(f"{tile} is below 1", key="tile")
    if isinstance(overlap, int) and (overlap < 0 or (isinstance(tile, int) and overlap >= tile)):
        limit = f"smaller than the tile of {tile} pixels" if isinstance(tile, int) else "at least 0"
        raise UserError(f"{overlap} is not {limit}", key="overlap", fix="an eighth of the tile is usual")


def check_route(route: str, tile: object) -> None:
    """Raise `UserError` where tiles are to be routed and there are none, or the choice is unknown."""
    if route not in ("image", "tile"):
        raise UserError(f"{route!r} is unknown", key="route", fix="use image or tile")
    if route == "tile" and tile is None:
        raise UserError("images are not cut into tiles", key="route", fix="set tile, or leave it out")


def check_ignore_background(value: IgnoreBackground, num_labels: int | None) -> None:
    """Raise `UserError` where there are no classes that it could be of."""
    if value and num_labels is None:
        raise UserError("of scores of classes, and the masks have one", key="ignore_background", fix="leave it out")


def read_id2label(value: Mapping | Sequence[str] | str | None) -> dict[int, str] | None:
    """Class -> name, of such a mapping, of names in the order of the classes, or of `soil,crop,weed`.

    Raises:
        UserError: anything else.
    """
    if value is None:
        return None
    try:
        if not isinstance(value, (Mapping, str)) and len(value) == 1:  # of a flag
            (value,) = value
        if isinstance(value, str):
            value = yaml.safe_load(value) if value.lstrip().startswith(("{", "[")) else value.split(",")
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {int(key): str(name).strip() for key, name in pairs}
    except (TypeError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{value!r} must map classes to names, such as {{0: background, 1: road}}, or list the names",
            key="id2label",
        ) from error


def check_id2label(id2label: Mapping[int, str], num_labels: int) -> None:
    """Raise `UserError` unless each class has a name and nothing else has."""
    missing = [str(label) for label in range(num_labels) if not id2label.get(label)]
    if missing:
        raise UserError(
            f"no name for class {', '.join(missing)} of num_labels {num_labels}",
            key="id2label",
            fix=f"name each, 0 to {num_labels - 1}, the background included",
        )
    unknown = sorted(set(id2label) - set(range(num_labels)))
    if unknown:
        problem = f"class {unknown[0]} ({id2label[unknown[0]]}) is not below num_labels {num_labels}"
        raise UserError(problem, key="id2label")


def class_names(num_labels: int, id2label: Mapping[int, str] | None) -> list[str]:
    """The names of the classes in order, their numbers where there are none."""
    return [str((id2label or {}).get(label, label)) for label in range(num_labels)]


def compare_names(own: Mapping[int, str], found: Mapping[int, str], name: str) -> list[str]:
    """A note where classes of the data set `name` are called otherwise than the model calls them.

    Args:
        own: class to name, of the model.
        found: class to name, as the data set says; `class_1`, or `background` of class 0, says nothing.

    Raises:
        UserError: the name of one class is another class's, so that each would be taken for the other.
    """
    unsaid = {label: f"class_{label}" if label else "background" for label in found}
    told = {label: called for label, called in found.items() if called != unsaid[label]}
    places = {called.casefold(): label for label, called in own.items()}
    moved = {label: label for label in found} | {
        label: places.get(called.casefold(), label) for label, called in told.items()
    }
    wrong = next((label for label, place in moved.items() if label != place), None)
    if wrong is not None:
        raise UserError(
            f"{found[wrong]} is class {wrong} in {name} and class {moved[wrong]} of the model",
            key="dataset",
            fix=f"set label_map to {moved}",
        )
    other = [label for label in sorted(own.keys() & told.keys()) if own[label].casefold() != told[label].casefold()]
    pairs = ", ".join(f"{label} is {found[label]} there and {own[label]} here" for label in other)
    return [f"classes of {name} have other names: {pairs}"] if other else []
