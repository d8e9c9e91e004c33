"""Training Conv-LoRA: its own loss is part of the step, its experts are counted, a resumed run continues both."""

import json
import sys

import pytest
import torch
from launching import ROOT, recipe_flags
from safetensors.torch import load_file

from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.training import train


ADAPTER = "adapter_model.safetensors"
KEYS = {
    "method": "conv_lora",
    "method_args.num_experts": 4,
    "max_steps": 6,
    "learning_rate": 1e-2,
    "checkpoint_every": 3,
}


def run(sam_folder, disc_folder, folder, **keys):
    return train(parse_recipe(recipe_flags(model=sam_folder, dataset=disc_folder, output_dir=folder, **KEYS, **keys)))


def gates(folder):
    return {name: value for name, value in load_file(folder / ADAPTER).items() if "w_gate" in name}


@pytest.mark.parametrize("coefficient", [0.01, 0.0])
def test_the_balance_loss_trains_the_published_gate(coefficient, sam_folder, disc_folder, tmp_path):
    """With router "faithful" nothing else reaches it, so the gate stays at zero without that loss."""
    fields = {"method_args.router": "faithful", "method_args.balance_loss_coef": coefficient, "weight_decay": 0}
    trained = gates(run(sam_folder, disc_folder, tmp_path / "run", **fields))
    assert len(trained) == 3
    assert all((value.abs().max() > 0) == (coefficient > 0) for value in trained.values())


def test_experts_are_counted_over_the_training(sam_folder, disc_folder, tmp_path):
    folder = run(sam_folder, disc_folder, tmp_path / "run", batch_size=2)
    rows = json.loads((folder / "checkpoints" / "step_6" / "state.json").read_text())["experts"]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    counts = torch.tensor(rows[0]["noisy"])  # (layers, experts)
    assert counts.shape == (3, 4)
    # Window 3 on a grid of 8: 9 windows an image; layer 1 is global.
    assert counts.sum(1).tolist() == torch.tensor(rows[0]["clean"]).sum(1).tolist() == [18, 2, 18]
    assert (folder / "experts.png").stat().st_size > 1000


@pytest.mark.slow
def test_resumed_equals_straight(sam_folder, disc_folder, tmp_path):
    straight = run(sam_folder, disc_folder, tmp_path / "straight", gradient_checkpointing=True)
    half = run(sam_folder, disc_folder, tmp_path / "half", gradient_checkpointing=True)
    for step in (half / "checkpoints").glob("step_6"):
        for file in step.iterdir():
            file.unlink()
        step.rmdir()
    for name in (ADAPTER, "metrics.json"):
        (half / name).unlink()
    resumed = run(
        sam_folder, disc_folder, tmp_path / "half", gradient_checkpointing=True, resume_from_checkpoint="latest"
    )
    assert (resumed / ADAPTER).read_bytes() == (straight / ADAPTER).read_bytes()
    states = [json.loads((f / "checkpoints" / "step_6" / "state.json").read_text()) for f in (straight, resumed)]
    assert states[0]["experts"] == states[1]["experts"]


def test_pruned_decoder_through_training_and_reload(sam_folder, disc_folder, tmp_path):
    folder = run(
        sam_folder, disc_folder, tmp_path / "run", **{"method_args.num_mask_tokens": 1, "prompts": ["none", "point"]}
    )
    loaded = load_adapted(str(folder))
    assert loaded.config.num_mask_tokens == 1
    assert loaded.model.get_base_model().mask_decoder.base_layer.num_mask_tokens == 4
    scores = json.loads((folder / "metrics.json").read_text())["test"]
    assert scores["point"]["adapted"]["iou"] >= 0


@pytest.mark.slow
@pytest.mark.xdist_group("torchrun")
@pytest.mark.parametrize("router", ["faithful", "straight_through"])
def test_two_processes(router, short_recipe, command_line, tmp_path):
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    keys = {**KEYS, "method_args.router": router, "batch_size": 2, "max_steps": 2}
    done = command_line(*short_recipe("run", **keys), launcher=(*launch, ROOT / "recipes" / "train.py"))
    assert done.returncode == 0, done.stderr
    assert all(value.abs().max() > 0 for value in gates(tmp_path / "run").values())
