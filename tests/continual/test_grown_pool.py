"""A pool is taken up again, without the images of its domains, and learns further ones."""

import hashlib
import json
import shutil

import pytest
import torch

from hf_sam_adapt import ModaModel
from hf_sam_adapt.cli.predict import predict
from hf_sam_adapt.continual.run import continual
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted, load_base
from hf_sam_adapt.sam.processing import SamAdaptProcessor


INNER = {
    "decoder": {"method_args": {"decoder": "hq"}},
    "lora": {"method_args": {"r": 2}},
    "sam_adapter": {"method_args": {"scale_factor": 4, "features": ["high"]}, "image_size": 96},
}


@pytest.fixture(params=["decoder", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lora", "sam_adapter"))])
def pool(request, continual_recipe, domain_folders, tmp_path):
    """A pool of two domains, whose data and run are gone."""
    keys = {"protocol": "moda", "method": request.param, "protocol_args": {"head": "ncm", "reject": 0.1}}
    run = continual(continual_recipe("before", **keys, **INNER[request.param]))
    shutil.move(run / "pool", tmp_path / "pool")
    shutil.rmtree(run)
    for name in ("first", "second"):
        shutil.rmtree(domain_folders[name])
    return tmp_path / "pool"


def grow(make, pool, **keys):
    return make(
        "after", domains=("third",), protocol="moda", adapter=str(pool), model=None, method="sam_adapter", **keys
    )


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def test_a_further_domain(pool, continual_recipe, domain_folders, sam_folder, tmp_path):
    images = torch.stack(
        [torch.from_numpy(one.image) for one in load_segmentation_dataset(domain_folders["third"]).test]
    )
    own = {"resample": "bicubic", "antialias": False, "image_mean": [0.4, 0.5, 0.6]}
    SamAdaptProcessor.from_dict(SamAdaptProcessor.from_pretrained(pool).to_dict(), **own).save_pretrained(pool)
    before = load_adapted(str(pool))
    run = continual(grow(continual_recipe, pool))
    for folder in ("tasks/1-third", "pool"):
        assert SamAdaptProcessor.from_pretrained(run / folder).to_dict() == before.processor.to_dict()
    results = json.loads((run / "continual.json").read_text())
    assert results["domains"] == ["third"] and results["earlier"] == ["first", "second"]
    assert results["model"] == sam_folder and results["method"] == before.config.inner.peft_type.lower().replace(
        "sam_decoder", "decoder"
    )
    assert results["confusion_columns"] == ["first", "second", "third", "base"]
    after = ModaModel.from_pretrained(load_base(sam_folder)[0], run / "pool")
    assert after.domains == ["first", "second", "third"]
    pixels = before.processor([image.numpy() for image in images])["pixel_values"]
    with torch.no_grad():
        for name in ("first", "second"):
            assert hashes(run / "pool" / name) == hashes(pool / name) != {}
            old, new = (model(pixel_values=pixels, domain=name).pred_masks for model in (before.model, after))
            assert torch.equal(old, new)
    assert (after.moda_config.head, after.moda_config.reject) == ("ncm", 0.1)
    card = (run / "pool" / "README.md").read_text()
    assert "SAM for 3 domains" in card and "`first`, `second`: learned before, in `pool`" in card

    # Once more, nothing is repeated; and what came of it grows again.
    written = (run / "pool" / "adapter_model.safetensors").stat().st_mtime_ns
    continual(grow(continual_recipe, pool))
    assert (run / "pool" / "adapter_model.safetensors").stat().st_mtime_ns == written
    records = predict([domain_folders["third"] + "/test/images"], str(run / "pool"), output_dir=tmp_path / "out")
    assert {record["domain"] for record in records} <= {"first", "second", "third", "base"}


@pytest.mark.parametrize("pool", ["decoder"], indirect=True)
def test_what_the_pool_decides_is_not_said_again(pool, continual_recipe, tmp_path):
    for keys, message in (
        ({"protocol_args": {"head": "ridge", "reject": 0}}, r"protocol_args: the pool .* has its own"),
        ({"method_args": {"decoder": "hq"}}, r"method_args: the pool .* has its own"),
        ({"domains": [{"name": "first", "dataset": "x"}]}, "'first' is in the pool already"),
        ({"image_size": 128}, r"image_size: the pool .* has 64, not 128"),
        ({"resize": "squash"}, r"resize: the pool .* has pad, not squash"),
        ({"normalization": "percentile"}, r"normalization: the pool .* has imagenet, not percentile"),
        ({"protocol": "naive"}, "is a pool of domains; `continual` with protocol moda adds domains to it"),
    ):
        recipe = grow(continual_recipe, pool)
        for key, value in keys.items():
            setattr(recipe, key, value if key != "domains" else [{**recipe.domains[0], "name": "first"}])
        with pytest.raises(UserError, match=message):
            continual(recipe)
    recipe = grow(continual_recipe, pool)
    recipe.method = "lora"
    with pytest.raises(UserError, match=r"method: lora, but the domains of .* are decoder"):
        continual(recipe)
    assert not (tmp_path / "after").exists()


@pytest.mark.parametrize("pool", ["decoder"], indirect=True)
def test_a_base_model_in_another_place(pool, continual_recipe, sam_folder, tmp_path):
    shutil.copytree(sam_folder, tmp_path / "copy")
    config = json.loads((pool / "adapter_config.json").read_text())
    (pool / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    recipe = grow(continual_recipe, pool, image_size=64, resize="pad")
    with pytest.raises(UserError, match="does not name its base model"):
        continual(recipe)
    recipe.model = str(tmp_path / "copy")
    run = continual(recipe)
    assert json.loads((run / "continual.json").read_text())["model"] == recipe.model
    assert load_adapted(str(run / "pool")).base_name == recipe.model
