"""What a continual run is judged by, from the matrix a[t, k]: score on test set k after task t (CoSAM)."""

from __future__ import annotations

import numpy as np


def last(matrix: np.ndarray) -> float:
    """Mean over all test sets after the last task.

    Args:
        matrix: (T, T), as for all functions here; what was not measured is NaN, here nothing of the last row.
    """
    return float(np.mean(matrix[-1]))


def average(matrix: np.ndarray) -> float:
    """Mean over the tasks of the mean over the test sets seen until then: the lower triangle with the diagonal."""
    return float(np.mean([np.mean(row[: t + 1]) for t, row in enumerate(matrix)]))


def forgetting(matrix: np.ndarray, best: bool = False) -> float | None:
    """FF: mean over all test sets but the last of what was lost of it since its own task; negative = gained.

    Args:
        best: lost since the best it ever was, a maximum over a[k..T-2, k], in place of a[k, k]. That one cannot fall
            below the other, and takes noise for forgetting.

    Returns:
        None for a single task.
    """
    tasks = len(matrix)
    if tasks < 2:
        return None
    before = [np.max(matrix[k:-1, k]) if best else matrix[k, k] for k in range(tasks - 1)]
    return float(np.mean(before - matrix[-1, :-1]))


def forward(matrix: np.ndarray) -> float | None:
    """Mean score on the next test set before its task, a[k, k + 1] (SAMCL's FT); None for a single task."""
    return float(np.mean(np.diagonal(matrix, 1))) if len(matrix) > 1 else None


def summary(matrix: np.ndarray, name: str) -> dict[str, float | None]:
    """The metrics under the names of `continual.json`: `last_<name>`, `avg_`, `ff_`, `ff_max_`, `forward_<name>`."""
    return {
        f"last_{name}": last(matrix),
        f"avg_{name}": average(matrix),
        f"ff_{name}": forgetting(matrix),
        f"ff_max_{name}": forgetting(matrix, best=True),
        f"forward_{name}": forward(matrix),
    }
