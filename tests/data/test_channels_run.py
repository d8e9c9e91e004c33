"""Float images through a whole run: trained, evaluated, predicted, continued, with the statistics of the first run."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_sam_adapt.cli.evaluate import EvaluateArguments, evaluate_command
from hf_sam_adapt.cli.predict import predict
from hf_sam_adapt.config.recipe import Recipe, parse_recipe
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.folder import FileReader
from hf_sam_adapt.data.normalization import fit_normalization
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.processing import SamAdaptProcessor
from hf_sam_adapt.training import train
from hf_sam_adapt.training.resolve import input_normalization


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    """Radar-like amplitudes of three channels in `.npy` files."""
    root = tmp_path_factory.mktemp("floats")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((40, 56), np.uint8)
            mask[10:30, 5 + number : 30] = 1
            # The test images are a hundred times brighter: statistics that saw them would tell.
            image = rng.gamma(1, 1e-3, (40, 56, 3)) * (1 + 4 * mask[..., None]) * (100 if split == "test" else 1)
            np.save(root / split / "images" / f"{number}.npy", image)
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def run_folder(sam_folder, floats, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "run"
    recipe = Recipe(
        model=sam_folder,
        method="decoder",
        dataset=str(floats),
        channels=3,
        max_steps=2,
        batch_size=2,
        output_dir=str(output),
        augment=["flip", "scale", "crop", "colour"],
    )
    return train(recipe)


def test_the_run_stores_statistics_of_its_training_images(run_folder, floats):
    expected = fit_normalization(load_segmentation_dataset(floats, channels=3).train, "percentile", 0)
    assert max(expected["high"]) < 0.05
    stored = json.loads((run_folder / "preprocessor_config.json").read_text())
    assert stored["normalization"] == expected and stored["channels"] == 3
    recipe = yaml.safe_load((run_folder / "recipe.yaml").read_text())
    assert (recipe["channels"], recipe["normalization"]) == (3, "percentile")
    picture = np.asarray(Image.open(run_folder / "samples.png").convert("RGB"))
    assert picture.std() > 20


def test_evaluate_and_predict_read_as_the_run_did(run_folder, floats, tmp_path):
    scores = json.loads((run_folder / "metrics.json").read_text())["test"]
    assert evaluate_command(EvaluateArguments(adapter=str(run_folder))).test == scores
    images = floats / "test" / "images"
    records = predict([str(images)], str(run_folder), output_dir=tmp_path / "out", progress=False)
    assert [record["mask"] for record in records] == ["0_mask.png", "1_mask.png", "2_mask.png"]
    ious = []
    for number in range(3):
        mask = np.asarray(Image.open(tmp_path / "out" / f"{number}_mask.png")) > 0
        truth = np.asarray(Image.open(floats / "test" / "masks" / f"{number}.png")) > 0
        ious.append((mask & truth).sum() / max(1, (mask | truth).sum()))
    assert np.mean(ious) == pytest.approx(scores["none"]["adapted"]["iou"])
    shown = np.asarray(Image.open(tmp_path / "out" / "0_overlay.png"))
    assert shown.shape == (40, 56, 3) and shown.std() > 20
    Image.new("RGBA", (8, 8)).save(tmp_path / "photo.png")
    with pytest.raises(UserError, match=r"photo\.png: 4 channels, but channels is 3"):
        predict([str(tmp_path / "photo.png")], str(run_folder), output_dir=tmp_path / "no", progress=False)


def test_a_fully_trained_model_is_compared_with_its_base(sam_folder, floats, tmp_path):
    root = tmp_path / "pairs"
    shutil.copytree(floats, root)
    for file in root.glob("*/images/*.npy"):
        np.save(file, np.load(file)[..., :2])
    recipe = Recipe(
        model=sam_folder,
        method="full",
        dataset=str(root),
        channels=2,
        max_steps=2,
        batch_size=2,
        learning_rate=1e-3,
        metrics=["mae"],
        output_dir=str(tmp_path / "run"),
    )
    scores = json.loads((train(recipe) / "metrics.json").read_text())["test"]
    assert scores["none"]["zero_shot"]["mae"] != scores["none"]["adapted"]["mae"]
    again = evaluate_command(EvaluateArguments(adapter=str(tmp_path / "run"))).test["none"]
    for name in ("zero_shot", "adapted", "constant"):
        assert again[name] == pytest.approx(scores["none"][name], rel=1e-6)


def test_a_cached_encoder_takes_floats(sam_folder, floats, run_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAM_ADAPT_CACHE", str(tmp_path / "cache"))
    recipe = Recipe(
        model=sam_folder,
        method="decoder",
        dataset=str(floats),
        channels=3,
        max_steps=2,
        batch_size=2,
        augment=["none"],
        cache_embeddings=True,
        output_dir=str(tmp_path / "cached"),
    )
    train(recipe)
    plain = Recipe(**{**vars(recipe), "cache_embeddings": False, "output_dir": str(tmp_path / "plain")})
    train(plain)
    scores = [json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("cached", "plain")]
    assert scores[0] == scores[1]


def test_another_run_from_the_adapter_keeps_its_statistics(run_folder, floats, sam_folder, monkeypatch):
    processor = SamAdaptProcessor.from_pretrained(run_folder)
    data = load_segmentation_dataset(floats, channels=3)
    data.train = data.test
    common = {"adapter": str(run_folder), "dataset": str(floats)}
    for kind in (None, "percentile"):
        recipe = Recipe(**common, channels=3, normalization=kind)
        assert input_normalization(recipe, data, processor) == processor.normalization
    refitted = input_normalization(Recipe(**common, channels=3, normalization="zscore"), data, processor)
    assert refitted == fit_normalization(data.test, "zscore", 0)
    with pytest.raises(UserError, match=r"channels: None, but .* takes images of 3 channels"):
        input_normalization(Recipe(**common), data, processor)
    photographs = SamAdaptProcessor(64, patch_size=8)
    with pytest.raises(UserError, match=r"channels: 3, but .* takes RGB photographs"):
        input_normalization(Recipe(**common, channels=3), data, photographs)

    def fail(self, row):
        raise AssertionError("opened")

    monkeypatch.setattr(FileReader, "read_image", fail)
    assert input_normalization(Recipe(model=sam_folder, dataset=str(floats)), data, photographs) is None


def test_recipe_keys_from_flags_and_files(tmp_path):
    flags = [
        "--channels",
        "6",
        "--normalization",
        "db",
        "--palette.sea",
        "0",
        "0",
        "255",
        "--palette.land",
        "1",
        "2",
        "3",
    ]
    recipe = parse_recipe(flags)
    assert (recipe.channels, recipe.normalization) == (6, "db")
    assert list(recipe.palette.items()) == [("sea", [0, 0, 255]), ("land", [1, 2, 3])]
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    again = parse_recipe(["--config", str(tmp_path / "recipe.yaml")])
    # Relative paths in a file start at its folder.
    assert dataclasses.replace(again, output_dir=recipe.output_dir) == recipe and list(again.palette) == [
        "sea",
        "land",
    ]
    assert parse_recipe(["--palette", "FUSAR_MAP_2"]).palette == "FUSAR_MAP_2"
    for argv, message in [
        (["--channels", "0"], "channels: 0 is below 1"),
        (["--channels", "rgb"], "channels: 'rgb' is not an integer"),
        (["--normalization", "log"], "normalization: 'log' is not one of imagenet, minmax"),
        (["--palette.sea", "blue"], "palette: "),
    ]:
        with pytest.raises(UserError, match=message):
            parse_recipe(argv)
