"""What a run of several classes shows: a table of the classes, and images beside their label maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from .data.channels import displayable
from .data.images import IGNORE
from .evaluation.classes import ClassResult, label_maps
from .evaluation.inference import inference
from .metrics import plot_confusion
from .processing import SamAdaptProcessor
from .report import IGNORED_COLOUR, fraction, print_sample_names, wide_console


if TYPE_CHECKING:
    from .data import SegmentationData, SegmentationSplit


def class_names(num_labels: int, id2label: Mapping[int, str] | None) -> list[str]:
    """The names of the classes in order, their numbers where there are none."""
    return [str((id2label or {}).get(label, label)) for label in range(num_labels)]


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
) -> None:
    """Writes `samples.png` and `confusion.png` of an evaluation of `split`; call it on one process.

    Args:
        data: where `split` is from, for the names and colours of the classes.
    """
    names = class_names(result.matrix.num_labels, data.id2label)
    colours = None if data.palette is None else data.palette.colours()
    save_class_samples(folder / "samples.png", model, processor, split, result, names, colours, precision)
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
) -> None:
    """Draws the best, median and worst labelled image by mean IoU of its classes: image, truth, prediction."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    labelled = [record for record in result.records if record[1] is not None] or result.records
    order = sorted(labelled, key=lambda record: record[1] or 0.0, reverse=True)
    places = (("worst", -1), ("median", len(order) // 2), ("best", 0))
    chosen = {order[place]: rank for rank, place in places}
    colours = class_colours(len(names), palette)
    figure = Figure(figsize=(11, 3.4 * len(chosen) + 0.6), dpi=100, layout="constrained")
    rows = figure.subplots(len(chosen), 3, squeeze=False)
    shown = []
    for line, ((index, iou), rank) in zip(rows, reversed(chosen.items()), strict=True):
        sample = split[index]
        with inference([model], precision):
            found = label_maps(model, processor, [sample])[0]
        pictures = (displayable(sample.image), colours[sample.mask], colours[found])
        score = "nothing labelled" if iou is None else f"mean IoU {iou:.2f}"
        titles = (rank, "truth", f"adapted, {score}")
        shown.append((rank, sample))
        for axis, picture, title in zip(line, pictures, titles, strict=True):
            axis.imshow(picture)
            axis.set_title(title)
            axis.set_axis_off()
    patches = [Patch(color=colours[label] / 255, label=name) for label, name in enumerate(names)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(names), 8), fontsize=8)
    FigureCanvasAgg(figure).print_png(path)
    print_sample_names(path, shown)
