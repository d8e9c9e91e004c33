"""What a run of several classes shows: a table of the classes, and images beside their label maps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from ..data.channels import displayable
from ..data.images import IGNORE
from ..data.tiles import Tiles
from ..evaluation.classes import ClassResult
from ..evaluation.tiled import reduced_labels
from ..inference.variants import inference, label_maps
from ..metrics import plot_confusion
from ..names import class_names
from ..sam.processing import SamAdaptProcessor
from .report import IGNORED_COLOUR, fraction, overlay, panel_title, panels, ranked, save_panels, wide_console


if TYPE_CHECKING:
    from ..data import SegmentationData, SegmentationSplit


Legend: TypeAlias = list[tuple[str, tuple[int, ...] | None]]


def class_colours(num_labels: int, palette: ArrayLike | None = None) -> np.ndarray:
    """uint8 (256, 3), a colour for each label: of the palette, or distinct ones; 255 (ignore) is grey."""
    from matplotlib import colormaps

    colours = np.zeros((256, 3), np.uint8)
    if palette is not None:
        colours[:num_labels] = np.asarray(palette)[:num_labels]
    else:
        name = "tab10" if num_labels <= 10 else "tab20" if num_labels <= 20 else "hsv"
        steps = np.linspace(0, 1, num_labels, endpoint=False) if name == "hsv" else np.arange(num_labels)
        drawn = colormaps[name](steps)
        colours[:num_labels] = (255 * drawn[:, :3]).round()
        colours[0] = 0
    colours[IGNORE] = IGNORED_COLOUR
    return colours


def print_class_table(scores: dict[str, Any], names: Sequence[str]) -> None:
    """Prints the part `adapted` of a `metrics.json`: a row for each class, then their means."""
    from rich.table import Table

    table = Table(title="Classes, over all pixels")
    table.add_column("class")
    for title in ("IoU", "precision", "recall", "F1", "pixels"):
        table.add_column(title, justify="right")
    for label, one in scores["per_class"].items():
        cells = [fraction(one[key]) for key in ("iou", "precision", "recall", "f1")]
        table.add_row(names[int(label)], *cells, f"{one['pixels']:,}")
    console = wide_console()
    console.print(table)
    means = ", ".join(
        f"{name} {fraction(scores[key])}" for name, key in (("mIoU", "miou"), ("OA", "oa"), ("FWIoU", "fwiou"))
    )
    console.print(means, highlight=False)


def save_class_pictures(
    folder: Path,
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: SegmentationSplit,
    result: ClassResult,
    data: SegmentationData,
    precision: str = "no",
    tiles: Tiles | None = None,
) -> None:
    """Writes `samples.png` and `confusion.png` of an evaluation of `split`; call it on one process.

    Args:
        data: where `split` is from, for the names and colours of the classes.
    """
    names = class_names(result.matrix.num_labels, data.id2label)
    colours = None if data.palette is None else data.palette.colours()
    save_class_samples(folder / "samples.png", model, processor, split, result, names, colours, precision, tiles)
    plot_confusion(result.matrix, names, folder / "confusion.png")


def save_class_samples(
    path: Path,
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: SegmentationSplit,
    result: ClassResult,
    names: Sequence[str],
    palette: ArrayLike | None = None,
    precision: str = "no",
    tiles: Tiles | None = None,
    worst: int | None = None,
) -> None:
    """Draws the best, median and worst labelled image by mean IoU of its classes: image, truth, prediction.

    Args:
        worst: draw so many images in place of these three, the worst first.
    """
    from matplotlib.patches import Patch

    labelled = [record for record in result.records if record.miou is not None] or result.records
    order = sorted(labelled, key=lambda record: record.miou or 0.0, reverse=True)
    scores = {record.index: record.miou for record in order}
    rows = []
    for index, rank in ranked(list(scores), worst):
        with inference([model], precision):
            if tiles is None:
                rows.append((rank, scores[index], split[index], label_maps(model, processor, [split[index]])[0]))
                continue
            with split.open(index) as scene:
                rows.append((rank, scores[index], *reduced_labels(model, processor, scene, tiles, len(names))))
    colours = class_colours(len(names), palette)
    entries = _present(names, *(labels for *_, sample, found in rows for labels in (sample.mask, found)))
    columns = min(len(entries), 6)
    figure, axes = panels(
        [sample.mask.shape for *_, sample, _ in rows], 3, below=18 * -(-len(entries) // columns) + 14
    )
    for line, (rank, iou, sample, found) in zip(axes, rows, strict=True):
        pictures = (displayable(sample.image), colours[sample.mask], colours[found])
        score = "nothing labelled" if iou is None else f"mean IoU {iou:.2f}"
        for axis, picture, text in zip(line, pictures, (rank, "truth", f"adapted, {score}"), strict=True):
            axis.imshow(picture)
            panel_title(axis, text)
    patches = [Patch(color=colours[label] / 255, label=name) for label, name in entries.items()]
    figure.legend(handles=patches, loc="lower center", ncols=columns, fontsize=8)
    save_panels(path, figure, axes, [sample.id for *_, sample, _ in rows])


def class_overlay(image: np.ndarray, labels: np.ndarray, num_labels: int) -> np.ndarray:
    """An image uint8 (H, W, 3) tinted by its label map uint8 (H, W); class 0 is left as it is."""
    colours = class_colours(num_labels)
    for label in np.unique(labels[labels > 0]):
        image = overlay(image, labels == label, colours[label])
    return image


def class_legend(labels: np.ndarray, names: Sequence[str]) -> Legend:
    """The legend of `class_overlay`: what is in the label map."""
    colours = class_colours(len(names))
    found = _present(names, labels).items()
    return [(name, tuple(colours[label].tolist()) if label else None) for label, name in found]


def with_legend(picture: np.ndarray, legend: Legend) -> np.ndarray:
    """A picture uint8 (H, W, 3) on top of a strip that names its colours; as wide as the longest name needs.

    Args:
        legend: (name, RGB), None for what is not tinted.
    """
    size = min(40, max(11, picture.shape[1] // 50))
    font, line = ImageFont.load_default(size), round(1.6 * size)
    widths = [round(font.getlength(name)) + 3 * size for name, _ in legend]
    total, places, x, y = max([picture.shape[1], *widths]), [], 0, 0
    for width in widths:
        if x + width > total:
            x, y = 0, y + line
        places.append((x, y))
        x += width
    strip = Image.new("RGB", (total, y + line), "white")
    draw = ImageDraw.Draw(strip)
    for (x, y), (name, colour) in zip(places, legend):
        box = x + size // 2, y + size // 4, x + 3 * size // 2, y + 5 * size // 4
        draw.rectangle(box, fill=colour or "white", outline=colour or (110, 110, 110))
        draw.text((x + 2 * size, y + size // 8), name, fill="black", font=font)
    beside = np.full((picture.shape[0], total - picture.shape[1], 3), 255, np.uint8)
    return np.concatenate([np.concatenate([picture, beside], axis=1), np.asarray(strip)])


def _present(names: Sequence[str], *maps: np.ndarray) -> dict[int, str]:
    """Label -> name of what is in label maps, `IGNORE` last."""
    counts = sum(np.bincount(labels.ravel(), minlength=IGNORE + 1) for labels in maps)
    found = [label for label in (*range(len(names)), IGNORE) if np.asarray(counts)[label]]
    return {label: "ignored" if label == IGNORE else names[label] for label in found}
