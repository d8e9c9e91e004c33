"""Flags of short runs, and what the processes that tests start need."""

import os
from pathlib import Path


ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def recipe_flags(**keys):
    """Command-line flags of a run of a few steps; `keys` add to them and win."""
    argv = []
    for key, value in {"max_steps": 4, "batch_size": 2, "checkpoint_every": 2, "eval_every": 2, **keys}.items():
        argv += [f"--{key}", *(map(str, value) if isinstance(value, (list, tuple)) else [str(value)])]
    return argv
