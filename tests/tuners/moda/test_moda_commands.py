"""A pool on the command line: evaluate and predict, routed or with a domain named."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from sams import perturb

from hf_sam_adapt import ModaConfig, ModaModel, SamDecoderConfig, load_tiny_sam
from hf_sam_adapt.cli import main
from hf_sam_adapt.data.synthetic import draw_sample


DOMAINS = ("polyp", "speckle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pool")
    sam, processor = load_tiny_sam()
    pool = ModaModel(sam, ModaConfig(inner=SamDecoderConfig(decoder="hq"), reject=0.0))
    pool.moda_config.base_model_name_or_path = "tiny"
    for seed, name in enumerate(DOMAINS):
        pool.add_domain(name)
        perturb(pool, seed=seed)
        images = [draw_sample(name, "train", index)[0] for index in range(6)]
        pool.observe(processor(images)["pixel_values"])
        pool.finish_domain()
    pool.save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for name in DOMAINS:
        Image.fromarray(draw_sample(name, "test", 0)[0]).save(path / f"{name}.png")
    return path


def predictions(tmp_path, *args):
    assert main(["predict", *args, "--output_dir", str(tmp_path)]) == 0
    return json.loads((tmp_path / "predictions.json").read_text())["predictions"]


def test_predict_names_the_domain_of_each_image(folder, images, tmp_path):
    routed = predictions(tmp_path / "routed", str(images), "--adapter", str(folder))
    assert [record["domain"] for record in routed] == list(DOMAINS)
    for index, name in enumerate(DOMAINS):
        named = predictions(tmp_path / name, str(images), "--adapter", str(folder), "--domain", name)
        assert [record["domain"] for record in named] == [name, name]
        masks = [np.array(Image.open(tmp_path / where / f"{name}_mask.png")) for where in ("routed", name)]
        assert np.array_equal(*masks)
        assert named[index]["logits"] == pytest.approx(routed[index]["logits"], rel=1e-4)


@pytest.mark.slow
def test_evaluate(folder, tmp_path, capsys):
    args = ["evaluate", "--adapter", str(folder), "--dataset", "synthetic:polyp", "--batch_size", "8"]
    scores = {}
    for name in ("base", "polyp", None):
        out = tmp_path / str(name)
        assert main([*args, "--output_dir", str(out), *(["--domain", name] if name else [])]) == 0
        scores[name] = json.loads((out / "metrics.json").read_text())["test"]["none"]
    assert scores["base"]["adapted"]["iou"] == pytest.approx(scores["base"]["zero_shot"]["iou"], abs=1e-6)
    assert scores["polyp"]["adapted"]["iou"] != pytest.approx(scores["base"]["adapted"]["iou"], abs=1e-3)
    assert scores[None]["zero_shot"] == scores["base"]["zero_shot"]


def test_bad_domains(folder, images, tmp_path, capsys):
    args = ["predict", str(images), "--output_dir", str(tmp_path / "out")]
    assert main([*args, "--adapter", str(folder), "--domain", "roads"]) == 2
    assert "'roads' is not in the pool; it has polyp, speckle, base" in capsys.readouterr().err
    assert main([*args, "--adapter", str(folder / "polyp"), "--domain", "polyp"]) == 2
    assert "not a pool of domains" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@torch.no_grad()
def test_a_domain_is_an_adapter_of_its_own(folder, images, tmp_path):
    alone = predictions(tmp_path / "alone", str(images), "--adapter", str(folder / "polyp"))
    named = predictions(tmp_path / "named", str(images), "--adapter", str(folder), "--domain", "polyp")
    for one, other in zip(alone, named):
        assert one["logits"] == other["logits"]
