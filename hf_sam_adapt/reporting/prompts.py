"""What an evaluation shows of clicks, of instances, and of whether the model listens to its prompts."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ..data.channels import displayable
from ..data.dataset import mask_of
from ..evaluation.sensitivity import own_and_removed
from ..inference.instances import Instance
from ..inference.variants import embeddings_of, inference, model_inputs, variants_of
from ..prompts import components, derive_prompts
from ..sam.processing import SamAdaptProcessor
from .report import MASK_COLOURS, TITLES, draw_prompt, fraction, overlay, wide_console


if TYPE_CHECKING:
    from ..data import SegmentationSplit

_TABLES = {"clicks": "clicks", "prompt_sensitivity": "the prompt's place", "instances": "instances"}


def print_prompt_tables(metrics: dict[str, Any]) -> None:
    """Prints the parts `clicks`, `prompt_sensitivity` and `instances` of a `metrics.json`, as far as it has them."""
    from rich.table import Table

    console = wide_console()
    for key, rows in (("clicks", _click_rows), ("prompt_sensitivity", _sensitivity_rows), ("instances", _ap_rows)):
        if key not in metrics:
            continue
        table = Table(_TABLES[key])
        for name in TITLES:
            table.add_column(TITLES[name], justify="right")
        for title, path in rows(metrics[key]).items():
            table.add_row(title, *(_cell(metrics[key].get(name), path) for name in TITLES))
        console.print(table)


def _click_rows(part: dict[str, Any]) -> dict[str, tuple[str, str]]:
    scores = part["adapted"] or part["zero_shot"] or {"iou": {}, "noc": {}}
    rows = {f"IoU after {count} click{'' if count == '1' else 's'}": ("iou", count) for count in scores["iou"]}
    return rows | {f"clicks to IoU {goal}, at most {part['cap']}": ("noc", goal) for goal in scores["noc"]}


def _sensitivity_rows(part: dict[str, Any]) -> dict[str, tuple[str, str]]:
    kind = part["prompt"]
    return {
        f"IoU with the object's {kind}": ("iou", "own"),
        f"IoU with another object's {kind}": ("iou", "moved"),
        "IoU without a prompt": ("iou", "removed"),
        f"change when the {kind} is moved": ("change", "moved"),
        f"change when the {kind} is removed": ("change", "removed"),
    }


def _ap_rows(part: dict[str, Any]) -> dict[str, tuple[str]]:
    return {"AP": ("ap",), "AP at IoU 0.5": ("ap50",), "AP at IoU 0.75": ("ap75",)}


def _cell(scores: dict[str, Any] | None, path: tuple[str, ...]) -> str:
    value: Any = scores
    for key in path:
        value = None if value is None else value[key]
    return fraction(value)


def save_sensitivity(
    path: Path,
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: SegmentationSplit,
    part: dict[str, Any],
    *,
    adapted: bool = True,
    zero_shot: bool = True,
    zero_shot_model: nn.Module | None = None,
    precision: str = "no",
) -> None:
    """Draws the numbers of `prompt_sensitivity`, and the first image with two objects under three prompts.

    Takes the arguments of the `prompt_sensitivity` that gave `part`.
    """
    from matplotlib.figure import Figure

    variants = variants_of(model, adapted=adapted, zero_shot=zero_shot, zero_shot_model=zero_shot_model)
    index = _first_with_two(split)
    figure = Figure(figsize=(13, 3.4 * len(variants)), dpi=100, layout="constrained")
    axes = figure.subplots(len(variants), 4, squeeze=False)
    for variant, line in zip(variants, axes):
        _draw_bars(line[0], part[variant.name], part["prompt"], TITLES[variant.name])
        for axis in line[1:]:
            axis.set_axis_off()
        if index is None:
            continue
        sample = split[index]
        prompt = derive_prompts(sample.mask, part["prompt"], max_objects=2, mask_values="index")
        with inference([variant.model], precision), variant.active():
            inputs = model_inputs(processor, [sample])
            embeddings = embeddings_of(variant.model, inputs)
            ((own, removed),) = own_and_removed(variant.model, processor, inputs, embeddings, [prompt])
        image, colour = displayable(sample.image), MASK_COLOURS[variant.name]
        for number, axis in enumerate(line[1:3]):
            axis.imshow(overlay(image, own[number], colour))
            draw_prompt(axis, prompt.select([number]))
            axis.set_title(f"{sample.id}, object {number + 1}"[:36])
        line[3].imshow(overlay(image, removed, colour))
        line[3].set_title("no prompt")
    figure.savefig(path, format="png")


def draw_instances(image: np.ndarray, instances: Sequence[Instance]) -> np.ndarray:
    """Tints each instance in a colour of its own, the surest on top: uint8 (H, W, 3) -> a new one."""
    drawn = image.copy()
    for number in reversed(range(len(instances))):
        # Hues a golden section apart: neighbours in the list are never alike.
        colour = colorsys.hsv_to_rgb(number * 0.618 % 1, 0.9, 0.95)
        drawn = overlay(drawn, instances[number].mask, [round(255 * part) for part in colour])
    return drawn


def _draw_bars(axis: Any, scores: dict[str, Any] | None, kind: str, title: str) -> None:
    names = {"own": f"its {kind}", "moved": f"another's {kind}", "removed": "no prompt"}
    heights = [(scores or {"iou": {}})["iou"].get(name) or 0.0 for name in names]
    axis.bar(list(names.values()), heights, color=["#1e6ee6", "#e67814", "#888888"])
    for place, height in enumerate(heights):
        axis.text(place, height, f"{height:.2f}", ha="center", va="bottom")
    axis.set_ylim(0, 1)
    axis.set_ylabel("IoU with the object")
    axis.set_title(title)


def _first_with_two(split: SegmentationSplit) -> int | None:
    """The first image with two objects to prompt."""
    return next((i for i in range(len(split)) if len(components(np.asarray(mask_of(split, i)))[0]) > 1), None)
