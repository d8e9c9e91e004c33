"""FSDP2 over two gloo processes; the launch files of recipes/accelerate."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate import accelerator as accelerator_module
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType
from accelerate.utils import deepspeed as accelerate_deepspeed
from launching import ROOT
from peft import get_peft_model
from safetensors.torch import load_file
from sams import random_sam
from torch import nn

from hf_sam_adapt import SamDecoderConfig
from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.forward import PromptedSam
from hf_sam_adapt.training import run_folder
from hf_sam_adapt.training.sharding import check_sharding, tell_deepspeed


LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
FILES = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.xdist_group("torchrun")
@pytest.mark.parametrize("method", ["sam_adapter", pytest.param("lora", marks=pytest.mark.slow)])
def test_sharded_gradients_are_those_of_one_process(method, command_line, tmp_path):
    worker = ROOT / "tests" / "training" / "sharding_worker.py"
    found = {}
    for name, launcher in {"one": (sys.executable,), "two": LAUNCH}.items():
        file = tmp_path / f"{name}.safetensors"
        done = command_line(file, method, launcher=(*launcher, worker))
        assert done.returncode == 0, done.stderr
        found[name] = load_file(file)
    assert found["one"].keys() == found["two"].keys()
    largest = max(gradient.abs().max() for gradient in found["one"].values())
    assert largest > 0
    for name, gradient in found["one"].items():
        assert torch.allclose(gradient, found["two"][name], rtol=1e-4, atol=1e-6 * float(largest)), name


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_accelerate_reads_the_launch_files(file):
    config = load_config_from_file(str(file))
    args, *_ = _validate_launch_command(
        launch_command_parser().parse_args(["--config_file", str(file), "recipes/train.py"])
    )
    assert args.num_processes == config.num_processes
    assert (args.use_fsdp, args.use_deepspeed) == (file.stem == "fsdp2", file.stem == "zero2")
    assert args.mixed_precision in (None, "no")  # the recipe's key alone says it


def test_there_is_a_file_for_each_way_to_launch():
    assert [file.stem for file in FILES] == ["cpu", "ddp", "fsdp2", "multi_node", "single_gpu", "zero2"]


@pytest.mark.slow
@pytest.mark.xdist_group("torchrun")
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("full", {}),
        ("sam_adapter", {}),
        ("lora", {}),
        ("conv_lora", {"num_experts": 1}),  # several are drawn for a batch, which two processes have halves of
        ("decoder", {"decoder": "hq"}),
        ("cwsam", {"decoder": "full"}),
    ],
)
def test_a_whole_sharded_run_is_that_of_one_process(method, arguments, short_recipe, command_line, tmp_path):
    """Trained, validated, stopped, resumed and saved by two processes; loaded by one."""
    keys = {"method": method, "max_steps": 4, "prompts": ["none", "box"]}
    keys |= {f"method_args.{name}": value for name, value in arguments.items()}
    worker = ROOT / "tests" / "training" / "fsdp_worker.py"
    one = command_line(*short_recipe("one", **keys, batch_size=4), launcher=(sys.executable, worker))
    assert one.returncode == 0, one.stderr
    for resumed in ({}, {"resume_from_checkpoint": tmp_path / "two" / "checkpoints" / "step_2"}):
        two = command_line(*short_recipe("two", **keys, batch_size=2, **resumed), launcher=(*LAUNCH, worker))
        assert two.returncode == 0, two.stderr
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    weights = [load_file(tmp_path / folder / name) for folder in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert (weights[1][key] - value).norm() <= 1e-5 * value.norm(), key
    scores = [json.loads((tmp_path / folder / "metrics.json").read_text())["test"] for folder in ("one", "two")]
    assert scores[1]["box"]["adapted"]["iou"] == pytest.approx(scores[0]["box"]["adapted"]["iou"], abs=1e-5)
    loaded = command_line("evaluate", tmp_path / "two", "--dataset", tmp_path / "nowhere")
    assert "nowhere" in loaded.stderr  # loaded in one process: the only fault is the data


def accelerator_of(kind: DistributedType, **state) -> SimpleNamespace:
    return SimpleNamespace(distributed_type=kind, **state)


def test_zero_3_and_fsdp1_are_refused_at_the_start():
    plugin = SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=3))
    with pytest.raises(UserError, match="ZeRO 3"):
        check_sharding(accelerator_of(DistributedType.DEEPSPEED, state=plugin))
    plugin.deepspeed_plugin.zero_stage = 2
    check_sharding(accelerator_of(DistributedType.DEEPSPEED, state=plugin))
    with pytest.raises(UserError, match="fsdp_version: 2"):
        check_sharding(accelerator_of(DistributedType.FSDP, is_fsdp2=False))
    check_sharding(accelerator_of(DistributedType.FSDP, is_fsdp2=True))


@pytest.mark.parametrize("seen", [[True, True], [True, False]])
def test_a_folder_that_another_machine_does_not_see_is_refused(seen, monkeypatch, tmp_path):
    monkeypatch.setattr(run_folder, "rank_and_world", lambda: (0, 2))
    monkeypatch.setattr(run_folder, "of_all_ranks", lambda own: seen if own is True else [own, own])
    folder = run_folder.RunFolder(Recipe(dataset="synthetic:disc", output_dir=str(tmp_path / "a" / "run")))
    if all(seen):
        folder.check_shared()
    else:
        with pytest.raises(UserError, match="not seen by process 1 of 2"):
            folder.check_shared()
    assert not [*tmp_path.iterdir()]  # nothing is left behind


class _Engine(nn.Module):
    """What DeepSpeed's `initialize` makes of a model, as far as Accelerate looks at it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.fixture
def deepspeed(monkeypatch, tmp_path):
    """A stub in the place of the package; holds what `initialize` was given."""
    given = {}
    metadata = tmp_path / "deepspeed-0.18.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: deepspeed\nVersion: 0.18.0\n")
    monkeypatch.syspath_prepend(tmp_path)

    def initialize(**keywords):
        given.update(keywords)
        return _Engine(keywords["model"]), keywords["optimizer"], None, None

    schedules = SimpleNamespace(VALID_LR_SCHEDULES=[])
    stub = SimpleNamespace(initialize=initialize, runtime=SimpleNamespace(lr_schedules=schedules))
    monkeypatch.setitem(sys.modules, "deepspeed", stub)
    # Would tell transformers for the rest of the process.
    monkeypatch.setattr(DeepSpeedPlugin, "set_deepspeed_weakref", lambda plugin: None)
    names = ("DummyOptim", "DummyScheduler", "DeepSpeedEngineWrapper", "DeepSpeedOptimizerWrapper")
    for name in names:  # imported with the package alone
        monkeypatch.setattr(accelerator_module, name, getattr(accelerate_deepspeed, name), raising=False)
    return given


def accelerator_with(zero_stage: int, monkeypatch) -> Accelerator:
    """Accelerate's own, which takes the stub for DeepSpeed; batch size and accumulation are left to it."""
    settings = {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_optimization": {"stage": zero_stage},
    }
    accelerator = Accelerator(cpu=True)
    state = accelerator.state.__dict__
    monkeypatch.setitem(state, "distributed_type", DistributedType.DEEPSPEED)
    plugin = DeepSpeedPlugin(hf_ds_config=settings)
    monkeypatch.setitem(state, "deepspeed_plugins", {"default": plugin})
    plugin.select(_from_accelerator_state=True)
    monkeypatch.setattr(accelerator, "deepspeed_engine_wrapped", None, raising=False)
    return accelerator


def test_deepspeed_is_told_the_batch_size(deepspeed, monkeypatch):
    """`prepare`, as the loop calls it without a loader, asks Accelerate for a batch size in vain."""
    accelerator = accelerator_with(2, monkeypatch)
    check_sharding(accelerator)
    recipe = Recipe(dataset="synthetic:disc", batch_size=3, gradient_accumulation_steps=2)
    model = PromptedSam(get_peft_model(random_sam(), SamDecoderConfig()))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    with pytest.raises(ValueError, match="train_micro_batch_size_per_gpu"):
        accelerator.prepare(model, optimizer)
    tell_deepspeed(accelerator, recipe)
    wrapped, _ = accelerator.prepare(model, optimizer)
    assert wrapped.module is model and deepspeed["optimizer"] is optimizer
    settings = deepspeed["config_params"]
    assert settings["train_micro_batch_size_per_gpu"] == 3
    assert settings["gradient_accumulation_steps"] == 2
    assert settings["train_batch_size"] == 6


def test_zero_3_is_refused_by_what_accelerate_says_of_it(deepspeed, monkeypatch):
    with pytest.raises(UserError, match="ZeRO 3"):
        check_sharding(accelerator_with(3, monkeypatch))
