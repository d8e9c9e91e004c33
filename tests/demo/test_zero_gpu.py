"""The demo on ZeroGPU, with a stand-in for `spaces` that runs each call in a fork, as the real one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_sam_adapt.demo import gpu


ROOT = Path(__file__).parents[2]
STAND_IN = """
import multiprocessing
import pickle
import sys
import threading

assert "torch" not in sys.modules, "spaces is imported before torch"
fork = multiprocessing.get_context("fork")
calls = []


def GPU(duration):
    def decorate(function):
        def call(*arguments):
            seconds = duration(*arguments) if callable(duration) else duration
            calls.append((function.__name__, seconds))
            pickle.dumps(arguments)
            here, there = fork.Pipe()

            def child():
                def run():
                    try:
                        result = (True, function(*arguments))
                    except Exception as error:
                        result = (False, repr(error))
                    there.send_bytes(pickle.dumps(result))

                thread = threading.Thread(target=run)  # as spaces does: not the thread that held the locks
                thread.start()
                thread.join()

            process = fork.Process(target=child)
            process.start()
            there.close()
            try:
                good, value = pickle.loads(here.recv_bytes())
            except EOFError:
                raise RuntimeError("GPU task aborted")
            finally:
                process.join()
            if not good:
                raise RuntimeError(value)
            return value

        return call

    return decorate
"""
SCRIPT = """
import json, sys, threading, time
from hf_sam_adapt.demo import gpu
import spaces
import numpy as np
import torch
from PIL import Image

torch.set_num_threads(1)
from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.demo.app import DemoApp
from hf_sam_adapt.demo.engine import segment_image
from hf_sam_adapt.demo.images import read_picture
from hf_sam_adapt.demo.session import ImageState
from hf_sam_adapt.demo.settings import DemoArguments
from hf_sam_adapt.demo.training_images import Pair
from hf_sam_adapt.prompts import Prompt

app = DemoApp(DemoArguments())
image = draw_sample("speckle", "test", 20)[0]
def picture(array, name):
    Image.fromarray(array).save(name)
    return read_picture(name, 10**7)


state = ImageState(picture(image, "radar.png"))
entry = app.entry("radar-fields")
found = segment_image(state, entry, Prompt("none"))
alone = entry.predictor.predict([image], Prompt("none"))[0]
again = segment_image(state, entry, Prompt.point((40, 50)))
drawn = [draw_sample("polyp", "train", index) for index in range(3)]
pairs = [Pair(picture(image, f"{index}.png"), mask) for index, (image, mask) in enumerate(drawn)]
job = app.job(pairs, "decoder", 2)
while not job.progress().is_over:
    time.sleep(0.1)
over = job.progress()
cancelled = app.job(pairs, "decoder", 400)
while not cancelled.progress().step:
    assert not cancelled.progress().is_over, cancelled.progress()
    time.sleep(0.05)
cancelled.close()
print(json.dumps({
    "equal": bool((found.mask == alone.mask).all() and found.mask.any()),
    "device": str(next(entry.model.parameters()).device),
    "calls": spaces.calls,
    "encoded_again": again.encoded,
    "state": over.state, "message": over.message, "iou": over.scores and over.scores[-1][1],
    "adapter": (job.adapter / "adapter_model.safetensors").is_file(),
    "cancelled": cancelled.progress().state, "gone": not cancelled.folder.exists(),
}))
"""


def test_elsewhere_nothing_is_borrowed(monkeypatch):
    monkeypatch.delenv("SPACES_ZERO_GPU", raising=False)
    monkeypatch.delitem(sys.modules, "spaces", raising=False)  # Gradio looks for it

    def function() -> int:
        return 3

    assert gpu.borrows_gpu(5)(function) is function
    assert not gpu.on_zero_gpu() and "spaces" not in sys.modules
    for value, on in (("true", True), ("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("SPACES_ZERO_GPU", value)
        assert gpu.on_zero_gpu() is on


def test_a_gpu_that_nobody_has_left_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "train_in", lambda folder, seconds: 1 / 0)
    worker = gpu.BorrowingWorker()
    assert worker.poll() is None
    with pytest.raises(subprocess.TimeoutExpired), worker as pipe:
        monkeypatch.setattr(
            worker, "_thread", type("Waiting", (), {"join": lambda *a: None, "start": lambda *a: None})()
        )
        pipe.write(json.dumps([str(tmp_path), 5]))
        worker.wait(0.01)
    worker._run()
    assert worker.poll() == 1 and worker.wait() == 1
    assert "no GPU could be borrowed" in json.loads((tmp_path / "error.json").read_text())["message"]
    worker.terminate()
    assert (tmp_path / gpu.CANCELLED).exists()


@pytest.mark.slow
def test_images_are_encoded_and_adapters_trained_with_a_borrowed_gpu(tmp_path):
    (tmp_path / "spaces.py").write_text(STAND_IN)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = os.environ | {"SPACES_ZERO_GPU": "true", "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["equal"] and found["device"] == "cpu" and not found["encoded_again"]
    assert found["calls"][0] == ["_encode", gpu.ENCODE_SECONDS]
    assert [name for name, _ in found["calls"]].count("_encode") == 1
    assert ["train_in", 600] in found["calls"]
    assert found["state"] == "finished" and found["adapter"], found
    assert found["cancelled"] == "cancelled" and found["gone"]
