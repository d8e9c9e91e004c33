"""The curves that papers on salient objects show: F-measure over the threshold, precision over recall."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .report import MASK_COLOURS, TITLES


def save_threshold_curves(path: Path, scores: dict[str, Any]) -> None:
    """Draw the curves of `FMeasureMetric`, zero-shot and adapted; no file where they were not measured.

    Args:
        scores: without prompts, by variant, from a `metrics.json`.
    """
    from matplotlib.figure import Figure

    measured = {name: scores[name] for name in TITLES if "f_curve" in (scores.get(name) or {})}
    if not measured:
        return
    figure = Figure(figsize=(8, 3.4), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2)
    thresholds = [level / 255 for level in range(255, -1, -1)]
    for name, curves in measured.items():
        colour = [part / 255 for part in MASK_COLOURS[name]]
        best = f"{TITLES[name]}, best {curves['f_measure_max']:.3f}"
        left.plot(thresholds, curves["f_curve"], color=colour, label=best)
        # At the highest thresholds nothing may be predicted, and there is no precision.
        known = [pair for pair in zip(curves["recall_curve"], curves["precision_curve"]) if pair[0] > 0]
        right.plot([recall for recall, _ in known], [precision for _, precision in known], color=colour)
    left.set(title="F-measure", xlabel="threshold", xlim=(0, 1), ylim=(0, 1))
    right.set(title="precision and recall", xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1))
    left.legend(fontsize=8, loc="lower left")
    figure.savefig(path, format="png")
