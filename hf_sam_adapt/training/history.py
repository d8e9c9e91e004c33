"""How loss and IoU went over a training: rows while it runs, a picture at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


ROWS = 200  # of a whole training


def record_step(rows: list[dict[str, Any]], step: int, total_steps: int, loss: float, iou: float) -> None:
    """Add an optimizer step to the mean of the last row, or begin a row; about 200 rows a training.

    All that is needed to go on stands in `rows`, so a resumed training has the rows of an uninterrupted one.

    Args:
        rows: `{"first", "step", "loss", "train_iou"}`: the means over the steps from `first` to `step`.
        step: number of optimizer steps done.
    """
    if not rows or step - rows[-1]["first"] >= max(1, total_steps // ROWS):
        rows.append({"first": step, "step": step, "loss": loss, "train_iou": iou})
        return
    row = rows[-1]
    count = row["step"] - row["first"] + 1
    row["step"] = step
    row["loss"] += (loss - row["loss"]) / (count + 1)
    row["train_iou"] += (iou - row["train_iou"]) / (count + 1)


def save_curve(
    steps: list[dict[str, Any]],
    validations: list[dict[str, Any]],
    path: Path,
    references: Mapping[str, float | None] | None = None,
) -> None:
    """Draw the loss, and the IoU on training batches and validation images, each smoothed over the pale rows.

    Args:
        steps: rows of `record_step`.
        validations: `{"step", "val_iou"}`, may be empty; the best is marked, of equals the last.
        path: PNG file.
        references: IoU of what the adapted model must beat, by name, as lines across; None is left out.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    at = [row["step"] for row in steps]
    for axis, key, name in ((left, "loss", "loss"), (right, "train_iou", "training, augmented")):
        values = [row[key] for row in steps]
        axis.plot(at, values, color="tab:gray", alpha=0.35, linewidth=0.8)
        marker = "." if len(values) < 10 else ""
        axis.plot(at, smoothed(values), color="tab:gray", marker=marker, label=f"{name}, smoothed")
    losses = [row["loss"] for row in steps]
    top = loss_limit(losses)
    hidden = sum(loss > top for loss in losses)
    left.set(title="training loss", xlabel="optimizer step", ylim=(0, top))
    if hidden:
        left.plot([], [], " ", label=f"above: {hidden} point{'s' * (hidden > 1)}, up to {max(losses):.3g}")
    if validations:
        values = [row["val_iou"] for row in validations]
        right.plot([row["step"] for row in validations], values, color="tab:blue", marker=".", label="validation")
        best = max(validations, key=lambda row: (row["val_iou"], row["step"]))
        marked = f"best, step {best['step']}"
        right.plot(best["step"], best["val_iou"], "*", color="tab:red", markersize=11, zorder=3, label=marked)
        left.axvline(best["step"], color="tab:red", linestyle=":", linewidth=1, label=marked)
    for (name, iou), style in zip((references or {}).items(), ("--", "-.", ":")):
        if iou is not None:
            right.axhline(iou, color="tab:orange", linestyle=style, linewidth=1, label=f"{name} {iou:.3f}")
    right.set(title="IoU", xlabel="optimizer step", ylim=(0, 1))
    left.legend(fontsize=7, loc="upper right")
    figure.legend(*right.get_legend_handles_labels(), fontsize=7, loc="outside right center")
    figure.savefig(path, format="png")


def smoothed(values: Sequence[float]) -> list[float]:
    """A running mean over a twentieth of the rows on either side, of values clipped at `loss_limit`."""
    reach, shown = len(values) // 20, np.minimum(values, loss_limit(values))
    return [float(shown[max(0, index - reach) : index + reach + 1].mean()) for index in range(len(values))]


def loss_limit(values: Sequence[float]) -> float:
    """Top of an axis that shows `values` from 0 on: all of them, unless a few spikes would flatten the others."""
    usual, largest = np.quantile(values, 0.95), max(values)
    return float(1.05 * (largest if largest <= 2 * usual else 1.5 * usual)) or 1.0
