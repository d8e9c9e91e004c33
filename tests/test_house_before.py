"""Files that an earlier version of the package wrote load today, and give the masks that they gave then.

`data_before/` was written at commit 8a3df86: a small random SAM, an adapter of each method, a pool of two domains and
a run folder, each with the logits that the version which wrote it computed from `pixels` and `BOXES`.
"""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.inference.loading import load_adapted


BEFORE = Path(__file__).parent / "data_before"
FOLDERS = [*sorted(f"adapters/{path.name}" for path in (BEFORE / "adapters").iterdir()), "pool", "run"]
BOXES = torch.tensor([[[8.0, 10.0, 40.0, 50.0]], [[20.0, 4.0, 60.0, 30.0]]])


@pytest.fixture(autouse=True)
def in_their_folder(monkeypatch):
    """The files name their base model and data relative to this folder."""
    monkeypatch.chdir(BEFORE)


def pixels(channels: int, size: int) -> torch.Tensor:
    values = torch.arange(2 * channels * size * size) * 7919 % 251
    return values.reshape(2, channels, size, size) / 125 - 1


def check_logits(folder: str, model: nn.Module, size: int) -> None:
    images = pixels(4 if folder.endswith("four_channels") else 3, size)
    with torch.no_grad():
        logits = {
            "none": model(pixel_values=images).pred_masks,
            "box": model(pixel_values=images, input_boxes=BOXES).pred_masks,
        }
    for prompt, before in load_file(BEFORE / folder / "logits.safetensors").items():
        assert before.std() > 1e-3 and not torch.equal(before[0], before[1])
        # Bit-equal on the machine that wrote them; processors of one instruction set still differ in the last bits.
        assert (logits[prompt] - before).norm() <= 1e-5 * before.norm(), prompt


@pytest.mark.parametrize("folder", FOLDERS)
def test_earlier_files_give_the_masks_that_they_gave(folder):
    loaded = load_adapted(folder)
    check_logits(folder, loaded.model, loaded.processor.image_size)


def test_the_recipe_of_an_earlier_run_is_read_key_by_key():
    stored = yaml.safe_load((BEFORE / "run" / "recipe.yaml").read_text())
    paths = {key: stored.pop(key) for key in ("model", "dataset", "output_dir")}
    flags = [part for key, value in paths.items() for part in (f"--{key}", value)]
    recipe = parse_recipe(["--config", "run/recipe.yaml", *flags])
    read = {key: getattr(recipe, key) for key in stored}
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in read.items()} == stored
