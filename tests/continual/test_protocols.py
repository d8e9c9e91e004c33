"""What each protocol adds to sequential fine-tuning, and where it is the same."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hf_sam_adapt.continual.protocols.ewc as ewc
import hf_sam_adapt.continual.protocols.naive as naive_module
from hf_sam_adapt.continual.protocols.er import reservoir
from hf_sam_adapt.continual.protocols.lwf import distillation
from hf_sam_adapt.continual.references import ReferenceSplit
from hf_sam_adapt.continual.run import continual
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.training import train
from hf_sam_adapt.training.loop import TrainingLoop


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["ewc", "lwf"])
def test_weight_zero_is_naive(protocol, continual_recipe, weights):
    naive = continual(continual_recipe("naive"))
    other = continual(continual_recipe(protocol, protocol=protocol, protocol_args={"weight": 0}))
    strong = continual(continual_recipe("strong", protocol=protocol, protocol_args={"weight": 1e3}))
    for task in (0, 1):
        assert equal(weights(naive, task), weights(other, task))
    assert equal(weights(naive, 0), weights(strong, 0))
    assert not equal(weights(naive, 1), weights(strong, 1))


@pytest.mark.parametrize(
    "protocol", ["ewc", "er", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lwf", "joint"))]
)
def test_one_task_is_naive(protocol, continual_recipe):
    runs = [continual(continual_recipe(name, domains=("first",), protocol=name)) for name in ("naive", protocol)]
    one, other = (json.loads((run / "continual.json").read_text()) for run in runs)
    assert one["last_iou"] == other["last_iou"] and one["matrix_biou"] == other["matrix_biou"]


def test_ewc_holds_the_weights(continual_recipe, weights):
    moved = []
    for weight in (0, 1e4):
        run = continual(continual_recipe(f"w{weight}", protocol="ewc", protocol_args={"weight": weight}))
        one, other = weights(run, 0), weights(run, 1)
        moved.append(sum((one[name] - other[name]).square().sum().item() for name in one))
    assert moved[1] < moved[0]


def test_fisher_is_a_mean_of_squared_gradients_summed_over_tasks(continual_recipe):
    recipe = continual_recipe(domains=("first", "second", "third"), protocol="ewc", protocol_args={"decay": 0.5})
    run = continual(recipe)
    first, second = (load_file(run / "ewc" / f"{name}.safetensors") for name in ("1-first", "2-second"))
    assert first.keys() == second.keys() and not (run / "ewc/3-third.safetensors").exists()
    assert all((second[name] >= 0.5 * first[name]).all() and (first[name] >= 0).all() for name in first)
    assert any((second[name] > 0.5 * first[name]).any() for name in first)


def test_ewc_holds_the_iou_head_and_a_torn_file_is_no_file(continual_recipe, monkeypatch):
    keys = {"protocol": "ewc", "prompts": ["box"], "method_args": {"train_iou_head": True}}

    def torn(values, path):
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(ewc, "save_file", torn)
        continual(continual_recipe(**keys))
    run = continual(continual_recipe(**keys))
    fisher = load_file(run / "ewc" / "1-first.safetensors")
    heads = {name: value for name, value in fisher.items() if "iou_prediction_head" in name}
    assert heads and all(value.any() for value in heads.values())


def test_naive_goes_on_with_a_lora_by_another_name(continual_recipe):
    run = continual(continual_recipe(method="peft", method_args={"peft_type": "DORA", "r": 2}))
    config = json.loads((run / "tasks/2-second/adapter_config.json").read_text())
    assert config["use_dora"] and config["r"] == 2


def test_the_regularizer_is_part_of_the_loss(continual_recipe, monkeypatch):
    """Its gradient reaches the weights: a pull towards zero shrinks them."""
    recipe = continual_recipe(domains=("first",))
    norms = []
    for name, pull in (("plain", 0.0), ("pulled", 1e4)):

        def prepare(loop: TrainingLoop, pull=pull) -> None:
            loop.regularizer = lambda batch, logits: pull * sum(p.square().sum() for p in loop.trained)

        task = recipe.task(recipe.read_domains()[0], Path(recipe.output_dir) / name)
        loops = []

        def keep(loop, prepare=prepare, loops=loops):
            prepare(loop)
            loops.append(loop)

        train(task, prepare=keep)
        norms.append(sum(p.square().sum().item() for p in loops[0].trained))
    assert norms[1] < norms[0]


def test_a_reservoir_keeps_a_uniform_sample():
    counts = np.zeros(30)
    for seed in range(400):
        kept = reservoir([10, 15, 5], 6, seed)
        assert len(set(kept)) == 6 and all(index < (10, 15, 5)[number] for number, index in kept)
        for number, index in kept:
            counts[(0, 10, 25)[number] + index] += 1
    # Binomial(400, 0.2): mean 80, deviation 8.
    assert abs(counts - 80).max() < 4 * 8
    assert reservoir([3, 2], 9, 0) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


@pytest.fixture
def trainings(monkeypatch):
    """(recipe, data) of every training."""
    seen, train = [], naive_module.train

    def watched(recipe, **how):
        seen.append((recipe, how["data"]))
        return train(recipe, **how)

    monkeypatch.setattr(naive_module, "train", watched)
    return seen


def test_replay_has_its_share(continual_recipe, trainings):
    args = {"buffer_size": 4, "replay": 0.75}
    continual(continual_recipe(domains=("first", "second", "third"), protocol="er", protocol_args=args))
    first, second, third = (data.train for _, data in trainings)
    own = len(first)
    for split, name in ((second, "second"), (third, "third")):
        domains = [identity.split("/")[0] for identity in split.ids]
        assert domains.count(name) == own == len({i for i in split.ids if i.startswith(name)})
        assert len(domains) == 4 * own
    replayed = {identity for identity in third.ids if not identity.startswith("third")}
    assert len(replayed) == 4


def test_references_stand_for_their_images(domain_folders):
    splits = [load_segmentation_dataset(domain_folders[name]).train for name in ("first", "second")]
    joined = ReferenceSplit(splits, ["a", "b"], [(1, 2), (0, 0), (1, 2)])
    sample, source = joined[-1], splits[1][2]
    assert (sample.image == source.image).all() and (sample.mask == source.mask).all()
    assert (joined.mask(0) == source.mask).all()
    assert sample.index == 2 and sample.id == f"b/{source.id}" == joined.ids[0] and len(joined) == 3


def test_references_keep_the_objects_of_their_images():
    class Split:
        ids = ["x"]

        def instances(self, index):
            return np.full((2, 2), 7 + index, np.uint8)

    split = ReferenceSplit([Split(), Split()], ["a", "b"], [(1, 0)])
    assert np.array_equal(split.instances(0), np.full((2, 2), 7))


def test_joint_has_all_images_and_all_steps(continual_recipe, trainings):
    run = continual(continual_recipe(protocol="joint"))
    ((recipe, data),) = trainings
    assert recipe.max_steps == 4
    for split in (data.train, data.val, data.test):
        assert {identity.split("/")[0] for identity in split.ids} == {"first", "second"}
    assert len(data.test) == 6
    results = json.loads((run / "continual.json").read_text())
    assert len(results["matrix_iou"]) == 1 and results["last_iou"] == pytest.approx(np.mean(results["matrix_iou"]))
    assert "ff_iou" not in results


def test_distillation_at_equal_logits():
    logits = [torch.ones(1, 256, 256), torch.ones(2, 256, 256)]
    weight = torch.ones(2)
    entropy = math.log(1 + math.exp(-1)) + (1 - 1 / (1 + math.exp(-1)))
    assert distillation(logits, logits, weight).item() == pytest.approx(entropy, abs=1e-6)
    torch.manual_seed(0)
    assert distillation(logits, logits, weight, "official").item() == pytest.approx(0.58339 + 0.27022, abs=5e-4)
    # The soft form is least where both agree, the official one is not.
    for form, moves in (("soft", False), ("official", True)):
        student = [maps.clone().requires_grad_() for maps in logits]
        torch.manual_seed(0)
        distillation(student, logits, weight, form).backward()
        assert (student[0].grad.abs().max().item() > 1e-7) == moves


def test_distillation_is_a_mean_over_images_of_means_over_objects():
    generator = torch.Generator().manual_seed(0)
    student = [torch.randn(n, 8, 8, generator=generator) for n in (1, 3)]
    teacher = [torch.randn(n, 8, 8, generator=generator) for n in (1, 3)]
    alone = [distillation([s], [t], torch.ones(1)) for s, t in zip(student, teacher)]
    assert torch.allclose(distillation(student, teacher, torch.ones(2)), torch.stack(alone).mean())
    assert torch.allclose(distillation(student, teacher, torch.tensor([1.0, 0.0])), alone[0] / 2)
