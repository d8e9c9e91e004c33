"""Names out of files stay in their folder, and what is written has the mode of any new file."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from sams import random_sam
from transformers import SamModel

from hf_sam_adapt import ConvLoraConfig, ModaConfig, ModaModel, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.convert.checkpoints.folder import write_adapter
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.files import check_folder, is_plain_name, plain_name, temporary_path, whole_file
from hf_sam_adapt.inference.loading import load_adapted, load_base, save_adapter
from hf_sam_adapt.sam.processing import SamAdaptProcessor
from hf_sam_adapt.sam.tiny import export_tiny
from hf_sam_adapt.upload import pushed_files


OUTSIDE = ["{outside}", "../outside", "polyp/../../outside", "..", ".", "", "a\\b", "C:x", "x\0y", 7, None, ["polyp"]]


@pytest.fixture
def pool_folder(tmp_path):
    base = random_sam()
    base.save_pretrained(tmp_path / "base")
    base, _ = load_base(str(tmp_path / "base"))
    pool = ModaModel(base, ModaConfig(inner=SamDecoderConfig(), domains=["polyp"]))
    pool.moda_config.base_model_name_or_path = str(tmp_path / "base")
    pool.observe(torch.randn(4, 3, 64, 64))
    pool.finish_domain()
    pool.save_pretrained(tmp_path / "pool")
    return tmp_path / "pool"


@pytest.mark.parametrize("place", ["weights", "config"])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_crafted_pool_neither_reads_nor_writes_outside(name, place, pool_folder, tmp_path):
    outside = tmp_path / "outside"
    name = str(outside) if name == "{outside}" else name
    # What the name leads to is there, so that nothing but the name can be refused.
    get_peft_model(random_sam(), SamDecoderConfig()).save_pretrained(outside)
    kept = {file.name: file.read_bytes() for file in outside.iterdir()}
    if place == "weights":
        file = pool_folder / "adapter_model.safetensors"
        save_file(load_file(file), file, metadata={"domains": json.dumps([name])})
    else:
        file = pool_folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "domains": [name]}))
    calls = [
        lambda: ModaModel.from_pretrained(random_sam(), pool_folder).save_pretrained(tmp_path / "copy"),
        lambda: load_adapted(str(pool_folder)),
    ]
    if place == "weights":
        calls.append(lambda: pushed_files(pool_folder))
        calls.append(lambda: ModaModel(random_sam(), ModaConfig()).save_pretrained(pool_folder))
    for call in calls:
        with pytest.raises(UserError, match="domain"):
            call()
    assert {file.name: file.read_bytes() for file in outside.iterdir()} == kept
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("name", ["/tmp/x", "../x", "a/b", "a\\b", "", ".", "..", "a\nb"])
def test_adapter_names_become_folders(name, tmp_path):
    model = get_peft_model(random_sam(), SamDecoderConfig())
    with pytest.raises(UserError, match="adapter name"):
        model.add_adapter(name, SamDecoderConfig())
    with pytest.raises(UserError, match="adapter name"):
        get_peft_model(random_sam(), SamDecoderConfig(), adapter_name=name)
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("stored", ["{root}/outside/x.png", "../outside/x.png", "sub/../../outside/x.png"])
def test_coco_names_stay_in_the_folder_that_is_written(stored, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "coco" / "sub").mkdir(parents=True)
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "outside" / "x.png")
    content = {
        "images": [{"id": 1, "file_name": stored.format(root=tmp_path), "height": 32, "width": 32}],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[4, 4, 20, 4, 20, 20, 4, 20]], "iscrowd": 0}
        ],
    }
    (tmp_path / "coco" / "instances.json").write_text(json.dumps(content))
    before = sorted(tmp_path.rglob("*"))
    convert_annotations(
        "coco", tmp_path / "coco" / "instances.json", tmp_path / "out", images=tmp_path / "coco" / "sub"
    )
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2
    assert [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "out" not in (path, *path.parents)] == before


@pytest.mark.parametrize("name", ["x", "a b", "é", "x_1-2", "x.y"])
def test_plain_names_stay(name):
    assert is_plain_name(name) and plain_name(name) == name


@pytest.mark.parametrize(
    ("name", "plain"), [("a\\b", "a_b"), ("C:\\x", "C_x"), ("../x", "_x"), ("/x", "x"), ("..", "_")]
)
def test_other_names_become_plain(name, plain):
    assert not is_plain_name(name) and plain_name(name) == plain


@pytest.fixture(params=[0o022, 0o027, 0o002, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_weights_have_the_mode_of_any_new_file(umask, tmp_path):
    model = get_peft_model(random_sam(), ConvLoraConfig())
    save_adapter(model, tmp_path / "adapter")
    save_adapter(random_sam(), tmp_path / "full")
    export_tiny(tmp_path / "tiny")
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    write_adapter(tmp_path / "converted", SamAdapterConfig(), {"x": torch.zeros(1)}, processor, SamModel)
    pool = ModaModel(random_sam(), ModaConfig(inner=SamDecoderConfig(), domains=["polyp"], inference_mode=True))
    pool.save_pretrained(tmp_path / "pool")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.suffix == ".safetensors" for path in files) == 6
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {
        path.name: oct(0o666 & ~umask) for path in files
    }


def test_a_name_of_any_length_is_written_whole(tmp_path):
    path = tmp_path / f"{'病' * 80}_mask.png"
    with whole_file(path) as part:
        assert part.suffix == ".png"
        part.write_text("x")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert temporary_path(path) != temporary_path(path.with_name(f"a{path.name}"))
    assert temporary_path(tmp_path / "a.nii.gz").name.endswith(".nii.gz")


def test_a_file_in_the_way_of_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file/deep/er"):
        with pytest.raises(UserError, match=r"output_dir: .*file is a file; name a folder"):
            check_folder(folder, "output_dir")
    check_folder(tmp_path / "new/deep")
    check_folder(Path("new"))
