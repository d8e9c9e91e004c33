"""The learning rate of each step, against the published schedule's numbers."""

from itertools import pairwise

import pytest
import torch

from hf_sam_adapt.recipe import Recipe
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
    trained, frozen = torch.nn.Parameter(torch.randn(5)), torch.nn.Parameter(torch.randn(5), requires_grad=False)
    start, gradient = trained.detach().double().clone(), torch.randn(5)
    recipe = Recipe(model="x/y")
    optimizer = build_optimizer([trained, frozen], recipe, torch.device("cpu"))
    assert [p for group in optimizer.param_groups for p in group["params"]] == [trained]
    trained.grad = gradient
    optimizer.step()
    # First step of AdamW: decay by lr * 0.01, then lr along the sign of the gradient.
    expected = start * (1 - 2e-4 * 0.01) - 2e-4 * gradient.double() / (gradient.double().abs() + 1e-8)
    assert torch.allclose(trained.detach().double(), expected, atol=1e-7)
