"""FSDP2 over two gloo processes; the launch files of recipes/accelerate."""

import sys

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from launching import ROOT
from safetensors.torch import load_file


LAUNCH = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
FILES = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))


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
