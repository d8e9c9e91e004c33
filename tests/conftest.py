"""Settings and data that all tests share."""

import os
import zlib


# Read by huggingface_hub and OpenMP when they are imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import set_seed
from PIL import Image


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=0, help="another seed gives every test other random inputs (0)")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test's random inputs come from its name and `--seed`, whatever ran before it."""
    seed = item.config.getoption("--seed")
    set_seed(zlib.crc32(f"{item.location[0]} {item.name} {seed}".encode()))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Bit-equal results need equal thread counts, and parallel test runs need the other cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real domains; tests that need it are skipped where it is absent."""
    default = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("HF_SAM_ADAPT_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set HF_SAM_ADAPT_DATA")
    return folder.resolve()


@pytest.fixture(scope="session")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A SamModel of 64x64 pixels and patches of 8 whose weights matter, its processor beside it."""
    from sams import random_sam

    from hf_sam_adapt.sam.processing import SamAdaptProcessor

    folder = tmp_path_factory.mktemp("sam") / "small"
    random_sam().save_pretrained(folder)
    SamAdaptProcessor(image_size=64, patch_size=8).save_pretrained(folder)
    return str(folder)


def draw_pair(rng: np.random.Generator, size: tuple[int, int] = (48, 64)) -> tuple[np.ndarray, np.ndarray]:
    """A bright rectangle on dark noise: uint8 (H, W, 3) and its mask uint8 (H, W) in {0, 1}."""
    height, width = size
    image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    top, left = rng.integers(0, height // 2), rng.integers(0, width // 2)
    mask[top : top + height // 3, left : left + width // 3] = 1
    image[mask == 1] += 150
    return image, mask


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Returns `make(root=None, *, train=6, val=0, test=3, flat=0, size=(48, 64), foreground=1, seed=0) -> Path`.

    It draws a paired folder of PNG files: `flat` images in {images,masks}, or else the given number in each split.
    """

    def make(
        root: Path | None = None,
        *,
        train: int = 6,
        val: int = 0,
        test: int = 3,
        flat: int = 0,
        size: tuple[int, int] = (48, 64),
        foreground: int = 1,
        seed: int = 0,
    ) -> Path:
        root = tmp_path / "data" if root is None else Path(root)
        rng = np.random.default_rng(seed)
        counts = {"": flat} if flat else {"train": train, "val": val, "test": test}
        for split, count in counts.items():
            for number in range(count):
                image, mask = draw_pair(rng, size)
                for kind, array in (("images", image), ("masks", mask * np.uint8(foreground))):
                    folder = root / split / kind
                    folder.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(folder / f"{number:04d}.png")
        return root

    return make
