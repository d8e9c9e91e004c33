"""The oldest supported versions: an environment of its own, the tests of the tuners and of the Hub in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
TESTED = ["tests/tuners", "tests/hub", "tests/reporting/cards", "tests/sam/test_image_size.py"]
TESTED += ["tests/sam/test_fingerprint.py"]


@pytest.mark.slow
def test_the_oldest_supported_versions(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints-oldest.txt"]
    subprocess.run([*install, "--editable", f"{ROOT}[train]", "pytest"], check=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *TESTED]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:]
