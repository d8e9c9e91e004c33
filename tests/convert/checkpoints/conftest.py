"""Fixtures of the conversions: a small SAM, its folder, and files to convert."""

import pytest
import torch
from sams import random_sam

from hf_sam_adapt import SamAdaptProcessor


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
    def write(content, name="model.ckpt", **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    return write
