"""The tab Adapt without a browser: what refuses a training, what it holds meanwhile, and which files it takes."""

import ast
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hf_sam_adapt
from hf_sam_adapt.demo.session import Session
from hf_sam_adapt.demo.training_images import read_pairs


gr = pytest.importorskip("gradio")


@pytest.fixture
def tab(served):
    from hf_sam_adapt.demo.adapt_tab import AdaptTab

    with gr.Blocks(), gr.Tab("Adapt") as around:
        return AdaptTab(served.app, gr.State(Session()), gr.Dropdown(), around)


@pytest.fixture
def files(tmp_path):
    """Three images of 40x30 pixels, masks of them, and a mask of another size."""
    image, mask = np.full((30, 40, 3), 90, np.uint8), np.zeros((30, 40), np.uint8)
    mask[5:20, 5:20] = 255
    for number in range(3):
        Image.fromarray(image + np.uint8(number)).save(tmp_path / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / f"{number}_mask.png")
    Image.fromarray(mask[:20]).save(tmp_path / "small_mask.png")
    return lambda *names: [str(tmp_path / f"{name}.png") for name in names]


def in_a_thread(action, *args):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(action, *args).result(30)


@pytest.mark.parametrize(
    ("count", "method", "steps", "message"),
    [
        (0, "hq", 60, "0 images with masks: give 2 to 12"),
        (1, "hq", 60, "1 images with masks: give 2 to 12"),
        (2, "magic", 60, "is not offered"),
        (2, "hq", 0, "is not in 1..400"),
        (2, "hq", 401, "is not in 1..400"),
    ],
)
def test_a_refused_training_leaves_the_session_free(tab, files, count, method, steps, message):
    session = Session()
    names = [str(number) for number in range(count)]
    session.pairs = read_pairs(files(*names), files(*(f"{name}_mask" for name in names)), 10**6) if count else []
    running = tab.run(session, method, steps)
    # As Gradio does: each step of the generator may be another thread's.
    update = in_a_thread(next, running)
    assert message in update[tab.message]
    assert in_a_thread(session.lock.acquire, True, 1)  # by a click during the refusal
    assert in_a_thread(list, running) == []


def decorators(node):
    return [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]


def test_no_lock_is_held_while_a_generator_waits():
    held = []
    for path in sorted(Path(hf_sam_adapt.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        managers = [node for node in ast.walk(tree) if any("contextmanager" in name for name in decorators(node))]
        theirs = {id(inner) for manager in managers for inner in ast.walk(manager)}  # a context ends in its thread
        for node in (node for node in ast.walk(tree) if id(node) not in theirs):
            locks = isinstance(node, ast.With) and any("lock" in ast.unparse(item) for item in node.items)
            if locks and any(isinstance(inner, (ast.Yield, ast.YieldFrom)) for inner in ast.walk(node)):
                held.append(f"{path.name}:{node.lineno}")
    assert held == []


@pytest.mark.parametrize(
    ("images", "masks", "taken", "said"),
    [
        ([], [], 0, "Upload 2 to 12 images"),
        (["0", "1"], [], 0, "2 images and 0 masks: choose the masks too"),
        ([], ["0_mask"], 0, "0 images and 1 masks: choose the images too"),
        (["0", "1", "2"], ["2_mask", "0_mask", "1_mask"], 3, "3 images with masks"),
        (["0"], ["0_mask"], 1, "1 image with its mask"),
        (["0"], ["small_mask"], 0, "40x20 pixels for 0.png of 40x30"),
    ],
)
def test_files_are_taken_when_each_image_has_its_mask(tab, files, images, masks, taken, said):
    session = Session()
    update = tab.add_files(files(*images), files(*masks), session)
    assert said in update[tab.gathered]
    assert [pair.picture.name for pair in session.pairs] == [f"{number}.png" for number in range(taken)]
    # What is taken leaves the fields; what is not stays there to be put right.
    assert (update.get(tab.images, "kept"), update.get(tab.masks, "kept")) == (
        (None, None) if taken else ("kept",) * 2
    )
    assert len(tab.add_files(files("1"), files("1_mask"), session)[tab.gallery]) == taken + 1


def test_the_process_that_is_ready_trains(served, files, monkeypatch):
    from hf_sam_adapt.demo import app

    started = []

    def start():
        started.append(real())
        return started[-1]

    real = app.start_worker
    monkeypatch.setattr(app, "start_worker", start)
    monkeypatch.setattr(served.app, "_spare", None)
    threads = [threading.Thread(target=served.app.warm) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(started) == 1  # one for all visitors
    pairs = read_pairs(files("0", "1"), files("0_mask", "1_mask"), 10**6)
    job = served.app.job(pairs, "hq", 5)
    try:
        assert job._process is started[0] and job.progress().state == "starting"
        served.app.warm()
        assert len(started) == 2
    finally:
        job.close()
        started[-1].kill()
    started[-1].wait(10)
    other = served.app.job(pairs, "hq", 5)  # the one that was ready has died
    other.close()
    assert other._process is started[2] and len(started) == 3


@pytest.mark.slow
def test_a_process_without_a_page_ends():
    from hf_sam_adapt.demo.job import start_worker

    process = start_worker()
    process.stdin.close()
    assert process.wait(120) == 0
