"""What a published folder says of its masks: the keys of its recipe, and a card that fits them."""

import shutil

import datasets
import numpy as np
import pytest
import yaml
from PIL import Image

from hf_sam_adapt.convert.annotations import push
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.errors import UserError


@pytest.fixture
def published(monkeypatch, tmp_path):
    """Publish a folder into another folder."""

    def upload(files, repo, repo_type):
        for name, path in files(repo).items():
            target = tmp_path / "hub" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
        return repo

    monkeypatch.setattr(push, "upload", upload)
    monkeypatch.setattr(push, "check_can_push", lambda repo: None)

    def publish(folder, **keys):
        push.push_dataset(folder, "me/set", **keys)
        recipe = tmp_path / "hub" / "recipe.yaml"
        read = yaml.safe_load(recipe.read_text()) if recipe.is_file() else {}
        assert read.pop("dataset", "me/set") == "me/set"
        files = {
            split: [str(path) for path in sorted((tmp_path / "hub" / "data").glob(f"{split}-*"))]
            for split in ("train", "validation", "test")
        }
        loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))
        return load_segmentation_dataset(loaded, **read), (tmp_path / "hub" / "README.md").read_text(), read

    return publish


def write_folder(root, masks, recipe=None):
    for number, mask in enumerate(masks):
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 255, (20, 30, 3), np.uint8)).save(
            root / "images" / f"p{number // 2}_{number}.png"
        )
        Image.fromarray(mask).save(root / "masks" / f"p{number // 2}_{number}.png")
    if recipe is not None:
        (root / "recipe.yaml").write_text(yaml.safe_dump({"dataset": "."} | recipe))
    return root


def drawn(values, count=12):
    rng = np.random.default_rng(5)
    return [np.asarray(values, np.uint8)[rng.integers(0, len(values), (20, 30))] for _ in range(count)]


def test_stored_values_are_mapped_as_in_the_folder(published, tmp_path):
    recipe = {"num_labels": 3, "mask_values": "index", "label_map": {0: 255, 1: 1, 2: 2}}
    recipe["id2label"] = ["nothing", "road", "sky"]
    folder = write_folder(tmp_path / "set", drawn([0, 1, 2]), recipe)
    data, card, read = published(folder)
    assert set(np.unique(data.train[0].mask)) == {1, 2, 255} and data.id2label[2] == "sky"
    assert read["label_map"] == recipe["label_map"]
    assert "Mask values: 0 = ignore, 1 = road, 2 = sky; others as they are, 255 = ignore." in card
    assert "--config recipe.yaml" in card


def test_colours_keep_their_palette(published, tmp_path):
    palette = {"ground": [0, 0, 0], "road": [255, 0, 0]}
    folder = write_folder(tmp_path / "set", drawn([[0, 0, 0], [255, 0, 0]]), {"palette": palette})
    data, card, _ = published(folder)
    assert set(np.unique(data.train[0].mask)) == {0, 1} and list(data.palette.classes) == ["ground", "road"]
    assert "Mask colours: ground = (0, 0, 0), road = (255, 0, 0); others are ignored." in card


@pytest.mark.parametrize("foreground", [1, 255])
def test_the_card_names_the_value_of_the_foreground(published, tmp_path, foreground):
    data, card, read = published(write_folder(tmp_path / "set", drawn([0, foreground])))
    assert set(np.unique(data.train[0].mask)) == {0, 1} and not read
    assert f"Mask values: 0 = background, {foreground} = foreground" in card
    assert ("255 = ignore" in card) == (foreground == 1)


def test_groups_of_the_recipe_stay_together(published, tmp_path):
    folder = write_folder(tmp_path / "set", drawn([0, 1]), {"group_by": "^(.+)_[0-9]+$"})
    data, *_ = published(folder)
    groups = [{name.partition("_")[0] for name in split.ids} for split in (data.train, data.val, data.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 6


def test_a_failed_push_says_the_whole_command(published, tmp_path, monkeypatch):
    def fail(files, repo, repo_type):
        raise UserError("unreachable")

    monkeypatch.setattr(push, "upload", fail)
    folder = write_folder(tmp_path / "my set", drawn([0, 1]))
    with pytest.raises(UserError, match=r"--from folder '.*my set' --push me/set --group_by '\^\(\.\+\)_'"):
        push.push_dataset(folder, "me/set", group_by="^(.+)_")
