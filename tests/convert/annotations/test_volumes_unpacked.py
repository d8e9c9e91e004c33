"""`convert --from volumes`: slices as images where they are asked for, still split by volume."""

import numpy as np
import pytest
import yaml
from drawn_volumes import save_nifti, write_set
from PIL import Image

from hf_sam_adapt.cli import main
from hf_sam_adapt.data import load_segmentation_dataset


def test_slices_are_those_of_the_volumes(tmp_path, capsys):
    drawn = write_set(tmp_path / "data", count=5, series=(2,))
    argv = ["convert", "--from", "volumes", str(tmp_path / "data"), "--out", str(tmp_path / "slices")]
    assert main([*argv, "--window", "40", "400", "--neighbours", "1"]) == 0
    keys = yaml.safe_load((tmp_path / "slices/recipe.yaml").read_text())
    assert keys["group_by"] == "^(.+)_[0-9]+$" and keys["id2label"] == {0: "background", 1: "object"}
    volumes = load_segmentation_dataset(tmp_path / "data", window=[40, 400], neighbours=1)
    for split in (volumes.train, volumes.val, volumes.test):
        for sample in split:
            stem = sample.id.replace("/", "_")
            assert np.array_equal(np.asarray(Image.open(tmp_path / f"slices/images/{stem}.png")), sample.image)
            assert np.array_equal(np.asarray(Image.open(tmp_path / f"slices/masks/{stem}.png")), sample.mask)
    assert len(list((tmp_path / "slices/images").iterdir())) == 5 * 6
    images = load_segmentation_dataset(tmp_path / "slices", mask_values="index", group_by=keys["group_by"])
    homes = {}
    for name in ("train", "val", "test"):
        for sample in getattr(images, name):
            assert homes.setdefault(sample.id.rpartition("_")[0], name) == name
    assert len(homes) == len(drawn) and "30 images" in capsys.readouterr().out


def test_classes_and_splits_are_kept(tmp_path):
    drawn = write_set(tmp_path / "train", count=2)
    write_set(tmp_path / "test", count=1)
    classes = drawn[0][1] * 1
    classes[:, :9], classes[:, -4:] = 3, 255
    save_nifti(tmp_path / "train/masks/case_0.nii.gz", classes)
    assert main(["convert", "--from", "volumes", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    keys = yaml.safe_load((tmp_path / "out/recipe.yaml").read_text())
    assert keys["id2label"] == {0: "background", 1: "1", 2: "3"} and keys["num_labels"] == 3
    mask = np.asarray(Image.open(tmp_path / "out/train/masks/case_0_0003.png"))
    assert np.array_equal(mask, np.where(classes[3] == 3, 2, classes[3]))
    assert len(list((tmp_path / "out/test/images").iterdir())) == 6


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["labelme", "--window", "40", "400"], "window: not for --from labelme"),
        (["volumes", "--images", "elsewhere"], "images: not for --from volumes"),
        (["volumes", "--window", "40"], "window: 40.0 is not a level and a width"),
        (["volumes"], "no volumes in it"),
    ],
)
def test_bad_input(argv, message, tmp_path, capsys):
    root = tmp_path / "data"
    if len(argv) == 1:
        root.mkdir()
    else:
        write_set(root, count=1)
    form, *flags = argv
    assert main(["convert", "--from", form, str(root), "--out", str(tmp_path / "out"), *flags]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
