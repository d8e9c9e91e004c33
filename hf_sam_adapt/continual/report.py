"""What a continual run shows: the printed table, the heat-map of all scores, and the curves over the tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..reporting.report import fraction, wide_console


if TYPE_CHECKING:
    from matplotlib.figure import Figure


# What the metrics of `continual.json` are called, beside the names that CoSAM gives them.
METRIC_TITLES = {
    "last": "after all tasks (Last)",
    "avg": "mean over the tasks of all seen so far (Avg)",
    "ff": "forgetting: lost since a domain's own task (FF)",
    "ff_max": "forgetting: lost since a domain's best task",
    "forward": "on the next domain, before it is learned",
    "natural": "natural images",
}


def print_continual(results: dict[str, Any]) -> None:
    """Prints the content of a `continual.json`: IoU by task and test set, then the metrics."""
    from rich.table import Table

    domains = results["domains"]
    table = Table(title=f"{results['protocol']}, {results['method']}: IoU by task and test set ({results['prompt']})")
    table.add_column("after")
    for title in [*domains, *(["natural"] if "natural_iou" in results else [])]:
        table.add_column(title, justify="right")
    rows = {"zero-shot": [*results["zero_shot_iou"], results.get("natural_zero_shot_iou")]}
    for task, (title, row) in enumerate(zip(_row_titles(results), results["matrix_iou"])):
        rows[title] = [*row, results["natural_curve_iou"][task] if "natural_iou" in results else None]
    for title, row in rows.items():
        table.add_row(title, *map(fraction, row[: len(table.columns) - 1]))
    console = wide_console(max(100, 14 * len(table.columns)))
    console.print(table)
    metrics = Table(title="Over all test sets")
    metrics.add_column("")
    shown = {key: title for key, title in METRIC_TITLES.items() if f"{key}_iou" in results}
    for title in ("IoU", "boundary IoU"):
        metrics.add_column(title, justify="right")
    for key, title in shown.items():
        metrics.add_row(title, *(fraction(results[f"{key}_{name}"]) for name in ("iou", "biou")))
    console.print(metrics)
    if "routing_accuracy" in results:
        console.print(
            f"Routing accuracy {results['routing_accuracy']:.3f}; with the true domains the IoU after all tasks is "
            f"{results['oracle_last_iou']:.3f}, forgetting {fraction(results['oracle_ff_iou'])}.",
            highlight=False,
        )


def save_matrix(path: Path, results: dict[str, Any]) -> None:
    """Draws the IoU of every task and test set as a heat-map, zero-shot SAM above it."""
    rows = [results["zero_shot_iou"], *results["matrix_iou"]]
    cells = np.array([[np.nan if cell is None else cell for cell in row] for row in rows])
    titles, domains = ["zero-shot", *_row_titles(results)], list(results["domains"])
    if "natural_iou" in results:
        natural = [results["natural_zero_shot_iou"], *results["natural_curve_iou"]]
        cells, domains = np.column_stack([cells, natural]), [*domains, "natural"]
    figure = _figure(1.6 + 0.9 * len(domains), 1.6 + 0.55 * len(titles))
    axis = figure.subplots()
    image = axis.imshow(cells, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    figure.colorbar(image, ax=axis, label="IoU")
    axis.set_xticks(range(len(domains)), domains, rotation=30, ha="right")
    axis.set_yticks(range(len(titles)), titles)
    axis.set_xlabel("test set")
    axis.set_ylabel("after")
    for row, column in np.argwhere(np.isfinite(cells)):
        value = cells[row, column]
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    figure.savefig(path, format="png")


def save_curves(path: Path, results: dict[str, Any]) -> None:
    """Draws the IoU of every test set over the tasks from its own on, and the mean over those seen."""
    figure = _figure(7, 4.5)
    axis = figure.subplots()
    matrix, joint = results["matrix_iou"], results["protocol"] == "joint"
    tasks = np.arange(1, len(matrix) + 1)
    for number, name in enumerate(results["domains"]):
        first = 0 if joint else number
        axis.plot(tasks[first:], [row[number] for row in matrix[first:]], marker="o", label=name)
    seen = [np.mean(row if joint else row[:task]) for task, row in zip(tasks, matrix)]
    axis.plot(tasks, seen, color="black", linewidth=2.5, marker="s", label="mean of those seen")
    if "natural_iou" in results:
        axis.plot(tasks, results["natural_curve_iou"], color="gray", linestyle="--", marker="x", label="natural")
    axis.set_xticks(tasks, _row_titles(results), rotation=30, ha="right")
    axis.set_ylim(0, 1)
    axis.set_xlabel("after")
    axis.set_ylabel("IoU")
    axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, format="png")


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout="constrained")


def _row_titles(results: dict[str, Any]) -> list[str]:
    """What the rows of the matrix stand for: the domain learned last, or all at once."""
    return ["joint"] if results["protocol"] == "joint" else list(results["domains"])
