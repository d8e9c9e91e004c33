"""The modules of the `evaluate` library: loaded offline, in batches, across processes, and equal to what they wrap."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import RepoCard

from hf_sam_adapt.metrics import (
    MODULES,
    BoundaryMetric,
    ConfusionMatrix,
    OverlapMetric,
    SemanticMetric,
    boundary_overlap,
    mean_overlap,
    overlap,
)
from hf_sam_adapt.metrics.stream import PROMPTLESS_METRICS


evaluate = pytest.importorskip("evaluate")
ROOT = Path(__file__).parents[2]
MAPS = ("s_measure", "e_measure", "f_measure", "weighted_f", "mae", "auc")
NAMES = ("iou_dice", "boundary_iou", *MAPS, "ber", "semantic")
SETTINGS = {"semantic": {"num_labels": 4}, "weighted_f": {"beta2": 0.3}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """Modules are copied to a cache by the hash of their script, data folders are made there."""
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")


def load(name):
    return evaluate.load(str(MODULES / name), **SETTINGS.get(name, {}))


def draw(name, count=7, seed=3):
    """Images of several sizes: predictions as the module takes them, and masks with ignored pixels."""
    rng = np.random.default_rng(seed)
    predictions, references = [], []
    for number in range(count):
        shape = tuple(rng.integers(8, 20, 2))
        mask = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), shape)
        mask = np.zeros_like(mask) if number == 2 else np.full_like(mask, 255) if number == 3 else mask
        values = rng.random(shape) if name in MAPS else rng.integers(0, 4 if name == "semantic" else 2, shape)
        predictions.append(values)
        references.append(mask)
    return predictions, references


def test_there_is_a_folder_for_each():
    assert sorted(path.name for path in MODULES.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_batches_give_the_scores_of_all_images(name):
    metric, at_once = load(name), load(name)
    predictions, references = draw(name)
    expected = at_once.compute(predictions=predictions, references=references)
    assert metric.compute(predictions=predictions, references=references) == expected
    metric.add_batch(predictions=predictions[:3], references=references[:3])
    metric.add(prediction=predictions[3], reference=references[3])
    metric.add_batch(
        predictions=[torch.from_numpy(image) for image in predictions[4:5]],
        references=[torch.from_numpy(image) for image in references[4:5]],
    )
    assert metric.compute(predictions=predictions[5:], references=references[5:]) == expected
    with pytest.raises(ValueError, match="no image"):
        metric.compute()  # the sums begin anew
    assert np.isfinite([score for score in expected.values() if isinstance(score, float)]).all()
    assert metric.info.citation and "ignored" in metric.info.inputs_description


@pytest.mark.parametrize("name", NAMES)
def test_the_card_of_a_module(name):
    card = RepoCard.load(MODULES / name / "README.md")
    assert {"evaluate", "metric"} <= set(card.data.tags) and card.data.title and card.data.sdk == "static"
    code = card.text.partition("```python")[2].partition("```")[0]
    assert f'evaluate.load("{name}"' in code
    scope = {}
    exec(
        code.replace(f'"{name}"', repr(str(MODULES / name))).replace("metric.compute()", "s = metric.compute()"), scope
    )
    assert all(f"`{key}`" in card.text for key in scope["s"])


def test_they_equal_what_the_evaluation_counts():
    predictions, references = draw("iou_dice")
    masks = [image.astype(bool) for image in predictions]
    pairs = list(zip(masks, references))
    scores = mean_overlap([overlap(*pair) for pair in pairs])
    assert load("iou_dice").compute(predictions=masks, references=references) == pytest.approx(scores, abs=1e-15)
    biou = np.mean([boundary_overlap(*pair).iou for pair in pairs])
    assert load("boundary_iou").compute(predictions=masks, references=references)["biou"] == pytest.approx(biou)
    predictions, references = draw("semantic")
    matrix = ConfusionMatrix(4)
    for pair in zip(predictions, references):
        matrix.update(*pair)
    expected = matrix.compute()
    expected.pop("ignore_background")
    assert load("semantic").compute(predictions=predictions, references=references) == expected


@pytest.mark.parametrize(
    ("metric", "prediction"),
    [(OverlapMetric(), np.full((2, 2), 255)), (BoundaryMetric(), np.zeros((2, 2))), (SemanticMetric(3), np.eye(3))],
)
def test_wrong_predictions_are_refused(metric, prediction):
    with pytest.raises(ValueError, match="prediction"):
        metric.update(prediction, np.zeros(prediction.shape, np.uint8))
    with pytest.raises(ValueError, match="of one size"):
        metric.update(prediction, np.zeros((5, 5), np.uint8))


def test_what_a_module_refuses():
    metric = load("ber")
    with pytest.raises(ValueError, match="got 2 and 1"):
        metric.add_batch(predictions=[np.eye(2)] * 2, references=[np.eye(2)])
    with pytest.raises(ValueError, match="got 1 and None"):
        metric.add_batch(predictions=[np.eye(2)])
    with pytest.raises(ValueError, match="num_process"):
        evaluate.load(str(MODULES / "ber"), num_process=2, process_id=0)


@pytest.mark.parametrize("name", sorted(PROMPTLESS_METRICS))
def test_memory_does_not_grow_with_the_images(name):
    metric = PROMPTLESS_METRICS[name]()
    predictions, references = draw(name)
    metric.update(predictions[0], references[0])
    size = metric.totals.nbytes
    for pair in zip(predictions, references):
        metric.update(*pair)
    assert metric.totals.nbytes == size
    assert [key for key, value in vars(metric).items() if isinstance(value, (np.ndarray, list))] == ["totals"]


WORKER = """
import json, sys
import evaluate
from accelerate import PartialState
sys.path.insert(0, sys.argv[1])
from test_metric_modules import NAMES, draw, load
state = PartialState(cpu=True)
found = {}
for name in NAMES:
    predictions, references = draw(name)
    metric = load(name)
    own = slice(state.process_index, None, state.num_processes)
    metric.add_batch(predictions=predictions[own], references=references[own])
    found[name] = metric.compute()
with open(f"{sys.argv[2]}/{state.process_index}.json", "w") as file:
    json.dump(found, file)
state.destroy_process_group()
"""


@pytest.mark.xdist_group("torchrun")
@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    import os

    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["HF_HOME"] = str(tmp_path / "home")
    done = subprocess.run(
        [*launch, str(Path(__file__).parent), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second and list(first) == list(NAMES)
    for name in NAMES:
        predictions, references = draw(name)
        one = json.loads(json.dumps(load(name).compute(predictions=predictions, references=references)))
        if name == "semantic":
            assert first[name] == one
        else:
            assert first[name].keys() == one.keys()
            assert all(first[name][key] == pytest.approx(one[key], abs=1e-12) for key in one)
