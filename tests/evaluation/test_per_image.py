"""A line for each image, worst first, and the ten worst as a picture: by `evaluate`, and in a run folder."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sams import perturb, random_sam
from test_command import run, save_run

from hf_sam_adapt import CwsamConfig
from hf_sam_adapt.cli import main
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.tuners.moda import ModaConfig, ModaModel


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_worst_first_with_every_score(sam_folder, make_dataset, tmp_path):
    data, output = make_dataset(train=3, test=12), tmp_path / "out"
    adapter = save_run(tmp_path / "run", sam_folder)
    result = run("--adapter", adapter, "--dataset", data, "--prompts", "none", "box", "--output_dir", output)
    rows = table(output / "per_image.csv")
    assert len(rows) == 24
    assert list(rows[0]) == "file image prompt domain iou dice zero_shot_iou zero_shot_dice".split()
    ious = [float(row["iou"]) for row in rows]
    assert ious == sorted(ious) and len(set(ious)) > 5
    known = {(record.id, kind): scores for record in result.records for kind, scores in record.scores.items()}
    for row in rows:
        scores = known[row["image"], row["prompt"]]
        for key, overlap in (("", scores["adapted"]), ("zero_shot_", scores["zero_shot"])):
            assert float(row[f"{key}iou"]) == pytest.approx(overlap.iou, abs=1e-6)
            assert float(row[f"{key}dice"]) == pytest.approx(overlap.dice, abs=1e-6)
        assert row["file"] == str(data / "test/images" / f"{row['image']}.png") and row["domain"] == ""
    assert Image.open(output / "worst.png").size == (4 * 320, 10 * (22 + round(316 * 48 / 64)))


def test_classes_have_a_column_each_and_ignored_images_come_last(sam_folder, make_dataset, tmp_path):
    data, output = make_dataset(train=4, test=3), tmp_path / "out"
    masks = sorted((data / "test/masks").iterdir())
    for number, path in enumerate(masks):
        mask = np.asarray(Image.open(path)).copy()
        mask[:4, :9] = 2
        Image.fromarray(mask if number else np.full_like(mask, 255)).save(path)
    names = ["background", "left", "right"]
    arguments = {"num_labels": 3, "id2label": dict(enumerate(names)), "scale_factor": 4}
    adapter = save_run(tmp_path / "run", sam_folder, "cwsam", method_args=arguments)
    result = run("--adapter", adapter, "--dataset", data, "--mask_values", "index", "--output_dir", output)
    rows = table(output / "per_image.csv")
    assert [row["image"] for row in rows][-1] == masks[0].stem and rows[-1]["iou"] == ""
    scored = {record.id: record.scores for record in result.records}
    for row in rows[:2]:
        scores = scored[row["image"]]
        assert float(row["iou"]) == pytest.approx(scores["miou"], abs=1e-6)
        for label, name in enumerate(names):
            value = scores["per_class"][str(label)]["iou"]
            assert (
                row[f"iou_{name}"] == ""
                if value is None
                else float(row[f"iou_{name}"]) == pytest.approx(value, abs=1e-6)
            )
    assert float(rows[0]["iou"]) <= float(rows[1]["iou"])
    assert (output / "worst.png").is_file()


@pytest.mark.parametrize(
    "inner",
    [pytest.param(None, marks=pytest.mark.slow), CwsamConfig(num_labels=3, scale_factor=4)],
    ids=["one class", "classes"],
)
def test_images_of_a_pool_have_their_domain(sam_folder, make_dataset, tmp_path, capsys, inner):
    data, output = make_dataset(train=2, test=3), tmp_path / "out"
    images = sorted((data / "test/images").iterdir())
    model = ModaModel(random_sam(), ModaConfig(reject=0.0, inner=inner), "default")
    colours = {"reddish": (150, 30, 30), "bluish": (30, 30, 150)}
    processor = load_adapted(save_run(tmp_path / "run", sam_folder)).processor
    rng = np.random.default_rng(0)

    def picture(colour):
        return (rng.normal(size=(50, 64, 3)) * 12 + colour).clip(0, 255).astype(np.uint8)

    for name, colour in colours.items():
        model.add_domain(name)
        model.observe(processor([picture(colour) for _ in range(8)])["pixel_values"])
        perturb(model)
        model.finish_domain()
    model.save_pretrained(tmp_path / "pool")
    processor.save_pretrained(tmp_path / "pool")
    for path, name in zip(images, ("reddish", "bluish", "bluish")):
        Image.fromarray(picture(colours[name])[:48]).save(path)
    argv = ["--adapter", tmp_path / "pool", "--model", sam_folder, "--dataset", data, "--mask_values", "index"]
    run(*argv, "--output_dir", output)
    domains = {row["file"]: row["domain"] for row in table(output / "per_image.csv")}
    for route in ("image", "tile"):
        run(*argv, "--tile", 32, "--overlap", 8, "--route", route, "--output_dir", tmp_path / route)
        assert {row["file"]: row["domain"] for row in table(tmp_path / route / "per_image.csv")} == domains
    folder, masks = str(data / "test/images"), str(tmp_path / "masks")
    argv = ["predict", folder, "--adapter", str(tmp_path / "pool"), "--model", sam_folder]
    assert main([*argv, "--tile", "32", "--overlap", "8", "--output_dir", str(tmp_path / "tiled")]) == 0
    tiled = json.loads((tmp_path / "tiled/predictions.json").read_text())["predictions"]
    assert main([*argv, "--output_dir", masks]) == 0
    records = json.loads((tmp_path / "masks/predictions.json").read_text())["predictions"]
    assert {record["file"]: record["domain"] for record in records} == domains
    for record in records + tiled:
        assert max(record["router"], key=record["router"].get) == record["domain"]
        assert sum(record["router"].values()) == pytest.approx(1)
    counts = torch.tensor([list(domains.values()).count(name) for name in colours])
    assert counts.tolist() == [1, 2]
    assert "domains: 2 bluish, 1 reddish" in capsys.readouterr().out
