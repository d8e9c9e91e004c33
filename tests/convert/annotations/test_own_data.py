"""docs/own-data.md, followed literally in a folder that holds the annotated images alone, against a local Hub."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from labelme_photos import annotate
from local_hub import LocalHub
from test_convert_formats import XML, coco, corners, photograph, shape, yolo

from hf_sam_adapt.cli import main
from hf_sam_adapt.data import load_segmentation_dataset


PAGE = (Path(__file__).parents[3] / "docs/own-data.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with the annotations that the page names, and the variables that lead to a Hub of its own."""
    folder = tmp_path_factory.mktemp("own_data") / "work"
    annotate(folder / "photos", 12)
    with LocalHub() as hub:
        yield folder, hub


def run(command: str, folder: Path, hub: LocalHub) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | hub.environment(folder.parent / "home") | {"PATH": path}
    environment |= {"HF_DATASETS_OFFLINE": "0"}
    result = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, f"{command}\n{result.stdout[-3000:]}\n{result.stderr[-4000:]}"
    return result.stdout


@pytest.mark.slow
def test_four_commands_from_labelme_to_the_hub(workplace):
    folder, hub = workplace
    commands = [line for line in BLOCKS[0][1].splitlines() if line]
    assert BLOCKS[0][0] == "bash" and len(commands) == 4
    for command in commands:
        shown = run(command + (" --max_steps 2" if "hf-sam-adapt train" in command else ""), folder, hub)
        if " doctor " in command:
            assert "0 errors" in shown and "12 images" in shown
    published = hub.files("me/mine")
    assert {"adapter_model.safetensors", "adapter_config.json", "README.md", "metrics.json"} <= set(published)
    assert (folder / "batch.png").is_file() and str(folder) not in published["recipe.yaml"].decode()
    assert yaml.safe_load(published["recipe.yaml"])["id2label"] == {0: "background", 1: "polyp"}
    data = load_segmentation_dataset(folder / "data", mask_values="index")
    assert sum(map(len, (data.train, data.val, data.test))) == 12


@pytest.mark.slow
def test_the_rest_of_the_page(workplace):
    folder, hub = workplace
    rng = np.random.default_rng(0)
    coco(folder / "coco", rng)
    yolo(folder / "yolo", rng, names=("road", "other"))
    (folder / "cvat/images/Train/a").mkdir(parents=True)
    photograph(rng).save(folder / "cvat/images/Train/a/one.jpg")
    photograph(rng).save(folder / "cvat/images/two.jpg")
    (folder / "cvat/annotations.xml").write_text(XML)
    shutil.make_archive(str(folder / "export"), "zip", folder / "cvat")
    if not (folder / "data").exists():
        run("hf-sam-adapt convert --from labelme photos --out data", folder, hub)
    for language, block in BLOCKS[1:]:
        if language == "bash":
            for command in block.strip().splitlines():
                run(command, folder, hub)
        else:
            (folder / "block.py").write_text(block)
            run(f"{sys.executable} block.py", folder, hub)
    assert hub.repositories["dataset", "me/my-photos"].private
    run("hf-sam-adapt train --dataset me/my-data --max_steps 2 --output_dir runs/hub", folder, hub)
    saved = datasets.load_from_disk(str(folder / "as_dataset"))
    assert set(saved["train"].column_names) == {"id", "image", "mask"}


READ_BACK = """
import numpy
from hf_sam_adapt.data import load_segmentation_dataset

here, there = (load_segmentation_dataset(name, mask_values="index") for name in ("nine", "me/pictures"))
for split in ("train", "val", "test"):
    one, other = getattr(here, split), getattr(there, split)
    assert one.ids == other.ids and len(one)
    for index in range(len(one)):
        assert numpy.array_equal(one[index].image, other[index].image)
        assert numpy.array_equal(one[index].mask, other[index].mask)
"""


def test_what_is_pushed_is_read_back(workplace):
    folder, hub = workplace
    annotate(folder / "nine_photos", 9)
    run("hf-sam-adapt convert --from labelme nine_photos --out nine --push me/pictures", folder, hub)
    files = hub.files("me/pictures", kind="dataset")
    tables = {f"data/{split}-00000.parquet" for split in ("train", "validation", "test")}
    assert set(files) == {"README.md", "recipe.yaml", *tables}
    assert b"1 = polyp" in files["README.md"] and yaml.safe_load(files["recipe.yaml"])["dataset"] == "me/pictures"
    (folder / "read_back.py").write_text(READ_BACK)
    run(f"{sys.executable} read_back.py", folder, hub)


@pytest.mark.slow
def test_a_push_that_fails_says_how_to_try_again(workplace):
    folder, hub = workplace
    annotate(folder / "two_photos", 2)
    fault = hub.fail("POST .*/commit/", 403)
    with pytest.raises(AssertionError, match="push again with: hf-sam-adapt convert --from folder two --push me/two"):
        run("hf-sam-adapt convert --from labelme two_photos --out two --push me/two", folder, hub)
    fault.times = 0
    run("hf-sam-adapt convert --from folder two --push me/two", folder, hub)
    assert b"1 = polyp" in hub.files("me/two", kind="dataset")["README.md"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--from", "labelme"], "convert needs the checkpoint's file or the annotations"),
        (["photos"], "convert needs --from"),
        (["photos", "--from", "labelme"], "convert needs --out, the folder to create, or --push"),
        (["nowhere", "--from", "labelme", "--out", "out"], "nowhere: does not exist"),
        (["photos", "--from", "labelme", "--out", "photos"], "already exists"),
        (["photos", "--from", "labelme", "--out", "out", "--base", "tiny"], "base: not for --from labelme"),
        (["x.ckpt", "--from", "conv-lora", "--out", "out", "--images", "a"], "images: not for --from conv-lora"),
        (["photos", "--from", "folder", "--out", "out"], "--from folder only pushes"),
        (["broken.zip", "--from", "cvat", "--out", "out"], "not a readable zip archive"),
        (["photos", "--from", "labelme", "--out", "out", "--classes", "cow"], "annotated with cow, only dog"),
    ],
)
def test_mistakes(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    photograph(np.random.default_rng(0)).save("photos/a.png")
    labels = {"shapes": [shape("dog", corners(1, 1, 9, 9))], "imagePath": "a.png"}
    Path("photos/a.json").write_text(json.dumps(labels))
    Path("broken.zip").write_bytes(b"PK")
    assert main(["convert", *argv]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.zip", "photos"]
