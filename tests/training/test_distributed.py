"""Two gloo processes do what one process does; `accelerate launch` starts the script."""

import json
import sys

import pytest
import torch
from launching import ROOT
from safetensors import safe_open
from safetensors.torch import load_file
from sams import RANDOM_SAMS


# `accelerate launch` starts several processes on GPUs only; on a CPU that is torchrun's part.
# Two torchruns side by side have hung: pytest-xdist gives what starts one to one of its workers.
pytestmark = pytest.mark.xdist_group("torchrun")
LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


# Not l2p, whose images choose their prompts together; of Conv-LoRA's experts, which are drawn for a batch, one.
METHODS = [
    {"method": "decoder"},
    {"method": "lora"},
    {"method": "full"},
    {"method": "sam_adapter", "method_args.scale_factor": 4},
    {"method": "conv_lora", "method_args.num_experts": 1},
    {"method": "cwsam", "method_args.decoder": "full"},
]


@pytest.fixture
def gradients(short_recipe, command_line, tmp_path):
    """Runs recipes in one process and in two, which have to agree; the gradients of each recipe by name."""
    worker = ROOT / "tests" / "training" / "gradient_worker.py"
    prompts = {"prompts": ["none", "box", "point"], "correction_rounds": 2}

    def run(name, launcher, recipes, **division):
        files, jobs = [tmp_path / f"{name}-{number}.safetensors" for number in range(len(recipes))], []
        for file, keys in zip(files, recipes):
            keys = {**keys, **prompts, "max_grad_norm": 0, "learning_rate": 0, **division}
            jobs.append((str(file), list(map(str, short_recipe(file.stem, **keys)))))
        (tmp_path / f"{name}.json").write_text(json.dumps(jobs))
        done = command_line(tmp_path / f"{name}.json", launcher=(*launcher, worker))
        assert done.returncode == 0, done.stderr
        return files

    def compare(recipes):
        one = run("one", (sys.executable,), recipes, batch_size=4)
        two = run("two", LAUNCH, recipes, batch_size=1, gradient_accumulation_steps=2)
        return [equal_gradients(*files) for files in zip(one, two, strict=True)]

    return compare


def equal_gradients(one, two):
    """The tensors of two files of `gradient_worker.py`."""
    found, losses, worlds = [], [], []
    for file in (one, two):
        with safe_open(file, "pt") as content:
            metadata = content.metadata()
        found.append(load_file(file))
        losses.append(float(metadata["loss"]))
        worlds.append(metadata["world"])
    assert worlds == ["1", "2"] and abs(losses[0] - losses[1]) < 1e-6
    largest = max(gradient.abs().max() for gradient in found[0].values())
    assert largest > 1e-3
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], rtol=1e-5, atol=1e-6 * float(largest)), (one.stem, name)
    return found[0]


@pytest.mark.parametrize(
    "method",
    [
        {"method": "sam_adapter"},
        pytest.param({"method": "lora"}, marks=pytest.mark.slow),
        pytest.param({"method": "decoder", "method_args.decoder": "hq"}, marks=pytest.mark.slow),
        pytest.param({"method": "decoder", "method_args.train_iou_head": "true"}, marks=pytest.mark.slow),
        pytest.param({"method": "decoder", "method_args.train_no_mask_embed": "true"}, marks=pytest.mark.slow),
    ],
    ids=lambda method: "-".join(method.values()),
)
def test_two_processes_give_the_gradients_of_one(method, gradients):
    (found,) = gradients([method])
    assert any("no_mask_embed" in name for name in found) == ("method_args.train_no_mask_embed" in method)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["sam_hq", "sam2", "sam3_tracker"])
def test_so_they_do_on_every_family(model_type, gradients, tmp_path):
    RANDOM_SAMS[model_type]().save_pretrained(tmp_path / "base")
    found = gradients([{"model": tmp_path / "base", **method} for method in METHODS])
    assert len(found) == len(METHODS)
    assert not [name for one in found for name in one if "conv_s" in name or "no_mask_embed" in name]


@pytest.mark.slow
def test_what_a_mask_prompt_leaves_out_keeps_no_process_waiting(sam_folder, short_recipe, command_line, tmp_path):
    keys = {"method": "decoder", "method_args.train_no_mask_embed": "true", "prompts": ["mask", "none"]}
    done = command_line(*short_recipe(**keys, batch_size=1), launcher=(*LAUNCH, ROOT / "recipes" / "train.py"))
    assert done.returncode == 0, done.stderr
    weights = load_file(tmp_path / "run" / "adapter_model.safetensors")
    (trained,) = (value for name, value in weights.items() if name.endswith("no_mask_embed.weight"))
    base = load_file(f"{sam_folder}/model.safetensors")["prompt_encoder.no_mask_embed.weight"]
    assert (trained - base).abs().max() > 1e-5  # left out by the optimizer, no process would have waited for it


@pytest.mark.slow
def test_two_processes_train_and_resume_as_one(short_recipe, command_line, tmp_path):
    keys = {"max_steps": 3, "prompts": ["none", "box"]}
    script = ROOT / "recipes" / "train.py"
    launch = (sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1")
    one = command_line(*short_recipe("one", **keys, batch_size=4), launcher=(*launch, script))
    assert one.returncode == 0, one.stderr
    two = command_line(*short_recipe("two", **keys, batch_size=2), launcher=(*LAUNCH, script))
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("Saved to") == 1
    weights = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two")]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=2e-5) for name in weights[0])
    tests = [json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("one", "two")]
    assert tests[0]["none"]["zero_shot"] == pytest.approx(tests[1]["none"]["zero_shot"], abs=1e-6)
    assert tests[0]["box"]["adapted"]["iou"] == pytest.approx(tests[1]["box"]["adapted"]["iou"], abs=1e-3)
    resumed = command_line("train", *short_recipe("two", **keys, batch_size=4, resume_from_checkpoint="latest"))
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.slow
def test_bad_input_ends_every_process_with_one_line(short_recipe, command_line, tmp_path):
    script = ROOT / "recipes" / "train.py"
    done = command_line(*short_recipe(dataset=tmp_path / "nowhere"), launcher=(*LAUNCH, script))
    assert done.returncode != 0
    assert "error: dataset: " in done.stderr and not (tmp_path / "run").exists()
