"""What a run shows: the printed table, `metrics.json`, `samples.png` and mask overlays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw
from torch import nn

from ..data.channels import displayable
from ..data.images import IGNORE
from ..data.tiles import Tiles, Window
from ..evaluation.evaluate import EvalResult, prompts_of
from ..evaluation.tiled import reduced_scene
from ..inference.variants import inference, predicted_masks, variants_of
from ..metrics import overlap
from ..metrics.stream import TITLES as METRIC_TITLES
from ..prompts import MAX_OBJECTS, MIN_AREA, Prompt
from ..sam.processing import SamAdaptProcessor


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

    from ..data import Sample, SegmentationSplit

ABSENT = "\N{EN DASH}"
TRUTH_COLOURS = ((40, 170, 60), (235, 40, 200), (250, 220, 30), (30, 215, 225))  # the first that the image lacks
IGNORED_COLOUR = (128, 128, 128)
MASK_COLOURS = {"zero_shot": (230, 120, 20), "adapted": (30, 110, 230)}
TITLES = {"zero_shot": "zero-shot", "adapted": "adapted"}
PANEL, GAP, BAND = 320, 4, 22  # pixels of a picture: width of a panel, space between two, height for titles
NAME_LENGTH, NAMES_KEY = 44, "image_names"


def empty_sentence(metrics: dict[str, Any]) -> str:
    """Says what images without foreground do to the mean IoU; empty where all have some."""
    empty = metrics.get("without_foreground")
    if not empty:
        return ""
    return (
        f"{empty['images']:,} of {empty['of']:,} images have no foreground: their IoU is 1 where nothing is found, "
        f"else 0 (on {empty['with_findings']:,} of them). The mean IoU of the others is "
        f"{fraction(empty['iou_of_others'])}."
    )


def left_out_sentence(metrics: dict[str, Any]) -> str:
    """Says how many objects no prompt was given for; empty where that is none."""
    objects = metrics.get("objects") or {"left_out": 0}
    if not objects["left_out"]:
        return ""
    count, share = objects["left_out"], objects["left_out_share"]
    return (
        f"{count:,} of {objects['prompted'] + count:,} objects, with {share:.1%} of the foreground, got no prompt: "
        f"they are below {MIN_AREA:.2%} of the image (or tile) or not among its {MAX_OBJECTS} largest. "
        "Their pixels count all the same."
    )


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
    for sentence in filter(None, (empty_sentence(metrics), left_out_sentence(metrics))):
        console.print(sentence)
    if further := _further_rows(metrics["test"].get("none") or {}):
        table = Table("without prompts", title=f"{images} images: further metrics")
        for title in ("zero-shot", "adapted", "constant"):
            table.add_column(title, justify="right")
        for row in further:
            table.add_row(*row)
        console.print(table)
    volumes = [
        [f"{kind}, {TITLES[name]}", *_volume_cells(scores[name]["volumes"])]
        for kind, scores in metrics["test"].items()
        for name in TITLES
        if (scores.get(name) or {}).get("volumes")
    ]
    if volumes:
        table = Table("volumes", title=f"{images} volumes")
        for title in ("number", "Dice", "HD95, mm", "surface Dice"):
            table.add_column(title, justify="right")
        for row in volumes:
            table.add_row(*row)
        console.print(table)
    if metrics.get("train"):
        console.print(cost_line(metrics["train"]), highlight=False)


def _volume_cells(scores: dict[str, Any]) -> list[str]:
    """Number, Dice, HD95 with how many volumes have none, and surface Dice."""
    distance = ABSENT if scores["hd95_mm"] is None else f"{scores['hd95_mm']:.2f}"
    without = f" ({scores['without_hd95']} without)" if scores["without_hd95"] else ""
    shares = [fraction(scores[key]) for key in ("volume_dice", "surface_dice")]
    return [str(scores["volumes"]), shares[0], distance + without, shares[1]]


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

    console = Console(markup=False)  # names may hold brackets
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


def overlay(image: np.ndarray, mask: np.ndarray, colour: Sequence[int], *, tint: bool = True) -> np.ndarray:
    """Tints a mask and draws its outline, which grows with the image so that it is seen when that is shown small.

    Args:
        image: uint8 (H, W, 3).
        mask: bool (H, W).
        colour: RGB, 0..255.
        tint: False = the outline alone.

    Returns:
        uint8 (H, W, 3), a new array.
    """
    result, inner = image.copy(), mask
    for _ in range(min(4, max(1, round(max(mask.shape) / 320)))):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    if tint:
        result[inner] = (0.55 * image[inner] + 0.45 * np.asarray(colour)).astype(np.uint8)
    result[mask & ~inner] = colour
    return result


def truth_colour(image: np.ndarray) -> tuple[int, int, int]:
    """The first of `TRUTH_COLOURS` that an image uint8 (H, W, 3) lacks, or else the one that it has least of."""
    step = max(1, round((image.shape[0] * image.shape[1] / 20_000) ** 0.5))
    pixels = _opponent(image[::step, ::step].reshape(-1, 3))
    distances = np.stack([np.linalg.norm(pixels - _opponent(colour), axis=1) for colour in TRUTH_COLOURS])
    # A few pixels of a colour do not hide an outline.
    clear = np.flatnonzero(np.quantile(distances, 0.02, axis=1) > 100)
    return TRUTH_COLOURS[clear[0] if len(clear) else distances.mean(axis=1).argmax()]


def _opponent(colours: Any) -> np.ndarray:
    """RGB (..., 3) -> red against green, yellow against blue, and half the lightness: hue counts, shade hardly."""
    red, green, blue = np.moveaxis(np.asarray(colours, np.float32), -1, 0)
    return np.stack([red - green, (red + green) / 2 - blue, (red + green + blue) / 6], axis=-1)


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
    tiles: Tiles | None = None,
    worst: int | None = None,
) -> None:
    """Draws the best, median and worst image by IoU of the first prompt kind: image, truth, zero-shot, adapted.

    Takes the arguments of the `evaluate` that gave `result`; call it on one process. With `tiles` large images are
    shown reduced.

    Args:
        worst: draw so many images in place of these three, the worst first.
    """
    variants = variants_of(model, adapted=adapted, zero_shot=zero_shot, zero_shot_model=zero_shot_model)
    names = [variant.name for variant in variants]
    kind = next(iter(result.test))
    labelled = [record for record in result.records if record.labelled]
    order = sorted(labelled, key=lambda record: record.scores[kind][names[-1]].iou, reverse=True)
    rows = []
    for index, rank in ranked([record.index for record in order], worst):
        if tiles is not None:
            with split.open(index) as scene, inference([variant.model for variant in variants], precision):
                derive = partial(_tile_prompts, kind, index, seed)
                how: dict[str, Any] = {"batch_size": 1, "precision": precision, "route": "image"}
                sample, masks = reduced_scene(variants, processor, scene, tiles, kind, derive, **how)
            scores = next(record for record in result.records if record.index == index).scores[kind]
            rows.append(_Row(rank, sample, Prompt("none"), masks, {name: scores[name].iou for name in masks}))
            continue
        sample = split[index]
        prompt = prompts_of(sample.mask, [kind], index, seed)[kind]
        with inference([variant.model for variant in variants], precision):
            masks = {
                name: mask for _, name, _, mask in predicted_masks(variants, processor, [sample], {kind: [prompt]})
            }
        iou = {name: overlap(mask, sample.mask).iou for name, mask in masks.items()}
        rows.append(_Row(rank, sample, prompt, masks, iou))
    _draw_samples(Path(path), rows, names)


def _tile_prompts(kind: str, index: int, seed: int, mask: np.ndarray, window: Window) -> dict[str, Prompt]:
    return prompts_of(mask, [kind], index, seed, window[:2])


def ranked(order: Sequence[int], worst: int | None) -> list[tuple[int, str]]:
    """Images to draw, and what to write over them: of images from the best to the worst those two and the median, or
    so many of the `worst`."""
    if worst is not None:
        return [(index, f"worst {place}") for place, index in enumerate(reversed(order[-worst:]), start=1)]
    # With fewer than three images some ranks fall on the same one, which is drawn once.
    chosen = {order[place]: rank for rank, place in (("worst", -1), ("median", len(order) // 2), ("best", 0))}
    return list(reversed(chosen.items()))


@dataclass(frozen=True)
class _Row:
    """One image of `samples.png`, with the mask (H, W) and IoU of each variant."""

    rank: str
    sample: Sample
    prompt: Prompt
    masks: dict[str, np.ndarray]
    iou: dict[str, float]


def _draw_samples(path: Path, rows: Sequence[_Row], names: Sequence[str]) -> None:
    figure, axes = panels([row.sample.mask.shape for row in rows], 2 + len(names))
    for row, line in zip(rows, axes, strict=True):
        image, mask = displayable(row.sample.image), row.sample.mask
        line[0].imshow(image)
        draw_prompt(line[0], row.prompt)
        panel_title(line[0], row.rank)
        truth = overlay(image, (mask != 0) & (mask != IGNORE), truth_colour(image))
        line[1].imshow(overlay(truth, mask == IGNORE, IGNORED_COLOUR))
        panel_title(line[1], "truth")
        for axis, name in zip(line[2:], names, strict=True):
            axis.imshow(overlay(image, row.masks[name], MASK_COLOURS[name]))
            panel_title(axis, f"{TITLES[name]}, IoU {row.iou[name]:.2f}")
    save_panels(path, figure, axes, [row.sample.id for row in rows])


def panels(shapes: Sequence[tuple[int, ...]], columns: int, below: int = 0) -> tuple[Figure, list[list[Axes]]]:
    """A figure of one row an image, whose panels have the image's shape, so that nothing but titles is between them.

    Args:
        shapes: (height, width) of the images.
        below: pixels to leave under the rows.
    """
    from matplotlib.figure import Figure

    heights = [max(1, round((PANEL - GAP) * min(height / width, 3))) for height, width in shapes]
    width, total = PANEL * columns, sum(heights) + BAND * len(heights) + below
    figure, top, axes = Figure(figsize=(width / 100, total / 100), dpi=100), total, []
    for height in heights:
        top -= BAND + height
        boxes = [((PANEL * place + GAP / 2) / width, top / total) for place in range(columns)]
        axes.append([figure.add_axes((*box, (PANEL - GAP) / width, height / total)) for box in boxes])
        for axis in axes[-1]:
            axis.set_axis_off()
    return figure, axes


def panel_title(axis: Axes, text: str) -> None:
    """Writes over a panel."""
    axis.set_title(text, fontsize=10, loc="left", pad=6)


def save_panels(path: Path, figure: Figure, axes: Sequence[Sequence[Axes]], names: Sequence[str]) -> None:
    """Writes the image's name over the first panel of each row, behind its title, and the picture as a PNG.

    The PNG notes where the names are, for `hide_names`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    height, boxes = canvas.get_width_height()[1], []
    for (axis, *_), name in zip(axes, names, strict=True):
        bottom = height - round(axis.get_position().y1 * height)
        text = name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH // 2]}…{name[1 - NAME_LENGTH // 2 :]}"
        figure.text(66 / (PANEL * len(axes[0])), 1 - (bottom - 8) / height, text, fontsize=8, parse_math=False)
        boxes.append([62, bottom - BAND, PANEL - 1, bottom - 1])
    canvas.print_png(path, metadata={NAMES_KEY: json.dumps(boxes)})


def hide_names(path: Path) -> None:
    """Paints over the image names in a picture of `save_panels`, in place: names may be patients'."""
    if NAMES_KEY.encode() not in path.read_bytes():
        return
    with Image.open(path) as picture:
        boxes = json.loads(picture.info[NAMES_KEY])
        shown = picture.convert("RGB")
    draw = ImageDraw.Draw(shown)
    for box in boxes:
        draw.rectangle(box, fill="white")
    shown.save(path, format="PNG")


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
