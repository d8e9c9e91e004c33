"""The learning rate of each step, against the published schedule's numbers."""

from itertools import pairwise

import pytest
import torch

from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.inference.loading import build_model, load_base
from hf_sam_adapt.training.optim import build_optimizer, learning_rate_at, warmup_steps


@pytest.mark.parametrize(("step", "expected"), [(1, 2.0e-4), (2, 1.98769e-4), (11, 1.0005e-4), (20, 1.331e-6)])
def test_cosine_equals_the_published_schedule(step, expected):
    assert learning_rate_at(step - 1, highest=2e-4, total_steps=20) == pytest.approx(expected, rel=1e-5, abs=5e-10)


def test_cosine_equals_torch():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=37, eta_min=1e-7)
    for step in range(37):
        assert learning_rate_at(step, highest=2e-4, total_steps=37) == pytest.approx(
            schedule.get_last_lr()[0], rel=1e-9
        )
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("scheduler", ["cosine", "linear"])
def test_rises_over_the_warmup_and_falls_after_it(scheduler):
    rates = [learning_rate_at(s, highest=1.0, total_steps=50, warmup=10, scheduler=scheduler) for s in range(50)]
    assert rates[:10] == pytest.approx([0.1 * (s + 1) for s in range(10)])
    assert max(rates) == 1 and rates[10] == 1
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert 0 < rates[-1] < 0.03


def test_step_is_the_published_schedule_whatever_an_epoch_holds():
    for steps in (1, 7, 250):
        rates = [
            learning_rate_at(s, highest=1e-3, total_steps=24 * steps, scheduler="step") for s in range(24 * steps)
        ]
        epochs = [rates[steps * epoch : steps * (epoch + 1)] for epoch in range(24)]
        assert all(len(set(epoch)) == 1 for epoch in epochs)
        assert [epoch[0] for epoch in epochs] == pytest.approx([1e-3] * 10 + [1e-4] * 10 + [1e-5] * 4)


def test_linear_is_linear():
    rates = [learning_rate_at(s, highest=1.0, total_steps=10, scheduler="linear") for s in range(10)]
    differences = [later - earlier for earlier, later in pairwise(rates)]
    assert differences == pytest.approx([differences[0]] * 9)


def test_warmup_is_a_fraction_or_steps():
    assert warmup_steps(0.05, 200) == 10
    assert warmup_steps(0, 200) == 0
    assert warmup_steps(25, 200) == 25
    assert warmup_steps(25, 10) == 10


def test_one_optimizer_step_is_adamw_of_the_trainable_parameters():
    trained = torch.nn.Parameter(torch.randn(5, 2))
    frozen = torch.nn.Parameter(torch.randn(5, 2), requires_grad=False)
    start, gradient = trained.detach().double().clone(), torch.randn(5, 2)
    recipe = Recipe(model="x/y")
    optimizer = build_optimizer([trained, frozen], recipe, torch.device("cpu"))
    assert [p for group in optimizer.param_groups for p in group["params"]] == [trained]
    trained.grad = gradient
    optimizer.step()
    # First step of AdamW: decay by lr * 0.01, then lr along the sign of the gradient.
    expected = start * (1 - 2e-4 * 0.01) - 2e-4 * gradient.double() / (gradient.double().abs() + 1e-8)
    assert torch.allclose(trained.detach().double(), expected, atol=1e-7)


@pytest.mark.parametrize("shape", [(), (5,), (5, 3), (2, 3, 4), (2, 3, 4, 4)])
def test_vectors_do_not_decay(shape):
    parameter = torch.nn.Parameter(torch.ones(shape))
    optimizer = build_optimizer([parameter], Recipe(model="x/y", weight_decay=0.5), torch.device("cpu"))
    parameter.grad = torch.zeros(shape)
    optimizer.step()
    expected = 1 - 2e-4 * 0.5 if len(shape) > 1 else 1.0
    assert torch.allclose(parameter.detach(), torch.full(shape, expected), rtol=0, atol=1e-7)


def test_every_norm_and_bias_of_an_adapted_model_keeps_its_size(sam_folder):
    model = build_model("decoder", {}, load_base(str(sam_folder))[0])
    recipe = Recipe(model="x/y", weight_decay=0.5)
    still, decaying = [], []
    for group in build_optimizer(model.parameters(), recipe, torch.device("cpu")).param_groups:
        (decaying if group["weight_decay"] else still).extend(map(id, group["params"]))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert id(parameter) in (still if "norm" in name or name.endswith("bias") else decaying), name
    assert still and decaying


@pytest.mark.parametrize("scheduler", ["cosine", "linear", "step"])
@pytest.mark.parametrize("lowest", [0.0, 1e-5, 1e-4, 1e-3])
def test_the_rate_falls_to_lr_min(scheduler, lowest):
    rates = [
        learning_rate_at(s, highest=1e-3, total_steps=2400, warmup=9, scheduler=scheduler, lowest=lowest)
        for s in range(2401)
    ]
    assert rates[9] == pytest.approx(1e-3) and min(rates[9:]) == rates[-1]
    assert rates[-1] == pytest.approx(max(lowest, 1e-5) if scheduler == "step" else lowest, abs=1e-9)


def test_lr_min_equals_torch():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=37, eta_min=3e-5)
    for step in range(37):
        found = learning_rate_at(step, highest=2e-4, total_steps=37, lowest=3e-5)
        assert found == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()
