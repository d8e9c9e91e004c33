"""Options of `convert`: groups reach the splits, and what has no effect is refused."""

import pytest
import yaml
from annotation_files import BOXES, photograph, write_labelme

from hf_sam_adapt.cli import main
from hf_sam_adapt.config.arguments import read_yaml
from hf_sam_adapt.data import load_segmentation_dataset


@pytest.fixture
def patients(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [f"patient{number // 2}_{number % 2}.png" for number in range(16)]
    for name in names:
        photograph(tmp_path / "photos" / name)
    write_labelme(tmp_path / "photos", dict.fromkeys(names, BOXES))
    return tmp_path / "photos"


def test_groups_stay_together_in_the_splits_that_a_training_draws(patients):
    assert main(["convert", "photos", "--from", "labelme", "--out", "data", "--group_by", "^(patient[0-9]+)_"]) == 0
    keys = read_yaml("data/recipe.yaml")
    assert keys["group_by"] == "^(patient[0-9]+)_"
    data = load_segmentation_dataset("data", mask_values="index", group_by=keys["group_by"])
    groups = [{name.partition("_")[0] for name in split.ids} for split in (data.train, data.val, data.test)]
    assert all(groups) and sum(map(len, groups)) == 8
    assert main(["convert", "photos", "--from", "labelme", "--out", "other"]) == 0
    assert "group_by" not in yaml.safe_load((patients.parent / "other/recipe.yaml").read_text())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--from labelme --group_by ((", "group_by: '((' is not a regular expression"),
        ("--from labelme --group_by ^(case[0-9]+)_", "does not match the image 'patient0_0'"),
        ("--from labelme --classes cell other cell", "classes: cell is named twice"),
        ("--from labelme --decoder none", "decoder: not for --from labelme"),
        ("--from sam-pth --layout datasets", "layout: not for --from sam-pth"),
        ("--from folder --push me/mine --classes cell", "classes: not for --from folder"),
    ],
)
def test_what_is_wrong_or_has_no_effect_is_refused(patients, capsys, flags, message):
    out = [] if "folder" in flags else ["--out", "data"]
    assert main(["convert", "photos", *flags.split(), *out]) == 2
    assert message in capsys.readouterr().err
    assert not (patients.parent / "data").exists()
