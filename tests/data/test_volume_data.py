"""Volumes as data: read from NIfTI and DICOM alike, cut into slices, split by volume; what is refused."""

import gzip

import nibabel
import numpy as np
import pydicom
import pytest
from drawn_volumes import affine_of, draw_volume, save_nifti, save_series, write_set

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.volumes.slices import SliceKeys
from hf_sam_adapt.data.volumes.stack import open_grid, open_stack, write_volume
from hf_sam_adapt.doctor.examine import examine_dataset
from hf_sam_adapt.errors import UserError


TURNS = [None, ("R", "A", "S"), ("A", "S", "L"), ("I", "R", "P")]


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_however_a_file_stores_its_voxels_they_are_seen_alike(turn, suffix, tmp_path):
    values, mask = draw_volume(np.random.default_rng())
    stack = open_stack(save_nifti(tmp_path / f"a{suffix}", values, turn=turn))
    assert stack.grid.shape == values.shape
    assert stack.grid.spacing == pytest.approx((3.0, 0.8, 0.7))
    assert np.array_equal(np.stack([stack.read(k) for k in range(len(values))]), values)
    write_volume(tmp_path / "out.nii.gz", stack.grid, mask)
    stored, written = nibabel.load(tmp_path / f"a{suffix}"), nibabel.load(tmp_path / "out.nii.gz")
    assert np.array_equal(stored.affine, written.affine) and stored.shape == written.shape
    assert written.get_data_dtype() == np.uint8
    again = open_stack(tmp_path / "out.nii.gz")
    assert np.array_equal(np.stack([again.read(k) for k in range(len(values))]), mask)


def test_a_series_is_the_same_volume(tmp_path):
    values, _ = draw_volume(np.random.default_rng())
    tilted = affine_of()
    tilted[:3, :3] = _rotation(0.2, 0.1) @ tilted[:3, :3]
    for affine in (None, tilted):
        name = "flat" if affine is None else "tilted"
        nifti = open_stack(save_nifti(tmp_path / f"{name}.nii.gz", values, affine))
        series = open_stack(save_series(tmp_path / name, values, affine, slope=2.0, intercept=-1024))
        assert nifti.grid.differs(series.grid) is None
        assert np.abs(nifti.grid.affine - series.grid.affine).max() < 1e-4
        read = [np.stack([stack.read(k) for k in range(6)]) for stack in (nifti, series)]
        assert np.abs(read[0] - read[1]).max() <= 1  # a slope of 2 rounds


def _rotation(x, z):
    one = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    other = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return one @ other


def test_axes_are_the_patients(tmp_path):
    values, _ = draw_volume(np.random.default_rng())
    path = save_nifti(
        tmp_path / "a.nii", values
    )  # stored as columns to the left, rows to the back, slices to the head
    assert open_grid(path).shape == open_grid(path, "axial").shape == (6, 40, 52)
    coronal, sagittal = open_stack(path, "coronal"), open_stack(path, "sagittal")
    # From the front to the back, the head on top; from the right to the left.
    assert np.array_equal(coronal.read(5), values[::-1, 5, :])
    assert np.array_equal(sagittal.read(7), values[::-1, :, 7])
    affine = affine_of(spacing=(1.0, 1.0, 2.5))
    assert open_grid(save_nifti(tmp_path / "b.nii", values, affine)).shape == (52, 6, 40)  # the largest voxels
    assert open_grid(save_nifti(tmp_path / "c.nii", values, affine_of((1, 1, 1)))).shape == (6, 40, 52)


def test_windows_percentiles_and_neighbours(tmp_path):
    values, _ = draw_volume(np.random.default_rng())
    stack = open_stack(save_nifti(tmp_path / "a.nii.gz", values))
    image = SliceKeys.of({"window": [40, 200]}).image(stack, 2)
    assert image.dtype == np.uint8 and image.shape == (40, 52, 3) and (image[..., 0] == image[..., 2]).all()
    assert np.array_equal(image[..., 0], (np.clip((values[2] + 60.0) / 200, 0, 1) * 255).round().astype(np.uint8))
    low, high = np.percentile(values, (1, 99))
    wanted = (np.clip((values - low) / (high - low), 0, 1) * 255).round()
    for number, around in ((0, (0, 0, 1)), (3, (2, 3, 4)), (5, (4, 5, 5))):
        image = SliceKeys.of({"neighbours": 1}).image(stack, number)
        assert np.abs(image - np.stack([wanted[k] for k in around], -1)).max() <= 1
    stored = SliceKeys.of({"neighbours": 2}, 5).image(stack, 3)
    assert stored.dtype == np.float32 and np.array_equal(stored, np.moveaxis(values[1:6], 0, 2))


@pytest.mark.parametrize("series", [(), (0, 3, 5)])
def test_a_folder_of_volumes_is_a_data_set_split_by_volume(series, tmp_path):
    drawn = write_set(tmp_path, series=series)
    data = load_segmentation_dataset(tmp_path, neighbours=1)
    assert data.slices == {"slice_axis": None, "window": None, "neighbours": 1}
    found = {}
    for name in ("train", "val", "test"):
        for sample in getattr(data, name):
            volume, _, number = sample.id.rpartition("/")
            assert found.setdefault(volume, name) == name
            _, mask = drawn[int(volume[-1])]
            assert np.array_equal(sample.mask, mask[int(number)])
            assert sample.image.shape == (40, 52, 3)
    assert len(found) == 7 and set(found.values()) == {"train", "val", "test"}
    assert {name: set(keys) for name, keys in data.keys.items()} == {
        name: {volume for volume, side in found.items() if side == name} for name in ("train", "val", "test")
    }
    known = {name: sorted(keys) for name, keys in data.splits.items()}
    again = load_segmentation_dataset(tmp_path, known=known, seed=5, neighbours=1)
    assert {name: set(keys) for name, keys in again.keys.items()} == {n: set(k) for n, k in data.keys.items()}


def test_volumes_in_folders_of_their_splits_stay_there(tmp_path):
    write_set(tmp_path / "drawn")
    for number in range(7):
        split = "test" if number > 4 else "train"
        for part in ("images", "masks"):
            target = tmp_path / "data" / part / split / f"case_{number}.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "drawn" / part / f"case_{number}.nii.gz").rename(target)
    data = load_segmentation_dataset(tmp_path / "data")
    assert set(data.keys["test"]) == {"test/case_5", "test/case_6"}
    assert all(key.startswith("train/") for name in ("train", "val") for key in data.keys[name])


def test_linked_folders_are_read_and_other_files_counted(tmp_path):
    write_set(tmp_path / "elsewhere", count=4)
    write_set(tmp_path / "data", count=5, series=(0,))
    for part in ("images", "masks"):
        (tmp_path / "data" / part / "linked").symlink_to(tmp_path / "elsewhere" / part)
        (tmp_path / "data" / part / "other.nrrd").write_bytes(b"NRRD0004")
    data = load_segmentation_dataset(tmp_path / "data")
    assert len([key for name in ("train", "val", "test") for key in data.keys[name]]) == 9
    assert any("2 files of the folder are not read, such as images/other.nrrd" in note for note in data.notes)
    found = examine_dataset(tmp_path / "data", processes=0).findings.kept
    assert {finding.file for finding in found if finding.code == "odd-file"} == {
        str(tmp_path / "data" / part / "other.nrrd") for part in ("images", "masks")
    }


def test_bad_keys(tmp_path):
    write_set(tmp_path, count=3)
    cases = [
        ({"window": [40]}, "window: 40 is not a level and a width"),
        ({"window": [40, 0]}, "window: 40 0 is not"),
        ({"slice_axis": "oblique"}, "slice_axis: 'oblique' is unknown"),
        ({"neighbours": 2}, "neighbours: 2 on each side make 5 channels; set channels to 5"),
        ({"neighbours": -1}, "neighbours: -1 is below 0"),
        ({"channels": 3}, "neighbours: 0 on each side make 1 channels, but channels is 3"),
        ({"channels": 1, "window": [40, 400]}, "window: values are kept"),
        ({"palette": "FUSAR_MAP_1"}, "palette: masks of volumes"),
    ]
    for choice, message in cases:
        with pytest.raises(UserError, match=message):
            load_segmentation_dataset(tmp_path, **choice)
    with pytest.raises(UserError, match="neighbours: it is for volumes, and the data set has none"):
        load_segmentation_dataset("synthetic:polyp", neighbours=1)


def test_masks_on_another_grid_are_refused(tmp_path):
    moved = affine_of(origin=(-11.0, 30.0, 5.0))
    write_set(tmp_path / "moved", count=3, mask_affine=moved)
    with pytest.raises(UserError, match=r"case_0.nii.gz: another affine than its image, voxels lie up to 1 mm apart"):
        load_segmentation_dataset(tmp_path / "moved")
    write_set(tmp_path / "cut", count=3)
    save_nifti(tmp_path / "cut/masks/case_1.nii.gz", np.zeros((5, 40, 52), np.uint8))
    with pytest.raises(UserError, match=r"case_1.nii.gz: 5x40x52 voxels, its image has 6x40x52"):
        load_segmentation_dataset(tmp_path / "cut")
    (tmp_path / "cut/masks/case_1.nii.gz").unlink()
    with pytest.raises(UserError, match=r"1 image without mask: images/case_1.nii.gz"):
        load_segmentation_dataset(tmp_path / "cut")


@pytest.mark.parametrize("place", ["head", "voxels"])
def test_truncated_files_name_themselves(place, tmp_path):
    values, _ = draw_volume(np.random.default_rng())
    path = save_nifti(tmp_path / "a.nii.gz", values)
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:100]) if place == "head" else path.read_bytes()[:-4000])
    with pytest.raises(UserError, match=r"a.nii.gz: not a readable NIfTI file"):
        open_stack(path).read(0)


def test_slices_without_a_scale_keep_their_values(tmp_path):
    values = 2 * np.random.default_rng(0).integers(0, 500, (4, 20, 30)).astype(np.int16)
    save_series(tmp_path / "series", values, slope=2.0, intercept=-1000)
    for path in (tmp_path / "series").iterdir():
        data = pydicom.dcmread(path)
        if data.InstanceNumber == 3:
            del data.RescaleSlope, data.RescaleIntercept
            data.save_as(path)
            stored = data.pixel_array
    stack = open_stack(tmp_path / "series")
    found = np.stack([stack.read(number) for number in range(4)])
    assert np.array_equal(found[[0, 1, 3]], values[[0, 1, 3]]) and np.array_equal(found[2], stored)


def test_colours_are_no_voxels(tmp_path):
    save_series(tmp_path / "series", np.zeros((3, 20, 30), np.int16))
    for path in (tmp_path / "series").iterdir():
        data = pydicom.dcmread(path)
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        data.BitsAllocated = data.BitsStored = 8
        data.HighBit, data.PixelRepresentation, data.PixelData = 7, 0, bytes(20 * 30 * 3)
        data.save_as(path)
    with pytest.raises(UserError, match="colours, a volume has one value a voxel"):
        open_stack(tmp_path / "series").read(0)


def test_series_that_are_no_volume(tmp_path):
    values, _ = draw_volume(np.random.default_rng(), (8, 20, 24))
    with pytest.raises(UserError, match="2 of 8 slices are missing, between 8 and 17 mm first") as caught:
        open_grid(save_series(tmp_path / "gap", values, leave_out=(2, 3)))
    assert caught.value.code == "missing-slices"
    with pytest.raises(UserError, match="1 of 8 slices are missing"):
        open_grid(save_series(tmp_path / "one", values, leave_out=(6,)))
    twice = save_series(tmp_path / "twice", values)
    save_series(tmp_path / "other", values)
    for path in (tmp_path / "other").iterdir():
        path.rename(twice / f"other_{path.name}")
    with pytest.raises(UserError, match=r"2 series, such as"):
        open_grid(twice)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no DICOM file in it"):
        open_grid(tmp_path / "empty")
    cut = save_series(tmp_path / "cut", values)
    first = min(cut.iterdir())
    first.write_bytes(first.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"not a readable DICOM file"):
        open_stack(cut)


def test_not_three_dimensions_and_not_finite(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 2)), np.eye(4)), tmp_path / "four.nii")
    with pytest.raises(UserError, match=r"4 dimensions .4x5x6x2., a volume has three"):
        open_grid(tmp_path / "four.nii")
    values = np.ones((4, 5, 6))
    values[1, 1, 1] = np.nan
    stack = open_stack(save_nifti(tmp_path / "nan.nii", values))
    assert stack.read(0).shape == (5, 6)
    with pytest.raises(UserError, match=r"nan.nii: slice 1: 1 of 30 voxels are NaN"):
        stack.read(1)
