"""Protocols that add parts: a prompt pool, LoRAs beside frozen ones."""

import json
from itertools import pairwise

import pytest
import torch
import yaml

from hf_sam_adapt.continual.protocols.olora import overlap_of_rows
from hf_sam_adapt.continual.run import continual
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted


LORA = {"method": "lora", "method_args": {"r": 2, "lora_alpha": 4}, "protocol": "olora"}


def test_l2p_trains_a_pool_on_a_frozen_sam(continual_recipe, weights):
    run = continual(continual_recipe(protocol="l2p", protocol_args={"pool_size": 6, "top_k": 2, "prompt_length": 3}))
    first, second = weights(run, 0), weights(run, 1)
    assert {tuple(value.shape) for value in second.values()} == {(6, 3, 16), (6, 16)}
    assert any(not torch.equal(first[name], value) for name, value in second.items())
    recipe = yaml.safe_load((run / "tasks/2-second/recipe.yaml").read_text())
    assert recipe["method"] == "l2p" and recipe["adapter"].endswith("1-first")
    assert json.loads((run / "continual.json").read_text())["method"] == "l2p"


def test_l2p_takes_no_adapter_and_its_own_arguments(continual_recipe):
    with pytest.raises(UserError, match="unknown key 'pool'; did you mean 'pool_size'"):
        continual(continual_recipe(protocol="l2p", protocol_args={"pool": 3}))
    with pytest.raises(UserError, match="adapter: the prompts of l2p"):
        continual(continual_recipe(protocol="l2p", adapter="x"))


@pytest.mark.slow
def test_olora_adds_a_lora_and_keeps_the_earlier_ones(continual_recipe, weights):
    run = continual(continual_recipe(domains=("first", "second", "third"), max_steps=3, weight_decay=0.1, **LORA))
    tasks = [weights(run, task) for task in range(3)]
    for task, (before, after) in enumerate(pairwise(tasks), start=1):
        rank = 2 * task
        for name, value in after.items():
            if "lora_A" in name:
                assert value.shape[0] == rank + 2 and torch.equal(value[:rank], before[name])
            elif "lora_B" in name:
                assert value.shape[1] == rank + 2 and torch.equal(value[:, :rank], before[name])
                assert value[:, rank:].abs().sum() > 0
    assert any("mask_decoder" in name and not torch.equal(tasks[0][name], tasks[1][name]) for name in tasks[0])
    # The masks of a task start where those of the task before ended: the sum of the LoRAs is what is loaded.
    configs = [load_adapted(str(folder)).config for folder in sorted((run / "tasks").iterdir())]
    assert [config.r for config in configs] == [2, 4, 6]
    assert {config.lora_alpha / config.r for config in configs} == {2}


@pytest.mark.slow
def test_olora_starts_from_the_sum_of_the_earlier_loras(continual_recipe):
    """Without a step the new LoRA adds nothing: the model of the task before, and its scores."""
    run = continual(continual_recipe(learning_rate=0, **LORA))
    matrix = json.loads((run / "continual.json").read_text())["matrix_iou"]
    assert matrix[0] == matrix[1]
    first, second = (load_adapted(str(folder)).model for folder in sorted((run / "tasks").iterdir()))
    pixels = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        one, other = (model(pixel_values=pixels, multimask_output=False).pred_masks for model in (first, second))
    assert torch.allclose(one, other, atol=1e-6)


def test_olora_pushes_the_rows_apart(continual_recipe, weights):
    overlaps = []
    for weight in (0.0, 30.0):
        args = {"weight": weight}
        run = continual(continual_recipe(f"w{weight}", max_steps=8, protocol_args=args, **LORA))
        down = [value for name, value in weights(run, 1).items() if "lora_A" in name]
        overlaps.append(overlap_of_rows(down, 2).item())
    assert overlaps[1] < 0.8 * overlaps[0]


def test_overlap_of_rows_is_the_sum_of_absolute_products():
    value = torch.tensor([[1.0, 0, 0], [0, 1, 0], [2, -3, 5]])
    assert overlap_of_rows([value, 2 * value], 2).item() == (2 + 3) + 4 * (2 + 3)


def test_olora_wants_loras(continual_recipe):
    with pytest.raises(UserError, match="olora adds up fresh LoRAs, not method decoder; use method lora"):
        continual(continual_recipe(protocol="olora"))
    for field in ({"rank_pattern": {"layers.0.attn.qkv": 4}}, {"alpha_pattern": {"qkv": 4}}, {"use_dora": True}):
        with pytest.raises(UserError, match=rf"method_args\.{next(iter(field))}: olora adds up LoRAs of one rank"):
            continual(continual_recipe(**LORA | {"method_args": {"r": 2, **field}}))
