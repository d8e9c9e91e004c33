"""MoDA as a protocol: isolated trainings, a pool of them, and what the router makes of it."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sams import random_sam

from hf_sam_adapt import ModaModel
from hf_sam_adapt.continual.run import _open, continual
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.evaluation import evaluate
from hf_sam_adapt.inference.loading import load_base
from hf_sam_adapt.sam.processing import SamAdaptProcessor
from hf_sam_adapt.training import train


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def moda_recipe(continual_recipe):
    def make(name="run", **keys):
        return continual_recipe(name, **{"protocol": "moda", "protocol_args": {"reject": 0}, **keys})

    return make


def test_isolated_domains_are_pooled_and_never_forgotten(moda_recipe, continual_recipe, domain_folders, sam_folder):
    recipe = moda_recipe(domains=("first", "second", "third"), natural=domain_folders["third"])
    run = continual(recipe)
    results = json.loads((run / "continual.json").read_text())
    assert results["oracle_ff_iou"] == 0 == results["oracle_ff_biou"]
    for domain, counts in results["confusion"].items():
        assert sum(counts) == 3 and len(counts) == 4, domain
    assert set(results["confusion"]) == {"first", "second", "third", "natural"}
    diagonal = [results["confusion"][name][place] / 3 for place, name in enumerate(results["domains"])]
    assert results["routing_accuracy"] == pytest.approx(np.mean(diagonal))
    assert results["confusion_columns"] == ["first", "second", "third", "base"]

    # What the second domain's folder holds is what a run on that domain alone gives.
    alone = recipe.task(recipe.read_domains()[1], run / "alone")
    train(alone)
    one, other = (load_file(run / folder / "adapter_model.safetensors") for folder in ("tasks/2-second", "alone"))
    assert all(torch.equal(one[name], other[name]) for name in other)

    # The saved pool routes and segments as the run measured it.
    pool = ModaModel.from_pretrained(load_base(sam_folder)[0], run / "pool")
    processor = SamAdaptProcessor.from_pretrained(run / "pool")
    test = load_segmentation_dataset(domain_folders["first"]).test
    for domain, expected in (("auto", results["matrix_iou"][2][0]), ("first", results["oracle_iou"][0])):
        with pool.using(domain):
            found = evaluate(pool, processor, test, ["none"], zero_shot=False, batch_size=2)
        assert found.test["none"]["adapted"]["iou"] == expected


@pytest.mark.slow
def test_a_further_domain_changes_no_earlier_file(moda_recipe):
    run = continual(moda_recipe())
    before = {name: hashes(run / "pool" / name) for name in ("first", "second")}
    router = (run / "pool/adapter_model.safetensors").read_bytes()
    continual(moda_recipe(domains=("first", "second", "third")))
    assert {name: hashes(run / "pool" / name) for name in before} == before
    assert (run / "pool/third/adapter_model.safetensors").exists()
    assert (run / "pool/adapter_model.safetensors").read_bytes() != router
    assert json.loads((run / "continual.json").read_text())["oracle_ff_iou"] == 0


def test_a_further_domain_needs_no_training_images_of_the_earlier_ones(moda_recipe, domain_folders):
    """The router goes on from the features in `pool/`."""
    three = ("first", "second", "third")
    straight = continual(moda_recipe("straight", domains=three))
    run = continual(moda_recipe())
    for file in Path(domain_folders["first"]).glob("train/images/*.png"):
        Image.new("RGB", Image.open(file).size, "red").save(file)
    continual(moda_recipe(domains=three))
    one, other = (json.loads((folder / "continual.json").read_text()) for folder in (straight, run))
    assert one["confusion"] == other["confusion"] and one["matrix_iou"] == other["matrix_iou"]
    weights = [(folder / "pool/adapter_model.safetensors").read_bytes() for folder in (straight, run)]
    assert weights[0] == weights[1]
    # Scores of earlier stages, asked for later, are those of the pool as it was.
    shutil.rmtree(run / "evaluations")
    continual(moda_recipe(domains=three))
    assert json.loads((run / "continual.json").read_text())["matrix_iou"] == one["matrix_iou"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"protocol_args": {"reject": 2}}, "protocol_args: reject=2"),
        ({"protocol_args": {"num_tokens": 0}}, "protocol_args: num_tokens=0"),
        ({"method_args": {"decoder": "hqq"}}, "decoder='hqq' is unknown"),
        ({"normalization": "percentile"}, "normalization: each domain would be normalised by its own"),
        ({"domains": ["neck"]}, "'neck' is part of a module path"),
        ({"protocol": "l2p", "protocol_args": {"top_k": 50}}, "top_k=50"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(keys, message, moda_recipe, domain_folders):
    if "domains" in keys:
        keys = {"domains": [{"name": name, "dataset": domain_folders["first"]} for name in keys["domains"]]}
        recipe = dataclasses.replace(moda_recipe(), **keys)
    else:
        recipe = moda_recipe(**keys)
    with pytest.raises(UserError, match=message):
        continual(recipe)
    assert not Path(recipe.output_dir).exists()


def test_one_training_image_is_too_few_for_a_threshold(moda_recipe, domain_folders):
    for file in list(Path(domain_folders["second"]).glob("train/*/*.png")):
        if file.stem != "0000":
            file.unlink()
    with pytest.raises(UserError, match=r"domain second: one training image .* set protocol_args\.reject to 0"):
        continual(moda_recipe(protocol_args={}))
    assert len(ModaModel.from_pretrained(random_sam(), continual(moda_recipe()) / "pool").domains) == 2


@pytest.mark.slow
def test_the_routers_tokens_can_be_learned(moda_recipe):
    frozen, learned = (
        continual(moda_recipe(str(learn), protocol_args={"reject": 0, "learn_tokens": learn}))
        for learn in (False, True)
    )
    one, two = (load_file(run / "pool/adapter_model.safetensors")["tokens"] for run in (frozen, learned))
    assert one.shape == two.shape and not torch.equal(one, two)
    assert json.loads((learned / "continual.json").read_text())["oracle_ff_iou"] == 0


def test_learned_tokens_are_those_of_their_task_when_scored_again(moda_recipe):
    recipe = moda_recipe(protocol_args={"reject": 0, "learn_tokens": True})
    stored = load_file(continual(recipe) / "pool/adapter_model.safetensors")
    _, protocol = _open(recipe)
    first = protocol.pool_after(0).router.tokens.clone()
    again = protocol.pool_after(1).router.state_dict()
    assert not torch.equal(first, stored["tokens"])
    assert again.keys() == stored.keys() and all(torch.equal(again[key].cpu(), stored[key]) for key in stored)


def test_one_domain_is_the_method_alone(moda_recipe):
    run = continual(moda_recipe(domains=("first",)))
    alone = json.loads((run / "tasks/1-first/metrics.json").read_text())["test"]["none"]["adapted"]
    results = json.loads((run / "continual.json").read_text())
    assert results["matrix_iou"] == [[pytest.approx(alone["iou"], abs=1e-9)]]
    assert results["routing_accuracy"] == 1 and results["oracle_ff_iou"] is None


def test_an_encoder_side_method_in_the_pool(moda_recipe):
    run = continual(moda_recipe(method="sam_adapter", prompts=["box", "none"]))
    results = json.loads((run / "continual.json").read_text())
    assert results["prompt"] == "box" and results["oracle_ff_iou"] == 0
    scores = json.loads((run / "evaluations/2-second/first.json").read_text())
    assert set(scores) == {"box", "none", "oracle", "routing", "test_images"}
    assert set(scores["oracle"]) == {"box", "none"}


@pytest.mark.slow
def test_cached_embeddings_give_the_same_run(moda_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAM_ADAPT_CACHE", str(tmp_path / "cache"))
    keys = {"method_args": {"decoder": "hq"}, "augment": ["none"]}
    runs = [continual(moda_recipe(str(cached), cache_embeddings=cached, **keys)) for cached in (False, True)]
    one, other = (json.loads((run / "continual.json").read_text()) for run in runs)
    assert one["matrix_iou"] == other["matrix_iou"] and one["zero_shot_biou"] == other["zero_shot_biou"]


def test_methods_without_an_adapter_are_refused(moda_recipe):
    with pytest.raises(UserError, match="method: full leaves no adapter"):
        continual(moda_recipe(method="full"))
