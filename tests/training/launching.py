"""Where the repository is, and the environment of the processes that tests start."""

import os
from pathlib import Path


ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
