"""A random small SAM, a folder of drawn discs, and the command line in a process of its own."""

import subprocess
import sys

import numpy as np
import pytest
from launching import ROOT, environment, recipe_flags
from PIL import Image

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.sam.processing import SamAdaptProcessor


def draw_discs(rng, count, size=(48, 60), radius=(5, 12)):
    """Dark noise with `count` bright discs: uint8 (H, W, 3) and uint8 (H, W) in {0, 255}."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, bool)
    for _ in range(count):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        mask |= (rows - y) ** 2 + (columns - x) ** 2 <= rng.integers(*radius) ** 2
    image = rng.normal(90, 20, (*size, 3)) + 70 * mask[..., None]
    return image.clip(0, 255).astype(np.uint8), 255 * mask.astype(np.uint8)


def write_pairs(folder, pairs):
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number, (image, mask) in enumerate(pairs):
        Image.fromarray(image).save(folder / "images" / f"{number:03}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:03}.png")


@pytest.fixture(scope="session")
def disc_folder(tmp_path_factory):
    """10 training, 4 validation and 5 test images."""
    folder, rng = tmp_path_factory.mktemp("data") / "discs", np.random.default_rng(0)
    for split, number in (("train", 10), ("val", 4), ("test", 5)):
        write_pairs(folder / split, [draw_discs(rng, int(rng.integers(1, 4))) for _ in range(number)])
    return folder


@pytest.fixture
def processor():
    return SamAdaptProcessor(image_size=64, patch_size=8)


@pytest.fixture(scope="session")
def disc_split(disc_folder):
    return load_segmentation_dataset(str(disc_folder)).train


def _one_image_split(folder, image, mask):
    write_pairs(folder, [(image, mask)])
    return load_segmentation_dataset(str(folder), mask_values="binary").train


@pytest.fixture
def crowd_split(tmp_path):
    rng, mask = np.random.default_rng(1), np.zeros((60, 60), np.uint8)
    for row in range(4):
        for column in range(5):
            mask[15 * row + 2 : 15 * row + 10, 12 * column + 2 : 12 * column + 9] = 255
    return _one_image_split(tmp_path / "crowd", rng.integers(0, 255, (60, 60, 3), np.uint8), mask)


@pytest.fixture
def empty_split(tmp_path):
    image, _ = draw_discs(np.random.default_rng(2), 1)
    split = _one_image_split(tmp_path / "empty", image, np.eye(*image.shape[:2], dtype=np.uint8))
    Image.fromarray(np.zeros(image.shape[:2], np.uint8)).save(tmp_path / "empty/masks/000.png")
    return split


@pytest.fixture
def short_recipe(sam_folder, disc_folder, tmp_path):
    """Flags of a run of a few steps; `output_dir` is `tmp_path / name`."""

    def flags(name="run", **keys):
        return recipe_flags(**{"model": sam_folder, "dataset": disc_folder, "output_dir": tmp_path / name, **keys})

    return flags


@pytest.fixture
def command_line():
    """Runs `hf-sam-adapt` in a process of its own and returns it when it has ended."""

    def run(*argv, launcher=(sys.executable, "-m", "hf_sam_adapt.cli")):
        return subprocess.run(
            [*launcher, *map(str, argv)], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
        )

    return run
