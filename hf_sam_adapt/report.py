"""What a run shows: the printed table, `metrics.json`, `samples.png` and mask overlays."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from .data.channels import displayable
from .data.images import IGNORE
from .evaluation.evaluate import EvalResult, prompts_of
from .evaluation.inference import inference, predicted_masks, variants_of
from .metrics import overlap
from .metrics.stream import TITLES as METRIC_TITLES
from .processing import SamAdaptProcessor
from .prompts import Prompt


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

    from .data import Sample, SegmentationSplit

ABSENT = "\N{EN DASH}"
TRUTH_COLOUR = (40, 170, 60)
IGNORED_COLOUR = (128, 128, 128)
MASK_COLOURS = {"zero_shot": (230, 120, 20), "adapted": (30, 110, 230)}
TITLES = {"zero_shot": "zero-shot", "adapted": "adapted"}


def write_json(path: Path, content: Any) -> None:
    """Writes JSON so that `path` holds the old or the new content at any moment, never a part of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def print_table(metrics: dict[str, Any]) -> None:
    """Prints the content of a `metrics.json`: a row for each prompt kind, then what the training cost.

    The key `measured_on` ("test", "val" or "train") says which images gave the scores if not the test images.
    """
    from rich.table import Table

    images = {"test": "Test", "val": "Validation", "train": "Training"}[metrics.get("measured_on", "test")]
    table = Table(title=f"{images} images: mean IoU / Dice at original size")
    table.add_column("prompt")
    for title in ("zero-shot", "adapted", "constant"):
        table.add_column(title, justify="right")
    for kind, scores in metrics["test"].items():
        table.add_row(kind, *(_cell(scores.get(name)) for name in ("zero_shot", "adapted", "constant")))
        if "zero_shot_best_of_3" in scores:
            table.add_row(f"{kind}, best of 3", _cell(scores["zero_shot_best_of_3"]), ABSENT, ABSENT)
    console = wide_console()
    if metrics["test"]:
        console.print(table)
    if further := _further_rows(metrics["test"].get("none") or {}):
        table = Table("without prompts", title=f"{images} images: further metrics")
        for title in ("zero-shot", "adapted", "constant"):
            table.add_column(title, justify="right")
        for row in further:
            table.add_row(*row)
        console.print(table)
    if metrics.get("train"):
        console.print(cost_line(metrics["train"]), highlight=False)


def _further_rows(scores: dict[str, Any]) -> list[list[str]]:
    """A row per metric that was asked for: its name, and its score of zero-shot SAM, adapted and constant."""
    variants = [scores.get(name) or {} for name in ("zero_shot", "adapted", "constant")]
    found = [key for key in METRIC_TITLES if any(key in variant for variant in variants)]
    return [[METRIC_TITLES[key], *map(fraction, (variant.get(key) for variant in variants))] for key in found]


def fraction(value: float | None) -> str:
    """A fraction with three digits, a dash for None."""
    return ABSENT if value is None else f"{value:.3f}"


def wide_console(width: int = 100) -> Console:
    """Where tables are printed; in a file rich assumes 80 columns and would fold cells, so there it has `width`."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = width
    return console


def cost_line(train: dict[str, Any]) -> str:
    """The cost of a training, part `train` of a `metrics.json`, in one line."""
    speed = ABSENT if train["images_per_second"] is None else f"{train['images_per_second']:.1f}"
    return (
        f"{speed} images/s, peak memory {size_text(train['peak_memory_bytes'])}, "
        f"{train['trainable_parameters']:,} trainable parameters, adapter {size_text(train['adapter_bytes'])}"
    )


def overlay(image: np.ndarray, mask: np.ndarray, colour: Sequence[int]) -> np.ndarray:
    """Tints a mask and draws its outline.

    Args:
        image: uint8 (H, W, 3).
        mask: bool (H, W).
        colour: RGB, 0..255.

    Returns:
        uint8 (H, W, 3), a new array.
    """
    result = image.copy()
    result[mask] = (0.55 * image[mask] + 0.45 * np.asarray(colour)).astype(np.uint8)
    padded = np.pad(mask, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    result[mask & ~inner] = colour
    return result


def save_samples(
    path: Path,
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: SegmentationSplit,
    result: EvalResult,
    *,
    adapted: bool = True,
    zero_shot: bool = True,
    zero_shot_model: nn.Module | None = None,
    precision: str = "no",
    seed: int = 0,
) -> None:
    """Draws the best, median and worst image by IoU of the first prompt kind: image, truth, zero-shot, adapted.

    Takes the arguments of the `evaluate` that gave `result`; call it on one process.
    """
    variants = variants_of(model, adapted=adapted, zero_shot=zero_shot, zero_shot_model=zero_shot_model)
    names = [variant.name for variant in variants]
    kind = next(iter(result.test))
    order = sorted(result.records, key=lambda record: record.scores[kind][names[-1]].iou, reverse=True)
    # With fewer than three images some ranks fall on the same one, which is drawn once.
    chosen = {order[place].index: rank for rank, place in (("worst", -1), ("median", len(order) // 2), ("best", 0))}
    rows = []
    for index, rank in reversed(chosen.items()):
        sample = split[index]
        prompt = prompts_of(sample.mask, [kind], index, seed)[kind]
        with inference([variant.model for variant in variants], precision):
            masks = {
                name: mask for _, name, _, mask in predicted_masks(variants, processor, [sample], {kind: [prompt]})
            }
        iou = {name: overlap(mask, sample.mask).iou for name, mask in masks.items()}
        rows.append(_Row(rank, sample, prompt, masks, iou))
    _draw_samples(Path(path), rows, names)
    print_sample_names(Path(path), [(row.rank, row.sample) for row in rows])


@dataclass(frozen=True)
class _Row:
    """One image of `samples.png`, with the mask (H, W) and IoU of each variant."""

    rank: str
    sample: Sample
    prompt: Prompt
    masks: dict[str, np.ndarray]
    iou: dict[str, float]


def _draw_samples(path: Path, rows: Sequence[_Row], names: Sequence[str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 + len(names)
    figure = Figure(figsize=(3.2 * columns, 3.4 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        image, mask = displayable(row.sample.image), row.sample.mask
        line[0].imshow(image)
        draw_prompt(line[0], row.prompt)
        line[0].set_title(row.rank)
        truth = overlay(image, (mask != 0) & (mask != IGNORE), TRUTH_COLOUR)
        line[1].imshow(overlay(truth, mask == IGNORE, IGNORED_COLOUR))
        line[1].set_title("truth")
        for axis, name in zip(line[2:], names, strict=True):
            axis.imshow(overlay(image, row.masks[name], MASK_COLOURS[name]))
            axis.set_title(f"{TITLES[name]}, IoU {row.iou[name]:.2f}")
        for axis in line:
            axis.set_axis_off()
    FigureCanvasAgg(figure).print_png(path)


def print_sample_names(path: Path, rows: Sequence[tuple[str, Sample]]) -> None:
    """Says which images a picture shows; the picture does not, for it is published and names may be patients'."""
    print(f"{path.name} shows {', '.join(f'{sample.id} ({rank})' for rank, sample in rows)}.")


def draw_prompt(axis: Axes, prompt: Prompt) -> None:
    """Draws the boxes, points or mask outlines of a prompt in image coordinates over its image."""
    if prompt.kind == "box":
        for x1, y1, x2, y2 in np.asarray(prompt.boxes):
            # Inclusive pixel indices: the box reaches half a pixel beyond the centres.
            xs, ys = np.array([x1, x2, x2, x1, x1]), np.array([y1, y1, y2, y2, y1])
            axis.plot(xs + np.sign(xs - x1) * 0.5, ys + np.sign(ys - y1) * 0.5, color="yellow", linewidth=1.5)
    elif prompt.kind == "point" and len(prompt):
        x, y = np.asarray(prompt.points).reshape(-1, 2).T  # (n, p, 2) -> (n * p, 2)
        axis.scatter(x, y, marker="*", s=120, color="yellow", edgecolor="black")
    elif prompt.kind == "mask" and len(prompt):
        axis.contour(np.asarray(prompt.masks).any(axis=0), levels=[0.5], colors="yellow", linewidths=1.5)


def _cell(scores: dict[str, float | None] | None) -> str:
    # None also where no pixel is labelled.
    return ABSENT if scores is None or scores["iou"] is None else f"{scores['iou']:.3f} / {scores['dice']:.3f}"


def size_text(count: float) -> str:
    """A number of bytes in decimal units."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
