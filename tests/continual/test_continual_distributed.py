"""Two gloo processes make the continual run that one makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
# Two torchruns side by side have hung: pytest-xdist gives what starts one to one of its workers.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("torchrun")]


@pytest.mark.parametrize(
    ("protocol", "method"),
    [("moda", "sam_adapter"), ("ewc", "decoder"), ("lwf", "decoder"), ("l2p", "decoder"), ("olora", "lora")],
)
def test_two_processes_do_what_one_does(protocol, method, domain_folders, sam_folder, tmp_path):
    results = []
    for processes in (1, 2):
        run = tmp_path / f"of-{processes}"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        command += [str(ROOT / "recipes/continual.py"), "--model", str(sam_folder), "--output_dir", str(run)]
        command += ["--protocol", protocol, "--method", method, "--max_steps", "2", "--learning_rate", "1e-3"]
        command += ["--batch_size", str(4 // processes), "--max_grad_norm", "0", "--domains"]
        command += [json.dumps({name: domain_folders[name]}) for name in ("first", "second")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count(f"Saved to {run}.\n") == 1
        results.append(json.loads((run / "continual.json").read_text()))
    one, two = results
    assert one["zero_shot_iou"] == pytest.approx(two["zero_shot_iou"], abs=1e-6)
    for first, second in zip(one["matrix_iou"], two["matrix_iou"]):
        assert first == pytest.approx(second, abs=2e-3)
    assert one.get("confusion") == two.get("confusion")
