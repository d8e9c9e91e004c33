"""Volumes predicted: NIfTI and DICOM alike, written on the source's grid; slices only where they are asked for."""

import json
import shutil

import nibabel
import numpy as np
import pytest
from drawn_volumes import draw_volume, save_nifti, save_series, save_sliced_run
from PIL import Image

from hf_sam_adapt import SamAdaptPredictor
from hf_sam_adapt.cli import main
from hf_sam_adapt.cli.predict import predict
from hf_sam_adapt.data.volumes.slices import SliceKeys
from hf_sam_adapt.data.volumes.stack import open_stack
from hf_sam_adapt.errors import UserError


@pytest.fixture(scope="module")
def adapter(sam_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "adapter"
    return save_sliced_run(folder, sam_folder, "sam_adapter", {}, slice_axis=None, window=[60, 400], neighbours=1)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    """A volume in two orders as NIfTI and as a series."""
    root = tmp_path_factory.mktemp("volumes")
    values, _ = draw_volume(np.random.default_rng(0))
    save_nifti(root / "a.nii.gz", values)
    save_nifti(root / "turned.nii", values, turn=("A", "S", "L"))
    save_series(root / "series", values, intercept=-1000)
    return root


def stacked(path):
    stack = open_stack(path)
    return np.stack([stack.read(k) for k in range(stack.grid.shape[0])])


def test_nifti_and_dicom_give_the_same_masks_on_their_own_grids(adapter, sam_folder, volumes, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["predict", str(volumes), "--adapter", adapter, "--model", sam_folder, "--output_dir", str(out)]
    assert main([*argv, "--probability"]) == 0
    records = json.loads((out / "predictions.json").read_text())["predictions"]
    assert sorted(record["nifti"] for record in records) == [
        "a_mask.nii.gz",
        "series_mask.nii.gz",
        "turned_mask.nii.gz",
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        ["predictions.json", *(f"{n}_{k}.nii.gz" for n in ("a", "series", "turned") for k in ("mask", "probability"))]
    )
    predictor = SamAdaptPredictor.from_pretrained(adapter, model=sam_folder)
    stack = open_stack(volumes / "a.nii.gz")
    images = [SliceKeys.of({"window": [60, 400], "neighbours": 1}).image(stack, k) for k in range(6)]
    wanted = np.stack([result.mask for result in predictor.predict(images)])
    assert 0 < wanted.mean() < 1
    for name in ("a", "series", "turned"):
        assert np.array_equal(stacked(out / f"{name}_mask.nii.gz"), wanted)
        chances = stacked(out / f"{name}_probability.nii.gz")
        assert ((chances > 0.5) == wanted)[np.abs(chances - 0.5) > 1e-5].all()
    for name in ("a.nii.gz", "turned.nii"):
        source, written = nibabel.load(volumes / name), nibabel.load(out / f"{name.split('.')[0]}_mask.nii.gz")
        assert np.array_equal(source.affine, written.affine) and source.shape == written.shape
        assert source.header["qform_code"] == written.header["qform_code"]
    assert np.abs(nibabel.load(out / "series_mask.nii.gz").affine - stack.grid.stored_affine).max() < 1e-4
    for record in records:
        assert record["shape"] == [6, 40, 52] and record["foreground"] == pytest.approx(wanted.mean())
        assert record["volume_ml"] == pytest.approx(wanted.sum() * 3.0 * 0.8 * 0.7 / 1000, rel=1e-5)
    assert "3 masks, as nifti, and predictions.json" in capsys.readouterr().out


def test_slices_are_written_where_they_are_asked_for(adapter, sam_folder, volumes, tmp_path):
    choice = {"model": sam_folder, "output_dir": tmp_path / "out", "progress": False}
    (record,) = predict(
        [str(volumes / "series")], adapter, format=["nifti", "png", "labelme"], rank="uncertain", **choice
    )
    whole = stacked(tmp_path / "out/series_mask.nii.gz")
    assert len(record["slices"]) == 6
    for part in record["slices"]:
        number = part["slice"]
        assert part["mask"] == f"series_{number:04d}_mask.png"
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / part["mask"])) > 0, whole[number] > 0)
        content = json.loads((tmp_path / "out" / part["labelme"]).read_text())
        assert Image.open(tmp_path / "out/labelme" / content["imagePath"]).size == (52, 40)
    ranked = sorted(record["slices"], key=lambda part: tuple(part["uncertainty"].values()), reverse=True)
    assert [part["labelme"][:13] for part in ranked] == [f"labelme/000{place}_" for place in range(1, 7)]


def test_another_cut_and_what_is_there(adapter, sam_folder, volumes, tmp_path):
    choice = {"model": sam_folder, "output_dir": tmp_path / "out", "progress": False}
    paths = [str(volumes / "a.nii.gz")]
    (record,) = predict(paths, adapter, slice_axis="coronal", neighbours=0, **choice)
    assert record["shape"] == [40, 6, 52]
    assert nibabel.load(tmp_path / "out/a_mask.nii.gz").shape == (52, 40, 6)
    (again,) = predict(paths, adapter, slice_axis="coronal", neighbours=0, skip_existing=True, **choice)
    assert again == record | {"skipped": True}
    with pytest.raises(UserError, match="other slices"):
        predict(paths, adapter, skip_existing=True, **choice)


def test_a_volume_with_a_bad_slice_leaves_nothing(adapter, sam_folder, volumes, tmp_path):
    good = nibabel.load(volumes / "a.nii.gz")
    values = np.asarray(good.dataobj, np.float32)
    values[3, 3, -1] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, good.affine), tmp_path / "bad.nii.gz")
    choice = {"model": sam_folder, "output_dir": tmp_path / "out", "progress": False, "format": ["png", "coco"]}
    found = predict([str(tmp_path / "bad.nii.gz"), str(volumes / "a.nii.gz")], adapter, **choice)
    assert [("error" in record) for record in found] == [True, False]
    assert not list((tmp_path / "out").glob("bad*"))
    coco = json.loads((tmp_path / "out/coco.json").read_text())
    assert not [image for image in coco["images"] if image["file_name"].startswith("bad")]


def test_bad_input(adapter, sam_folder, volumes, tmp_path, capsys):
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.png")
    volume, photo = str(volumes / "a.nii.gz"), str(tmp_path / "photo.png")
    cases = [
        ([volume, photo], {}, "inputs: volumes such as a.nii.gz and images such as photo.png"),
        ([photo], {"format": ["nifti"]}, "format: nifti is for volumes"),
        ([volume], {"format": ["geotiff"]}, "format: geotiff is for maps"),
        ([photo], {"window": [40, 400]}, "window: it is for volumes"),
        ([volume], {"window": [40, -1]}, "window: 40 -1 is not"),
        ([volume], {"neighbours": 3}, "neighbours: 3 on each side make 7 channels"),
    ]
    for inputs, choice, message in cases:
        with pytest.raises(UserError, match=message):
            predict(inputs, adapter, model=sam_folder, output_dir=tmp_path / "out", progress=False, **choice)
        assert not (tmp_path / "out").exists()
    shutil.copytree(volumes / "series", tmp_path / "gap")
    slices = sorted((tmp_path / "gap").iterdir())
    slices[0].unlink()
    (tmp_path / "cut.nii.gz").write_bytes((volumes / "a.nii.gz").read_bytes()[:-3000])
    argv = ["predict", volume, str(tmp_path / "cut.nii.gz"), "--adapter", adapter, "--model", sam_folder]
    assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert "cut.nii.gz: not a readable NIfTI file" in said.err and "1 masks" in said.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a_mask.nii.gz", "predictions.json"]
