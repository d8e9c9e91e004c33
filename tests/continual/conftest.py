"""Continual runs of a few steps on three small data sets."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hf_sam_adapt.config.continual_recipe import ContinualRecipe


@pytest.fixture
def domain_folders(make_dataset, tmp_path) -> dict[str, str]:
    """Three data sets of 8 training and 3 test images."""
    return {
        name: str(make_dataset(tmp_path / "data" / name, train=8, test=3, seed=seed, foreground=255))
        for seed, name in enumerate(("first", "second", "third"))
    }


@pytest.fixture
def continual_recipe(sam_folder, domain_folders, tmp_path) -> Callable[..., ContinualRecipe]:
    """Returns `make(name="run", domains=("first", "second"), **keys)`; `output_dir` is `tmp_path / name`."""

    def make(name: str = "run", domains: tuple[str, ...] = ("first", "second"), **keys) -> ContinualRecipe:
        short = {"method": "decoder", "max_steps": 2, "batch_size": 2, "learning_rate": 1e-2, "protocol": "naive"}
        chosen = [{"name": domain, "dataset": domain_folders[domain]} for domain in domains]
        return ContinualRecipe(
            **{"model": str(sam_folder), "domains": chosen, "output_dir": str(tmp_path / name), **short, **keys}
        )

    return make


@pytest.fixture
def weights() -> Callable[[Path, int], dict]:
    """Returns `read(run, task)`: the tensors of the adapter after a task, from 0."""
    from safetensors.torch import load_file

    def read(run: Path, task: int) -> dict:
        (folder,) = (run / "tasks").glob(f"{task + 1}-*")
        return load_file(folder / "adapter_model.safetensors")

    return read
