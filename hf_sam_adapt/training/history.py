"""How loss and IoU went over a training: rows while it runs, a picture at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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


def save_curve(steps: list[dict[str, Any]], validations: list[dict[str, Any]], path: Path) -> None:
    """Draw the loss, and the IoU on training batches and validation images.

    Args:
        steps: rows of `record_step`.
        validations: `{"step", "val_iou"}`, may be empty.
        path: PNG file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    at = [row["step"] for row in steps]
    left.plot(at, [row["loss"] for row in steps], color="tab:gray")
    left.set(title="training loss", xlabel="optimizer step")
    left.set_ylim(bottom=0)
    right.plot(at, [row["train_iou"] for row in steps], color="tab:gray", label="training batches, augmented")
    if validations:
        values = [row["val_iou"] for row in validations]
        right.plot([row["step"] for row in validations], values, color="tab:blue", marker="o", label="validation")
    right.set(title="IoU", xlabel="optimizer step", ylim=(0, 1))
    right.legend(fontsize=8, loc="lower right")
    FigureCanvasAgg(figure).print_png(path)
