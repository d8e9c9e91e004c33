"""Runs of a few steps whose cards are read: one class, several classes, a pool of domains."""

import json
from pathlib import Path

import numpy as np
import pytest
from pages import read_page
from PIL import Image

from hf_sam_adapt.config.continual_recipe import ContinualRecipe
from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.continual.run import continual
from hf_sam_adapt.training import train


SHORT = {"max_steps": 4, "batch_size": 2, "eval_every": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="session")
def page():
    """`read_page`."""
    return read_page


def write_data(folder: Path, rng: np.random.Generator, classes: int = 2, counts=(6, 2, 4)) -> str:
    """Noise with a bar per class but the first, a brightness each; returns the folder's name."""
    for split, count in zip(("train", "val", "test"), counts):
        for index in range(count):
            mask = np.zeros((40, 56), np.uint8)
            for label in range(1, classes):
                left = 4 + 16 * (label - 1) + int(rng.integers(0, 4))
                mask[int(rng.integers(0, 12)) :, left : left + 10] = label
            image = rng.normal(60 + 60 * mask[..., None], 10, (40, 56, 3)).clip(0, 255).astype(np.uint8)
            stored = mask * 255 if classes == 2 else mask
            for kind, array in (("images", image), ("masks", stored)):
                path = folder / split / kind / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return str(folder)


@pytest.fixture(scope="session")
def binary_run(sam_folder, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("binary")
    data = write_data(place / "bright_bars", np.random.default_rng())
    keys = {"model": sam_folder, "dataset": data, "output_dir": str(place / "run"), "prompts": ["none", "box"]}
    return train(Recipe(**keys, **SHORT))


@pytest.fixture(scope="session")
def class_run(sam_folder, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("classes")
    data = write_data(place / "bars", np.random.default_rng(), classes=3)
    names = {0: "ground", 1: "grey | dull", 2: "bright"}
    keys = {"model": sam_folder, "dataset": data, "output_dir": str(place / "run"), "method": "cwsam"}
    return train(Recipe(**keys, num_labels=3, id2label=names, mask_values="index", **SHORT))


@pytest.fixture(scope="session")
def pool_run(sam_folder, tmp_path_factory) -> Path:
    """A continual run; its pool is in `pool/`."""
    place = tmp_path_factory.mktemp("continual")
    domains = [{name: write_data(place / name, np.random.default_rng())} for name in ("first", "second")]
    keys = {"model": sam_folder, "domains": domains, "output_dir": str(place / "run"), "method": "decoder"}
    return continual(ContinualRecipe(**keys, **SHORT))


@pytest.fixture
def read_json():
    return lambda path: json.loads(Path(path).read_text())
