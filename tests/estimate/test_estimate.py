"""Memory counted from shapes, and the command on top of it."""

import copy
import json

import pytest
import torch
from PIL import Image
from sams import random_sam
from transformers import AutoConfig

from hf_sam_adapt.cli import main
from hf_sam_adapt.cli.estimate import CARDS, rows_of
from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.estimate.calibrate import calibrate
from hf_sam_adapt.estimate.estimate import Estimate
from hf_sam_adapt.estimate.shapes import LiveBytes, step_bytes
from hf_sam_adapt.inference.loading import build_model


def recipe(**keys):
    return Recipe(**{"model": "tiny", "loss": "structure", "method": "sam_adapter", **keys})


def adapted(method="sam_adapter", **config):
    torch.manual_seed(0)
    return build_model(method, {}, random_sam(**config), image_size=None)


def test_live_bytes_are_those_of_storages_that_are_referred_to():
    with LiveBytes() as count:
        first = torch.zeros(100, dtype=torch.float32)
        view = first[:50]
        assert count.live == 400
        second = torch.zeros(100, dtype=torch.float64)
        assert count.live == count.peak == 1200
        del first
        assert count.live == 1200  # the view keeps it
        del view
        assert count.live == 800
        second.add_(1)
    assert count.peak == 1200


@pytest.mark.slow
def test_bytes_grow_with_batch_objects_and_size_and_shrink_with_checkpointing():
    model = adapted()
    one, two, three = (step_bytes(model, recipe(), size, 1) for size in (1, 2, 3))
    assert one < two < three
    assert three - two == pytest.approx(two - one, rel=0.02)
    boxes = recipe(prompts=["box"])
    assert step_bytes(model, boxes, 1, 8) > 2 * step_bytes(model, boxes, 1, 1) - one
    assert step_bytes(model, recipe(prompts=["none", "box"]), 1, 8) == step_bytes(model, boxes, 1, 8)
    assert step_bytes(adapted(image_size=128), recipe(), 1, 1) > 2 * one
    plain = step_bytes(adapted(layers=8), recipe(), 2, 1)
    deep = adapted(layers=8)
    deep.gradient_checkpointing_enable()
    assert step_bytes(deep, recipe(), 2, 1) < 0.7 * plain


@pytest.mark.parametrize("kind", ["none", "box", "point", "mask"])
@pytest.mark.parametrize("method", ["conv_lora", "lora", "decoder"])
def test_every_method_and_prompt_is_counted_and_the_model_stays(method, kind):
    model = adapted(method)
    before = copy.deepcopy(model.state_dict())
    assert step_bytes(model, recipe(method=method, prompts=[kind]), 2, 3) > 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    side = model.config.vision_config.image_size
    with torch.no_grad():
        assert model(pixel_values=torch.zeros(1, 3, side, side), multimask_output=False).pred_masks.isfinite().all()


@pytest.mark.slow
def test_rows_of_an_hq_head_are_counted():
    torch.manual_seed(0)
    model = build_model("decoder", {"decoder": "hq"}, random_sam(), image_size=None)
    boxes = recipe(method="decoder", prompts=["box"])
    one, two, eight = (step_bytes(model, boxes, 2, objects) for objects in (1, 2, 8))
    assert one < two < eight
    assert step_bytes(model, recipe(method="decoder", prompts=["box"], correction_rounds=1), 2, 1) == two


def test_the_trained_weights_count_three_times_beside_the_activations():
    # Gradient and two moments, 4 bytes each.
    model = adapted("decoder")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    frozen = adapted("decoder")
    for name, parameter in frozen.named_parameters():
        parameter.requires_grad = parameter.requires_grad and "transformer" not in name
    fewer = sum(p.numel() for p in frozen.parameters() if p.requires_grad)
    difference = step_bytes(model, recipe(method="decoder"), 1, 1) - step_bytes(frozen, recipe(method="decoder"), 1, 1)
    assert difference >= 8 * (trained - fewer)


def test_the_card_must_hold_weights_and_tensors():
    found = Estimate("cpu", 10, 100, 40, 2 * 10**9, 7 * 10**9, 6 * 10**9, 0.5, 7200)
    rows = dict(rows_of(found))
    assert rows["smallest GPU"].startswith("12 GB")  # 8 GB of tensors do not fit into a card of 8
    assert rows["whole training"].startswith("7,200 steps, 1 h 00 min")
    cuda = Estimate("cuda", 10, 100, 40, 2 * 10**9, 7 * 10**9, 6 * 10**9, 0.5, 7200)
    assert dict(rows_of(cuda))["smallest GPU"].startswith("8 GB")
    huge = Estimate("cuda", 10, 100, 40, 0, CARDS[-1] * 10**9, 0, 0.5, 1)
    assert "more than 80 GB" in dict(rows_of(huge))["smallest GPU"]


def test_the_command_writes_its_numbers_and_nothing_else(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["--method", "sam_adapter", "--dataset", "synthetic:polyp", "--max_steps", "50", "--batch_size", "4"]
    assert main(["estimate", *argv, "--json", "found.json"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["steps"] == 50 and found["step_seconds"] > 0
    assert found["peak_memory_bytes"] > found["trained_parameters"] > 1000
    assert "trained parameters" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]


def test_bad_input_is_the_line_that_training_would_end_with(tmp_path, capsys):
    assert main(["estimate", "--dataset", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error and "Traceback" not in error


def test_a_training_of_fewer_steps_than_are_timed(sam_folder, make_dataset, tmp_path):
    """Three images and one step; the ten steps that are timed go round."""
    wanted = {"model": sam_folder, "dataset": str(make_dataset(train=3, val=1)), "output_dir": str(tmp_path / "run")}
    for keys in ({"max_steps": 1}, {"epochs": 1}):
        found = calibrate(Recipe(**wanted, **keys, batch_size=2))
        assert found["seconds"] > 0 and found["images"] == 3


@pytest.mark.parametrize("empty", [2, 3])
def test_validation_images_without_foreground_are_timed_or_left_out(sam_folder, make_dataset, tmp_path, empty):
    data = make_dataset(train=3, val=3)
    for path in sorted((data / "val/masks").iterdir())[:empty]:
        Image.new("L", Image.open(path).size).save(path)
    recipe = Recipe(model=sam_folder, dataset=str(data), output_dir=str(tmp_path / "run"), max_steps=1, batch_size=1)
    assert calibrate(recipe)["seconds"] > 0


def test_an_epoch_of_tiles_is_counted(sam_folder, make_dataset, tmp_path):
    data = make_dataset(train=3, val=1, size=(48, 64))
    wanted = {"model": sam_folder, "dataset": str(data), "output_dir": str(tmp_path / "run"), "batch_size": 2}
    found = calibrate(Recipe(**wanted, tile=24, overlap=0, max_steps=1))
    assert found["images"] == 3 * 2 * 3 and found["tiled"]
    rows = dict(rows_of(Estimate("cpu", 10, 100, 40, 10**9, 10**9, 10**9, 0.5, 90, tiles=found["images"])))
    assert rows["tiles of an epoch"] == "18"
    assert "tiles of an epoch" not in dict(rows_of(Estimate("cpu", 10, 100, 40, 10**9, 10**9, 10**9, 0.5, 90)))


def test_what_a_training_refuses_is_said_as_the_training_says_it(make_dataset, tmp_path, capsys):
    AutoConfig.for_model("edgetam").save_pretrained(tmp_path / "model")
    assert main(["estimate", "--model", str(tmp_path / "model"), "--dataset", str(make_dataset())]) == 2
    refused = f"error: model: {tmp_path / 'model'} is of type 'edgetam'; this package adapts"
    assert [line for line in capsys.readouterr().err.splitlines() if line][-1].startswith(refused)
