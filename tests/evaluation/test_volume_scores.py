"""Dice, HD95 and surface Dice of volumes beside a literal reference, and in an evaluation."""

import csv
import json

import numpy as np
import pytest
from drawn_volumes import draw_volume, save_nifti, save_sliced_run, write_set

from hf_sam_adapt.cli import main
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.inference.predictor import SamAdaptPredictor
from hf_sam_adapt.inference.variants import inference, label_maps, predicted_masks, variants_of
from hf_sam_adapt.metrics.volume import surface_distances, volume_scores
from hf_sam_adapt.prompts import Prompt


def reference(prediction, truth, spacing, tolerance):
    """Voxel by voxel, from the definitions."""

    def surface(mask):
        found = []
        for place in np.argwhere(mask):
            for axis in range(3):
                for step in (-1, 1):
                    beside = place.copy()
                    beside[axis] += step
                    inside = 0 <= beside[axis] < mask.shape[axis]
                    if not inside or not mask[tuple(beside)]:
                        found.append(tuple(place))
        return np.array(sorted(set(found))) * spacing

    one, other = surface(prediction), surface(truth)
    apart = np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1))
    there, back = apart.min(1), apart.min(0)
    hd95 = max(np.percentile(there, 95), np.percentile(back, 95))
    near = ((there <= tolerance).sum() + (back <= tolerance).sum()) / (len(there) + len(back))
    return 2 * (prediction & truth).sum() / (prediction.sum() + truth.sum()), hd95, near


@pytest.mark.parametrize("number", range(4))
def test_scores_equal_the_definitions(number):
    rng = np.random.default_rng(number)
    shape = tuple(rng.integers(4, 13, 3))
    spacing = rng.uniform(0.5, 4, 3)
    prediction, truth = (rng.random(shape) < rng.uniform(0.02, 0.5) for _ in range(2))
    if number == 3:  # large objects at the border
        prediction, truth = (draw_volume(rng, shape)[1] > 0 for _ in range(2))
        prediction[:2] = True
    ignored = rng.random(shape) < 0.1
    wanted = reference(prediction & ~ignored, truth & ~ignored, spacing, 2.0)
    found = volume_scores(prediction, np.where(ignored, 255, truth).astype(np.uint8), spacing, 2.0)
    assert list(found) == ["dice", "hd95", "surface_dice"]
    assert list(found.values()) == pytest.approx(wanted, rel=1e-9)
    assert 0 < found["surface_dice"] < 1 or number == 3


def test_empty_masks():
    empty, full = np.zeros((3, 4, 5), bool), np.ones((3, 4, 5), bool)
    assert volume_scores(empty, empty.astype(np.uint8), (1, 1, 1)) == {"dice": 1.0, "hd95": 0.0, "surface_dice": 1.0}
    for one, other in ((empty, full), (full, empty)):
        scores = volume_scores(one, other.astype(np.uint8), (1, 1, 1))
        assert scores == {"dice": 0.0, "hd95": None, "surface_dice": 0.0}
    shifted = np.roll(np.pad(np.ones((2, 3, 3), bool), 4), 2, axis=0)
    there, back = surface_distances(np.pad(np.ones((2, 3, 3), bool), 4), shifted, (2.5, 1, 1))
    assert there.max() == back.max() == 5.0


def test_an_evaluation_scores_slices_and_volumes(sam_folder, tmp_path, capsys):
    write_set(tmp_path / "data", count=7, series=(1,))
    adapter = save_sliced_run(
        tmp_path / "run", sam_folder, "sam_adapter", {}, slice_axis=None, window=None, neighbours=1
    )
    argv = [
        "evaluate",
        adapter,
        "--model",
        sam_folder,
        "--dataset",
        str(tmp_path / "data"),
        "--prompts",
        "none",
        "box",
    ]
    output = tmp_path / "out"
    assert main([*argv, "--surface_tolerance", "2.6", "--output_dir", str(output)]) == 0
    data = load_segmentation_dataset(tmp_path / "data", neighbours=1)  # as the adapter's processor says
    loaded, test = load_adapted(adapter, model=sam_folder), data.test
    masks, ious = {}, []
    with inference([loaded.model]):
        for sample in test:
            ((*_, mask),) = predicted_masks(
                variants_of(loaded.model, zero_shot=False), loaded.processor, [sample], {"none": [Prompt("none")]}
            )
            masks.setdefault(sample.id.rpartition("/")[0], []).append((mask, sample.mask))
            union = (mask | (sample.mask > 0)).sum()
            ious.append((mask & (sample.mask > 0)).sum() / union if union else 1.0)
    scores = {
        name: reference(*(np.stack(p) > 0 for p in zip(*pairs)), (3.0, 0.8, 0.7), 2.6) for name, pairs in masks.items()
    }
    metrics = json.loads((output / "metrics.json").read_text())["test"]
    found = metrics["none"]["adapted"]
    assert found["iou"] == pytest.approx(np.mean(ious), abs=1e-6)
    wanted = dict(zip(("volume_dice", "hd95_mm", "surface_dice"), np.mean(list(scores.values()), axis=0)))
    assert found["volumes"] == pytest.approx(wanted | {"volumes": len(scores), "without_hd95": 0}, rel=1e-6)
    assert set(metrics["box"]) == {"zero_shot", "adapted"} and metrics["box"]["zero_shot"]["volumes"]["volumes"] > 0
    with open(output / "per_volume.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["prompt"], row["model"]) == ("none", "adapted")]
    assert {row["volume"]: float(row["hd95_mm"]) for row in rows} == pytest.approx(
        {name: one[1] for name, one in scores.items()}, rel=1e-5
    )
    with open(output / "per_image.csv", newline="") as file:
        assert {row["file"] for row in csv.DictReader(file)} <= {str(p) for p in (tmp_path / "data/images").iterdir()}
    assert "HD95, mm" in capsys.readouterr().out


def test_tiles_of_slices_make_volumes(sam_folder, tmp_path):
    write_set(tmp_path / "data", count=4, shape=(3, 40, 52))
    adapter = save_sliced_run(
        tmp_path / "run", sam_folder, "sam_adapter", {}, slice_axis=None, window=None, neighbours=0
    )
    argv = ["evaluate", adapter, "--model", sam_folder, "--dataset", str(tmp_path / "data"), "--batch_size", "1"]
    argv += ["--tile", "32", "--overlap", "8", "--surface_tolerance", "2.6", "--output_dir", str(tmp_path / "out")]
    assert main(argv) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())["test"]["none"]
    loaded = load_adapted(adapter, model=sam_folder)
    predictor = SamAdaptPredictor(loaded.model, loaded.processor)
    samples = list(load_segmentation_dataset(tmp_path / "data").test)
    masks = [predictor.predict(sample.image, tile=32, overlap=8, batch_size=1)[0].mask for sample in samples]
    truth = np.stack([sample.mask for sample in samples]) > 0
    wanted = dict(
        zip(("volume_dice", "hd95_mm", "surface_dice"), reference(np.stack(masks), truth, (3.0, 0.8, 0.7), 2.6))
    )
    assert found["adapted"]["volumes"] == pytest.approx(wanted | {"volumes": 1, "without_hd95": 0}, rel=1e-6)
    assert found["zero_shot"]["volumes"]["volumes"] == 1 and "volumes" not in found["constant"]
    assert (tmp_path / "out/per_volume.csv").is_file()


def test_classes_have_scores_of_their_own(sam_folder, tmp_path):
    drawn = write_set(tmp_path / "data", count=4)
    for number, (_, mask) in enumerate(drawn):
        classes = mask.copy()
        classes[:, :12] = np.where(mask[:, :12] == 0, 2, mask[:, :12])
        save_nifti(tmp_path / f"data/masks/case_{number}.nii.gz", classes)
    arguments = {"num_labels": 3, "id2label": {0: "background", 1: "organ", 2: "table"}, "scale_factor": 4}
    adapter = save_sliced_run(
        tmp_path / "run", sam_folder, "cwsam", arguments, slice_axis=None, window=None, neighbours=0
    )
    argv = ["evaluate", adapter, "--model", sam_folder, "--dataset", str(tmp_path / "data"), "--mask_values", "index"]
    assert main([*argv, "--output_dir", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())["test"]["none"]["adapted"]["volumes"]
    data = load_segmentation_dataset(tmp_path / "data", mask_values="index", num_labels=3)
    loaded = load_adapted(adapter, model=sam_folder)
    samples = list(data.test)
    with inference([loaded.model]):
        labels = np.stack([label_maps(loaded.model, loaded.processor, [sample])[0] for sample in samples])
    truth = np.stack([sample.mask for sample in samples])
    assert len({sample.id.rpartition("/")[0] for sample in samples}) == found["volumes"] == 1
    dice = [2 * ((labels == k) & (truth == k)).sum() / ((labels == k).sum() + (truth == k).sum()) for k in (1, 2)]
    assert found["volume_dice"] == pytest.approx(np.mean(dice), rel=1e-6)
    assert main([*argv, "--tile", "64", "--batch_size", "1", "--output_dir", str(tmp_path / "tiled")]) == 0
    tiled = json.loads((tmp_path / "tiled/metrics.json").read_text())["test"]["none"]["adapted"]["volumes"]
    assert tiled == pytest.approx(found, rel=1e-6)  # a slice is smaller than the tile
