"""Evaluation by tiles: window by window the scores of the whole map, of one class and of several, and without data."""

import numpy as np
import pytest
from geotiffs import SIZES, make_scenes, write_geotiff
from sams import perturb

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.tiles import Tiles, Window
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.evaluation import evaluate
from hf_sam_adapt.evaluation.classes import constant_labels, evaluate_classes
from hf_sam_adapt.inference.loading import build_model, load_base
from hf_sam_adapt.inference.predictor import SamAdaptPredictor
from hf_sam_adapt.metrics import ConfusionMatrix, constant_mask, overlap
from hf_sam_adapt.prompts import Prompt


TILES = Tiles(64, 16)


@pytest.fixture
def scenes(tmp_path):
    return load_segmentation_dataset(str(make_scenes(tmp_path / "data")))


@pytest.fixture(scope="module")
def adapted(sam_folder):
    base, processor = load_base(sam_folder)
    return perturb(build_model("sam_adapter", {}, base), std=0.2).eval(), processor


def test_pixels_without_data_are_ignored(scenes):
    for split in (scenes.train, scenes.test):
        for index in range(len(split)):
            sample = split[index]
            assert (sample.mask[-10:, :20] == 255).all() and (sample.mask != 255).sum() == sample.mask.size - 200
            assert np.array_equal(split.mask(index), sample.mask) and not sample.valid[-1, 0]
            with split.open(index) as opened:
                window = Window(20, 5, 40, 30)
                part = opened.sample(window)
            assert np.array_equal(part.mask, sample.mask[window.slices])
            assert np.array_equal(part.image[part.mask != 255], sample.image[window.slices][part.mask != 255])


def test_scores_are_those_of_the_whole_map(scenes, adapted):
    model, processor = adapted
    constant = constant_mask(scenes.train)
    options = {"constant": constant, "boundary": True, "metrics": ["mae", "ber"], "progress": False}
    result = evaluate(model, processor, scenes.test, ["none"], tiles=TILES, batch_size=2, **options)
    predictor = SamAdaptPredictor(model, processor)
    found = []
    for index, record in enumerate(result.records):
        sample = scenes.test[index]
        (map_,) = predictor.predict([sample.path], tile=TILES.side, overlap=TILES.overlap, batch_size=2)
        assert record.scores["none"]["adapted"] == overlap(map_.mask, sample.mask)
        assert record.scores["none"]["constant"] == overlap(constant.at(*sample.mask.shape), sample.mask)
        assert record.labelled and record.id == sample.id
        known = sample.mask != 255
        chances = 1 / (1 + np.exp(-map_.logits[known]))
        stretched = (chances - chances.min()) / (chances.max() - chances.min())
        found.append(np.abs(stretched - (sample.mask[known] == 1)).mean())
    assert result.test["none"]["adapted"]["mae"] == pytest.approx(np.mean(found), abs=1e-4)
    assert 0 < result.test["none"]["adapted"]["biou"] < 1
    whole = evaluate(model, processor, scenes.test, ["none"], **options)
    assert whole.test["none"]["adapted"]["iou"] != result.test["none"]["adapted"]["iou"]
    assert whole.test["none"]["constant"] == pytest.approx(result.test["none"]["constant"])


def test_prompts_are_those_of_each_tile(scenes, adapted):
    model, processor = adapted
    kinds = ["none", "box", "point", "mask"]
    result = evaluate(model, processor, scenes.test, kinds, tiles=TILES, progress=False, batch_size=1)
    assert set(result.test) == set(kinds) and "zero_shot_best_of_3" in result.test["point"]
    # The second image is one tile, and so is what it was without tiles.
    whole = evaluate(model, processor, scenes.test.select([1]), kinds, progress=False)
    for kind in kinds[:3]:
        assert result.records[1].scores[kind] == whole.records[0].scores[kind]


def test_classes(tmp_path, sam_folder):
    data = load_segmentation_dataset(str(make_scenes(tmp_path / "data", classes=4)), num_labels=4)
    base, processor = load_base(sam_folder)
    model = perturb(build_model("cwsam", {"num_labels": 4}, base), std=0.2).eval()
    constant = constant_labels(data.train, 4)
    result = evaluate_classes(
        model, processor, data.test, 4, constant=constant, tiles=TILES, batch_size=3, progress=False
    )
    predictor = SamAdaptPredictor(model, processor, classes=list("abcd"))
    expected, of_constant = ConfusionMatrix(4), ConfusionMatrix(4)
    for index in range(len(data.test)):
        sample = data.test[index]
        (map_,) = predictor.predict([sample.path], tile=TILES.side, overlap=TILES.overlap, batch_size=3)
        expected.update(map_.mask, sample.mask)
        of_constant.update(constant.at(*sample.mask.shape), sample.mask)
    assert np.array_equal(result.matrix.counts, expected.counts) and len(result.records) == 3
    assert result.test["none"]["constant"]["miou"] == pytest.approx(of_constant.compute()["miou"])


def test_a_mask_on_another_grid_is_refused_before_training(tmp_path):
    root = make_scenes(tmp_path / "data")
    from rasterio.transform import from_origin

    write_geotiff(root / "test/masks/1.tif", np.zeros(SIZES[1], np.uint8), transform=from_origin(0, 0, 1, 1))
    with pytest.raises(UserError, match=r"1\.tif: the mask has another grid") as caught:
        load_segmentation_dataset(str(root))
    assert caught.value.code == "other-grid"


def test_statistics_leave_out_what_has_no_data(tmp_path):
    root = make_scenes(tmp_path / "data", dtype="float32", nodata=-1e6)
    data = load_segmentation_dataset(str(root), channels=3)
    from hf_sam_adapt.data.normalization import fit_normalization

    for kind in ("minmax", "db", "zscore"):
        found = fit_normalization(data.train, kind)
        assert found.get("low", [1])[0] >= 0 and found["mean"][0] > -1, kind
    pixels = (
        np.concatenate([sample.image[sample.valid] for sample in (data.train[i] for i in range(3))])
        .astype(np.float64)
        .astype(np.float64)
    )
    zscore = fit_normalization(data.train, "zscore")
    assert zscore["mean"] == pytest.approx(pixels.mean(axis=0), rel=1e-5)
    assert zscore["std"] == pytest.approx(pixels.std(axis=0), rel=1e-5)


def test_a_window_of_a_constant_is_a_part_of_it(scenes):
    constant, size = constant_mask(scenes.train, size=32), (151, 173)
    whole = constant.at(*size)
    assert 0 < whole.mean() < 1
    wrong = 0
    for cell in Tiles(64, 10).grid(size).cells:
        wrong += np.count_nonzero(constant.window(size, cell) != whole[cell.slices])
    assert wrong <= 0.002 * whole.size  # Pillow rounds its coefficients
    assert Prompt("none").kind == "none"
