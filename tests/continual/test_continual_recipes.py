"""The committed recipes: the published protocol, and the quickstart on drawn domains."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hf_sam_adapt.config.arguments import parse_arguments
from hf_sam_adapt.config.continual_recipe import ContinualRecipe
from hf_sam_adapt.continual.protocols import PROTOCOLS
from hf_sam_adapt.data import load_segmentation_dataset


ROOT = Path(__file__).parents[2]
QUICKSTART, COSAM = ROOT / "recipes/continual_quickstart.yaml", ROOT / "recipes/cosam.yaml"


def launch(*flags, recipe=QUICKSTART):
    """`accelerate launch recipes/continual.py`, its output folder given by `flags`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    command += [str(ROOT / "recipes/continual.py"), "--config", str(recipe), *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3600)


def test_the_published_protocol():
    recipe = parse_arguments(ContinualRecipe, ["--config", str(COSAM)])
    names = [domain.name for domain in recipe.read_domains()]
    assert names == ["BSData", "RSDD_I", "RSDD_II", "MVTec_I", "MVTec_II", "MVTec_III", "CAMO", "Polyp"]
    assert recipe.read_natural() is not None and recipe.protocol == "moda" and recipe.seed == 42
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.lr_scheduler) == (24, 4, 1e-3, "step")
    assert (recipe.weight_decay, recipe.warmup, recipe.max_grad_norm, recipe.loss) == (0, 0, 0, "points")
    assert recipe.augment == ["flip", "jitter"] and recipe.resize == "squash" and recipe.prompts[0] == "box"
    assert sorted(recipe.prompts) == ["box", "mask", "point"] and recipe.method_args == {"decoder": "hq"}
    args = PROTOCOLS["moda"].args_cls(**recipe.protocol_args)
    assert (args.router, args.head, args.buffer_size, args.reject) == ("joint", "linear", 10, 0)
    for protocol, text in (("er", "{}"), ("lwf", "{form: official}")):
        other = parse_arguments(
            ContinualRecipe, ["--config", str(COSAM), "--protocol", protocol, "--protocol_args", text]
        )
        PROTOCOLS[protocol].args_cls(**other.protocol_args)
        assert f'--protocol_args "{text}"' in COSAM.read_text()


def mean_colours(domains, split, count):
    """(images, 3) and the number of each image's domain."""
    colours, numbers = [], []
    for number, domain in enumerate(domains):
        images = getattr(load_segmentation_dataset(domain.dataset, label_map=domain.label_map), split)
        colours += [images[index].image.mean(axis=(0, 1)) for index in range(count)]
        numbers += [number] * count
    return np.array(colours), np.array(numbers)


@pytest.mark.slow
def test_the_quickstart_needs_more_than_the_mean_colour():
    """Neither a Gaussian a domain nor the nearest neighbours name the domain of 80 % of the images."""
    domains = parse_arguments(ContinualRecipe, ["--config", str(QUICKSTART)]).read_domains()
    assert len(domains) == 4
    known, truth = mean_colours(domains, "train", 60)
    asked, answer = mean_colours(domains, "test", 40)
    scores = []
    for number in range(len(domains)):
        own = known[truth == number]
        deviation, covariance = asked - own.mean(axis=0), np.cov(own.T) + 0.1 * np.eye(3)
        distance = np.einsum("ni,ij,nj->n", deviation, np.linalg.inv(covariance), deviation)
        scores.append(distance + np.linalg.slogdet(covariance)[1])
    accuracies = {"gaussian": np.mean(np.argmin(scores, axis=0) == answer)}
    order = ((asked[:, None] - known[None]) ** 2).sum(axis=2).argsort(axis=1)
    for neighbours in (1, 5, 15):
        votes = [np.bincount(truth[row[:neighbours]], minlength=len(domains)).argmax() for row in order]
        accuracies[neighbours] = np.mean(votes == answer)
    assert max(accuracies.values()) < 0.8, accuracies


@pytest.mark.slow
def test_two_steps_a_domain_through_the_command_line(tmp_path, make_dataset, monkeypatch):
    """The quickstart's recipe with everything but its length and its data."""
    folders = {
        name: str(make_dataset(tmp_path / name, train=8, test=3, seed=seed, foreground=255))
        for seed, name in enumerate(("one", "two"))
    }
    run = tmp_path / "run"
    domains = [json.dumps({name: folder}) for name, folder in folders.items()]
    flags = ["--output_dir", run, "--domains", *domains]
    monkeypatch.setenv("HF_SAM_ADAPT_CACHE", str(tmp_path / "cache"))
    first = launch(*flags, "--max_steps", 2)
    assert first.returncode == 0, first.stderr[-3000:]
    assert "Over all test sets" in first.stdout and "Routing accuracy" in first.stdout
    assert (run / "matrix.png").stat().st_size > 1000 and (run / "curves.png").stat().st_size > 1000
    results = json.loads((run / "continual.json").read_text())
    assert results["domains"] == ["one", "two"] and results["oracle_ff_iou"] == 0
    changed = launch(*flags, "--max_steps", 3)
    assert changed.returncode != 0 and "error: max_steps: 3, the run in" in changed.stderr


@pytest.mark.slow
def test_the_quickstart(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAM_ADAPT_CACHE", str(tmp_path / "cache"))
    done = launch("--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "run/continual.json").read_text())
    assert results["routing_accuracy"] >= 0.95
    assert abs(results["ff_iou"]) <= 0.01 and results["oracle_ff_iou"] == 0
    learned = [row[number] for number, row in enumerate(results["matrix_iou"])]
    assert all(after > before + 0.05 for after, before in zip(learned, results["zero_shot_iou"])), results
    assert "Over all test sets" in done.stdout and (tmp_path / "run/matrix.png").exists()
