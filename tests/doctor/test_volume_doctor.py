"""What doctor says of volumes: on both sides, of mixed spacing, with a mask on another grid, without all slices."""

import shutil

import numpy as np
import pytest
from drawn_volumes import affine_of, draw_volume, save_nifti, save_series, write_set

from hf_sam_adapt.doctor import examine_dataset


@pytest.fixture
def root(tmp_path):
    """Ten volumes for training and two to test, one of them a series."""
    write_set(tmp_path / "train", count=10, series=(4,), shape=(8, 40, 52))
    for number in (20, 21):
        values, mask = draw_volume(np.random.default_rng(number), (8, 40, 52))
        save_nifti(tmp_path / f"test/images/case_{number}.nii.gz", values)
        save_nifti(tmp_path / f"test/masks/case_{number}.nii.gz", mask)
    return tmp_path


def found(root):
    diagnosis = examine_dataset(root, mask_size=64, processes=0)
    return [(finding.code, finding.severity, finding.file, finding.value) for finding in diagnosis.findings.ordered()]


def test_a_clean_set_gives_nothing(root):
    assert found(root) == []


def test_a_volume_on_both_sides(root):
    for part in ("images", "masks"):
        shutil.copy(root / f"train/{part}/case_3.nii.gz", root / f"test/{part}/other.nii.gz")
    ((code, severity, file, value),) = found(root)
    assert (code, severity) == ("leakage", "error") and file == str(root / "test/images/other.nii.gz")
    assert value == f"in test, 8 of 8 slices have the pixels of {root}/train/images/case_3.nii.gz in train"


def test_mixed_spacing(root):
    values, mask = draw_volume(np.random.default_rng(30), (8, 40, 52))
    thick = affine_of(spacing=(6.0, 0.8, 0.7))
    save_nifti(root / "train/images/thick.nii.gz", values, thick)
    save_nifti(root / "train/masks/thick.nii.gz", mask, thick)
    ((code, severity, file, value),) = found(root)
    assert (code, severity) == ("spacing", "warning") and file.endswith("thick.nii.gz")
    assert value == "voxels of 6 x 0.8 x 0.7 mm (slice, row, column), most volumes have 3 x 0.8 x 0.7"


def test_a_mask_on_another_grid_and_missing_slices(root):
    _, mask = draw_volume(np.random.default_rng(5), (8, 40, 52))
    save_nifti(root / "train/masks/case_5.nii.gz", mask, affine_of(origin=(0.0, 30.0, 5.0)))
    values, _ = draw_volume(np.random.default_rng(4), (8, 40, 52))
    shutil.rmtree(root / "train/images/case_4")
    save_series(root / "train/images/case_4", values, leave_out=(3,))
    (first, second) = found(root)
    assert first[:2] == ("affine-mismatch", "error") and first[2].endswith("masks/case_5.nii.gz")
    assert second[:2] == ("missing-slices", "error") and second[2].endswith("images/case_4")
    assert "1 of 8 slices are missing" in second[3]


def test_a_volume_without_foreground_is_said_once(root):
    save_nifti(root / "train/masks/case_6.nii.gz", np.zeros((8, 40, 52), np.uint8))
    ((code, severity, file, value),) = found(root)
    assert (code, severity, value) == ("empty-mask", "warning", "no foreground in any slice")
    assert file.endswith("masks/case_6.nii.gz")
