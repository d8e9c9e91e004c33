"""Several classes from the recipe to the reloaded adapter."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.cli import main
from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.reporting.class_maps import class_colours, class_legend, class_overlay, with_legend
from hf_sam_adapt.reporting.report import NAMES_KEY
from hf_sam_adapt.training import train


NAMES = {0: "ground", 1: "bright", 2: "dark"}


def draw(rng, size=(48, 60)):
    """Noise with a bright and a dark bar; uint8 image and mask of three classes."""
    mask = np.zeros(size, np.uint8)
    left = int(rng.integers(0, 20))
    first, second = rng.permutation([1, 2])
    mask[:, left : left + 14] = first
    mask[:, left + 22 : left + 36] = second
    image = rng.normal(120, 12, (*size, 3)) + np.array([0, 80, -80])[mask][..., None]
    return image.clip(0, 255).astype(np.uint8), mask


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("classes") / "bars", np.random.default_rng(0)
    for split, count in (("train", 10), ("val", 3), ("test", 4)):
        for index in range(count):
            for kind, array in zip(("images", "masks"), draw(rng)):
                path = folder / split / kind / f"{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(path)
    return folder


def run(sam_folder, class_folder, output_dir, **keys):
    values = {"model": sam_folder, "dataset": class_folder, "output_dir": output_dir, "num_labels": 3, "max_steps": 3}
    values["id2label"] = json.dumps(NAMES)
    argv = []
    for key, value in (values | keys).items():
        argv += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return train(parse_recipe(argv))


def test_classes_in_another_order_are_refused(sam_folder, class_folder, tmp_path, capsys):
    folder = run(sam_folder, class_folder, tmp_path / "run", method="decoder", max_steps=1)
    swapped = json.dumps({0: "ground", 1: "dark", 2: "bright"})
    data = ["--dataset", str(class_folder), "--id2label", swapped]
    further = ["--num_labels", "3", "--output_dir", str(tmp_path / "next")]
    for argv in (["evaluate", str(folder), *data], ["train", "--adapter", str(folder), *data, *further]):
        assert main(argv) == 2
        assert "dark is class 1 in" in capsys.readouterr().err
    assert not (tmp_path / "next").exists()


@pytest.mark.parametrize("method", ["cwsam", "sam_adapter", "conv_lora", "decoder"])
def test_every_method_segments_classes(method, sam_folder, class_folder, tmp_path):
    folder = run(sam_folder, class_folder, tmp_path / "run", method=method)
    loaded = load_adapted(str(folder))
    assert (loaded.config.decoder, loaded.config.num_labels, loaded.config.id2label) == ("class_wise", 3, NAMES)
    metrics = json.loads((folder / "metrics.json").read_text())
    scores = metrics["test"]["none"]
    assert scores["zero_shot"] is None and scores["constant"]["miou"] > 0
    assert set(scores["adapted"]["per_class"]) == {"0", "1", "2"} and 0 <= scores["adapted"]["fwiou"] <= 1
    for name in ("samples.png", "confusion.png"):
        assert Image.open(folder / name).size[0] > 300
    assert metrics["train"]["best_val_iou"] is not None
    with Image.open(folder / "samples.png") as picture:
        names, shown = json.loads(picture.info[NAMES_KEY]), np.asarray(picture.convert("RGB"))
    below = shown[-60:].reshape(-1, 3)
    assert len(names) == 3
    for colour in class_colours(3)[:3]:  # of the legend, whose swatches are smoothed at the border only
        assert (below == colour).all(axis=-1).sum() > 50


def test_learns_and_evaluates_alike_after_reloading(sam_folder, class_folder, tmp_path):
    keys = {"max_steps": 60, "learning_rate": 5e-3, "eval_every": 20, "class_weights": "inverse_sqrt"}
    folder = run(sam_folder, class_folder, tmp_path / "run", method="cwsam", **keys)
    scores = json.loads((folder / "metrics.json").read_text())["test"]["none"]
    assert scores["adapted"]["miou"] > scores["constant"]["miou"] + 0.1
    assert main(["evaluate", "--adapter", str(folder), "--output_dir", str(tmp_path / "again")]) == 0
    again = json.loads((tmp_path / "again" / "metrics.json").read_text())["test"]["none"]
    assert again == scores
    images = class_folder / "test" / "images"
    assert main(["predict", str(images), "--adapter", str(folder), "--output_dir", str(tmp_path / "maps")]) == 0
    records = json.loads((tmp_path / "maps" / "predictions.json").read_text())["predictions"]
    assert len(records) == 4 and set(records[0]["classes"]) == set(NAMES.values())
    mask = Image.open(tmp_path / "maps" / records[0]["mask"])
    shown = np.asarray(Image.open(tmp_path / "maps" / records[0]["overlay"]))
    image = np.asarray(Image.open(records[0]["file"]).convert("RGB"))
    assert np.array_equal(shown[:48, :60], class_overlay(image, np.asarray(mask), 3))
    assert np.array_equal(shown, with_legend(shown[:48, :60], class_legend(np.asarray(mask), list(NAMES.values()))))
    assert mask.mode == "P" and mask.size == (60, 48)
    shares = [float((np.asarray(mask) == label).mean()) for label in NAMES]
    assert shares == pytest.approx(list(records[0]["classes"].values()))


@pytest.mark.slow
def test_given_class_weights_change_the_training(sam_folder, class_folder, tmp_path):
    files = []
    for name, weights in (("equal", None), ("given", [1, 0.2, 3])):
        keys = {} if weights is None else {"class_weights": weights}
        folder = run(sam_folder, class_folder, tmp_path / name, method="decoder", **keys)
        files.append((folder / "adapter_model.safetensors").read_bytes())
    assert files[0] != files[1]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"method": "lora"}, "num_labels: method lora segments one class"),
        ({"method": "cwsam", "prompts": ["box"]}, "prompts: box"),
        ({"method": "cwsam", "loss": "structure"}, "'structure' is not a loss for masks of 3 classes"),
        ({"method": "cwsam", "class_weights": [1, 2]}, "2 numbers for 3 classes"),
        ({"method": "cwsam", "class_weights": [-1, 1, 1]}, "class_weights: -1 1 1: expected finite numbers"),
        ({"method": "cwsam", "class_weights": [0, 0, 0]}, "class_weights: 0 0 0: expected finite numbers"),
        ({"method": "cwsam", "class_weights": [1, float("nan"), 1]}, "class_weights: 1 nan 1: expected finite"),
        ({"method": "cwsam", "class_weights": "fair"}, "class_weights: 'fair'"),
        ({"method": "cwsam", "method_args.num_labels": 4}, "method_args.num_labels: 4"),
        ({"method": "cwsam", "num_labels": 2}, "num_labels"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(keys, message, sam_folder, class_folder, tmp_path):
    with pytest.raises(UserError, match=message):
        run(sam_folder, class_folder, tmp_path / "run", **keys)
    assert not (tmp_path / "run" / "recipe.yaml").exists()


def test_a_class_that_no_training_mask_holds_is_said(sam_folder, class_folder, tmp_path, capsys):
    names = "ground,bright,dark,absent"
    run(sam_folder, class_folder, tmp_path / "run", method="decoder", num_labels=4, id2label=names)
    assert "no training mask holds absent" in capsys.readouterr().out
