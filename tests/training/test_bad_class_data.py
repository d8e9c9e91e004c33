"""Data of classes and channels that does not fit: one line before anything is written, or no influence."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from peft import PeftModel, get_peft_model
from PIL import Image
from sams import random_sam

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.cli import main
from hf_sam_adapt.config.recipe import Recipe, parse_recipe
from hf_sam_adapt.errors import UserError


def write(folder, split, index, rng, mask, image=None):
    """A pair of files; the image shows the classes, or is `image`, a `.npy` if it is float."""
    image = rng.normal(100 + 60 * (mask % 3)[..., None], 15, (*mask.shape, 3)) if image is None else image
    for kind in ("images", "masks"):
        (folder / split / kind).mkdir(parents=True, exist_ok=True)
    if image.shape[-1] == 3:
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / split / "images" / f"{index}.png")
    else:
        np.save(folder / split / "images" / f"{index}.npy", image)
    Image.fromarray(mask).save(folder / split / "masks" / f"{index}.png")


def draw_mask(rng):
    mask = np.zeros((40, 48), np.uint8)
    mask[:, int(rng.integers(5, 20)) :] = 1
    mask[int(rng.integers(20, 30)) :] = 2
    return mask


def write_classes(folder, channels=3):
    rng = np.random.default_rng(0)
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        for index in range(count):
            mask = draw_mask(rng)
            image = None if channels == 3 else rng.normal(5, 1, (*mask.shape, channels)).astype(np.float32)
            write(folder, split, index, rng, mask, image)
    return folder


def run(command, sam_folder, data, output_dir, *flags):
    argv = ["--dataset", str(data), "--output_dir", str(output_dir)]
    if command == "train":
        argv += ["--model", sam_folder, "--method", "cwsam", "--num_labels", "3", "--mask_values", "index"]
        argv += ["--max_steps", "3", "--augment", "none"]
    return main([command, *argv, *map(str, flags)])


def a_label_of_no_class(folder, rng):
    write(folder, "train", 3, rng, draw_mask(rng) + np.uint8(4))


def colours_without_a_palette(folder, rng):
    colours = rng.integers(0, 255, (40, 48, 3)).astype(np.uint8)
    Image.fromarray(colours).save(folder / "train" / "masks" / "3.png")


def another_number_of_channels(folder, rng):
    write(folder, "train", 3, rng, draw_mask(rng), rng.normal(5, 1, (40, 48, 5)).astype(np.float32))


def pixels_that_are_not_finite(folder, rng):
    image = rng.normal(5, 1, (40, 48, 6)).astype(np.float32)
    image[3, 4, 5] = np.nan
    write(folder, "train", 3, rng, draw_mask(rng), image)


def nothing_labelled(folder, rng):
    for path in (folder / "train" / "masks").iterdir():
        Image.new("L", (48, 40), 255).save(path)
    for path in (folder / "val" / "masks").iterdir():
        Image.new("L", (48, 40), 255).save(path)


@pytest.mark.parametrize(
    ("damage", "channels", "message"),
    [
        (a_label_of_no_class, 3, "3.png: mask value 4, but num_labels 3 allows 0..2 and 255 = ignore"),
        (colours_without_a_palette, 3, "3.png: a coloured mask, and no palette is given; set palette"),
        (another_number_of_channels, 6, "3.npy: 5 channels, but channels is 6"),
        (pixels_that_are_not_finite, 6, "3.npy: 1 of 1920 pixels are NaN or infinite"),
        (nothing_labelled, 3, "all masks of the training data are 255 = ignore everywhere"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_one_line_before_anything_is_written(damage, channels, message, sam_folder, tmp_path, capsys):
    data = write_classes(tmp_path / "data", channels)
    damage(data, np.random.default_rng(1))
    flags = () if channels == 3 else ("--channels", channels)
    assert run("train", sam_folder, data, tmp_path / "run", *flags) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0] and "Traceback" not in error
    assert not (tmp_path / "run" / "recipe.yaml").exists()


@pytest.mark.slow
def test_an_unlabelled_image_has_no_influence(sam_folder, tmp_path, capsys):
    """Neither on the weights nor on the scores; the log names it."""
    folder, rng, void = tmp_path / "data", np.random.default_rng(2), np.full((40, 48), 255, np.uint8)
    write_classes(folder)
    metrics = []
    for name in ("one", "other"):
        write(folder, "train", 2, rng, void, rng.uniform(0, 255, (40, 48, 3)))
        write(folder, "test", 1, rng, void, rng.uniform(0, 255, (40, 48, 3)))
        assert run("train", sam_folder, folder, tmp_path / name) == 0
        assert "1 of 7 masks are 255 = ignore everywhere, such as" in capsys.readouterr().out
        metrics.append(json.loads((tmp_path / name / "metrics.json").read_text()))
        assert (tmp_path / name / "samples.png").exists()
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "other")]
    assert weights[0] == weights[1]
    shutil.copytree(folder, tmp_path / "labelled")
    for kind in ("images", "masks"):
        (tmp_path / "labelled" / "test" / kind / "1.png").unlink()
    again = tmp_path / "again"
    flags = ("--adapter", tmp_path / "one", "--mask_values", "index")
    assert run("evaluate", sam_folder, tmp_path / "labelled", again, *flags) == 0
    scores = json.loads((again / "metrics.json").read_text())["test"]
    assert metrics[0]["test"] == metrics[1]["test"] == scores
    assert scores["none"]["adapted"]["miou"] > 0


def test_test_images_without_labels_are_an_error_that_loses_nothing(sam_folder, tmp_path, capsys):
    data = write_classes(tmp_path / "data")
    for path in (data / "test" / "masks").iterdir():
        Image.new("L", (48, 40), 255).save(path)
    assert run("train", sam_folder, data, tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "dataset: test: none of the 3 masks that are scored holds any foreground" in said
    assert "resume_from_checkpoint: latest" in said
    assert any((tmp_path / "run" / "checkpoints").iterdir()) and not (tmp_path / "run" / "metrics.json").exists()


COMPLETE = [
    "dark,middle,bright",
    ["dark", "middle", "bright"],
    "{0: dark, 1: middle, 2: bright}",
    "[dark, middle, bright]",
]
INCOMPLETE = {
    "{0: dark, 1: middle}": "no name for class 2 of num_labels 3",
    "{1: middle, 2: bright}": "no name for class 0 of num_labels 3",
    "dark,middle": "no name for class 2",
    "dark,,bright": "no name for class 1",
    "dark,middle,bright,white": r"class 3 \(white\) is not below num_labels 3",
    "{0: dark, 1: middle, 2: bright, 7: white}": r"class 7 \(white\) is not below",
    "{soil: 0, crop: 1, weed: 2}": "must map classes to names",
}


@pytest.mark.parametrize("names", COMPLETE, ids=str)
@pytest.mark.parametrize("place", ["flag", "yaml", "python"])
def test_names_of_classes_as_users_write_them(names, place, tmp_path):
    if place == "python":
        found = Recipe(id2label=names).id2label
    elif place == "flag":
        found = parse_recipe(["--id2label", *([names] if isinstance(names, str) else names)]).id2label
    else:
        text = names if isinstance(names, str) else json.dumps(names)
        (tmp_path / "recipe.yaml").write_text(f"id2label: {text}\n")
        recipe = parse_recipe(["--config", str(tmp_path / "recipe.yaml")])
        found = recipe.id2label
        (tmp_path / "again.yaml").write_text(recipe.to_yaml())
        again = parse_recipe(["--config", str(tmp_path / "again.yaml")])
        # Relative paths in a file start at its folder.
        assert dataclasses.replace(again, output_dir=recipe.output_dir) == recipe
    assert found == {0: "dark", 1: "middle", 2: "bright"}


@pytest.mark.parametrize("names", INCOMPLETE)
@pytest.mark.parametrize("command", ["train", "doctor"])
def test_each_class_needs_a_name(names, command, tmp_path, sam_folder, capsys):
    folder = write_classes(tmp_path / "data")
    flags = ["--dataset", str(folder)] if command == "train" else [str(folder)]
    flags += ["--model", sam_folder] if command == "train" else []
    flags += ["--num_labels", "3", "--id2label", names]
    if command == "train":
        flags += ["--method", "cwsam", "--output_dir", str(tmp_path / "run"), "--max_steps", "1"]
    assert main([command, *flags]) != 0
    said = capsys.readouterr()
    assert re.search(f"id2label: .*{INCOMPLETE[names]}", said.err + said.out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("config_cls", [CwsamConfig, ConvLoraConfig, SamDecoderConfig, SamAdapterConfig])
@pytest.mark.parametrize("names", [{0: "dark", 1: "middle"}, ["dark", "middle"], {0: "a", 1: "b", 2: "c", 3: "d"}])
def test_a_config_needs_a_name_for_each_class(config_cls, names):
    with pytest.raises(UserError, match="id2label"):
        get_peft_model(random_sam(), config_cls(decoder="class_wise", num_labels=3, id2label=names))


def test_an_adapter_that_lacks_names_is_still_read(tmp_path):
    model = get_peft_model(random_sam(), CwsamConfig(num_labels=3, id2label="dark,middle,bright"))
    assert model.peft_config["default"].id2label == {0: "dark", 1: "middle", 2: "bright"}
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "id2label": {"0": "dark"}}))
    assert PeftModel.from_pretrained(random_sam(), tmp_path).peft_config["default"].id2label == {0: "dark"}
