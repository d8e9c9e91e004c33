"""Every command and every Python block of README runs, on `tiny` and drawn images, with two training steps."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from autogluon import autogluon_state
from local_hub import LocalHub
from PIL import Image

from hf_sam_adapt import load_tiny_sam
from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.tiny import export_tiny


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
ENVIRONMENT: dict[str, str] = {}  # of the commands: a Hub of their own
RUN_BY_CI = ("make ",)  # .ci/run and the Makefile's own targets


@pytest.fixture(scope="module")
def hub():
    with LocalHub() as running:
        yield running


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, hub) -> Path:
    """An empty folder with what README takes for granted: the checkout's recipes, images, and SAMs on the Hub."""
    folder = tmp_path_factory.mktemp("readme")
    ENVIRONMENT.update(hub.environment(folder / "home"))
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for split, count in (("train", 8), ("test", 3)):
        for index in range(count):
            image, mask = (Image.fromarray(array) for array in draw_sample("polyp", split, index))
            for kind, picture, name in (("images", image, f"{index}.jpg"), ("masks", mask, f"{index}.png")):
                path = folder / "my_polyps" / split / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    image.save(folder / "polyp.jpg")
    mask.point(lambda value: 255 * value).save(folder / "polyp_mask.png")
    export_tiny(folder / "tiny")
    for name in ("facebook/sam-vit-base", "facebook/sam-vit-huge"):
        hub.add_folder(name, folder / "tiny")
    torch.save({"state_dict": autogluon_state(load_tiny_sam()[0])}, folder / "model.ckpt")
    return folder


def run(command: str, folder: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | ENVIRONMENT | {"PATH": path, "HF_SAM_ADAPT_CACHE": str(folder / "cache")}
    result = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"


def test_commands_in_order(workplace, hub):
    commands = [line for language, block in BLOCKS if language == "bash" for line in block.strip().splitlines()]
    commands = [shlex.join(shlex.split(command, comments=True)) for command in commands]
    shown = [command for command in commands if not command.startswith(RUN_BY_CI)]
    assert len(shown) >= 3
    for command in shown:
        if "recipes/train.py" in command:
            command = command.replace("accelerate launch", "accelerate launch --cpu --num_processes 1")
            command += " --max_steps 2 --model facebook/sam-vit-base"
        if "recipes/continual.py" in command:
            command = command.replace("accelerate launch", "accelerate launch --cpu --num_processes 1")
            command += " --max_steps 2 --domains 'one: my_polyps' 'two: my_polyps'"
        run(command, workplace)
    assert (workplace / "converted/adapter_model.safetensors").is_file()
    assert (workplace / "runs/polyp/samples.png").is_file()
    for name in ("predictions", "from_the_hub", "routed"):
        assert len(list((workplace / name).glob("*_mask.png"))) == 3
    assert "adapter_model.safetensors" in hub.files("me/polyp-sam-adapter")
    for index, block in enumerate(block for language, block in BLOCKS if language == "python"):
        script = workplace / f"block_{index}.py"
        script.write_text(block)
        run(f"{sys.executable} {script.name}", workplace)
    assert (workplace / "encoder.pt2").is_file()
    assert (workplace / "polyp/adapter_model.safetensors").is_file()


def test_linked_files_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_targets_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", README, flags=re.MULTILINE)) <= targets
