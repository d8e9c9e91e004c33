"""What the tests of the conversions share."""

import json

import pytest
import torch
from sams import random_sam

from hf_sam_adapt import SamAdaptProcessor


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def images(count=2, seed=3):
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def sam():
    return random_sam()


@pytest.fixture
def base(sam, tmp_path):
    """The folder of the model that the checkpoints are made from."""
    folder = tmp_path / "base"
    sam.save_pretrained(folder)
    SamAdaptProcessor(image_size=64, patch_size=8).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "adapter"


@pytest.fixture
def write(tmp_path):
    def write(content, name="model.ckpt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        torch.save(content, tmp_path / name)
        return tmp_path / name

    return write
