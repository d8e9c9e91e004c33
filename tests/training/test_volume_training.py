"""A run on volumes from beginning to end: split by volume, and predicted as it was trained."""

import json

import nibabel
import numpy as np
import pytest
from drawn_volumes import draw_volume, save_nifti, write_set

from hf_sam_adapt.cli import main
from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.training import train


@pytest.fixture(scope="module")
def run(sam_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    write_set(root / "data", count=7, series=(2,))
    recipe = {"dataset": str(root / "data"), "model": sam_folder, "window": [60, 500], "neighbours": 1}
    train(Recipe(**recipe, slice_axis="axial", max_steps=2, batch_size=2, augment=[], output_dir=str(root / "run")))
    return root / "run"


def test_a_run_folder_says_how_volumes_are_cut(run):
    slices = {"slice_axis": "axial", "window": [60.0, 500.0], "neighbours": 1}
    assert json.loads((run / "preprocessor_config.json").read_text())["slices"] == slices
    splits = json.loads((run / "splits.json").read_text())
    volumes = [name for names in splits.values() for name in names]
    assert sorted(volumes) == [f"case_{number}" for number in range(7)]
    scores = json.loads((run / "metrics.json").read_text())["test"]["none"]
    for variant in ("zero_shot", "adapted"):
        assert scores[variant]["volumes"]["volumes"] == len(splits["test"])
    assert (run / "logs/per_volume.csv").is_file()


def test_evaluate_and_predict_cut_as_the_run_did(run, tmp_path, capsys):
    assert main(["evaluate", str(run), "--output_dir", str(tmp_path / "again")]) == 0
    found, said = (
        json.loads((path / "metrics.json").read_text())["test"]["none"] for path in (tmp_path / "again", run)
    )
    assert found["adapted"] == said["adapted"]
    other = tmp_path / "other"
    write_set(other, count=3)
    assert main(["evaluate", str(run), "--dataset", str(other)]) == 0
    values, _ = draw_volume(np.random.default_rng(9))
    source = save_nifti(tmp_path / "new.nii.gz", values)
    masks = []
    for extra in ([], ["--window", "60", "500", "--neighbours", "1"], ["--window", "0", "80"]):
        out = tmp_path / f"out{len(masks)}"
        assert (
            main(["predict", str(source), "--adapter", str(run), "--output_dir", str(out), *extra, "--probability"])
            == 0
        )
        masks.append(np.asarray(nibabel.load(out / "new_probability.nii.gz").dataobj))
    assert np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[0], masks[2])
    with pytest.raises(UserError, match="window: it is for volumes"):
        from hf_sam_adapt.data import load_segmentation_dataset

        load_segmentation_dataset("synthetic:polyp", window=[0, 80])
