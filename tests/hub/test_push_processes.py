"""Two processes train, one of them pushes, once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
# Two torchruns side by side have hung: pytest-xdist gives what starts one to one of its workers.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("torchrun")]
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def launch(hub, home, script, *flags):
    environment = os.environ | hub.environment(home) | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [*LAUNCH, str(ROOT / "recipes" / script), *flags, "--max_steps", "2", "--batch_size", "2"]
    return subprocess.run(
        [*command, "--push_to_hub"], cwd=home, env=environment, capture_output=True, text=True, timeout=300
    )


def commits(hub) -> list[str]:
    return [request for request in hub.requests if request.startswith("POST") and "/commit/" in request]


def test_one_of_two_processes_pushes(hub, make_dataset, sam_folder, tmp_path):
    data = make_dataset(flat=12)
    for path in data.rglob("*.png"):
        path.rename(path.with_name(f"patient{path.name}"))
    run = tmp_path / "polyp"
    flags = ["--model", sam_folder, "--dataset", str(data), "--output_dir", str(run)]
    hub.fail("POST .*/commit/", 403)
    done = launch(hub, tmp_path, "train.py", *flags)
    assert done.returncode != 0 and done.stderr.count("error: push: ") == 1
    assert f"push again with: hf-sam-adapt push {run} --repo polyp" in done.stderr
    assert len(commits(hub)) == 1 and hub.files("me/polyp") == {}
    whole = {path.name for path in run.iterdir() if path.is_file()}
    assert {"adapter_model.safetensors", "README.md", "metrics.json", "recipe.yaml", "splits.json"} <= whole

    hub.faults.clear()
    assert hub.token not in done.stdout + done.stderr
    again = [sys.executable, "-m", "hf_sam_adapt.cli", "push", str(run), "--repo", "polyp"]
    environment = os.environ | hub.environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run(again, env=environment, capture_output=True, timeout=120).returncode == 0
    assert set(hub.files("me/polyp")) == whole - {"splits.json"}
    assert "patient" in (run / "splits.json").read_text()
    assert not [name for name, content in hub.files("me/polyp").items() if b"patient" in content]
    assert not [path for path in run.rglob("*") if path.is_file() and hub.token.encode() in path.read_bytes()]


def test_one_of_two_processes_pushes_the_pool(hub, make_dataset, sam_folder, tmp_path):
    domains = [
        json.dumps({name: str(make_dataset(tmp_path / name, train=8, test=3, seed=seed, foreground=255))})
        for seed, name in enumerate(("first", "second"))
    ]
    flags = [
        "--model",
        sam_folder,
        "--output_dir",
        str(tmp_path / "both"),
        "--protocol",
        "moda",
        "--domains",
        *domains,
    ]
    done = launch(hub, tmp_path, "continual.py", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(commits(hub)) == 1 and done.stdout.count("Pushed ") == 1
    names = set(hub.files("me/both"))
    assert {"README.md", "continual.json", "matrix.png", "first/adapter_config.json"} <= names
    assert not [name for name in names if "checkpoints" in name or "tasks" in name or "evaluations" in name]
