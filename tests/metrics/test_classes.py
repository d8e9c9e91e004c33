"""The confusion matrix and its scores against counts by loops over pixels and the formulas of CWSAM's evaluation."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.metrics import ConfusionMatrix, plot_confusion
from hf_sam_adapt.metrics.classes import _confusion_figure


def images(seed, classes, n=4, absent=(), ignored=0.15):
    """Pairs (prediction, mask) of different sizes; half of the pixels are predicted right."""
    rng = np.random.default_rng(seed)
    present = [k for k in range(classes) if k not in absent]
    pairs = []
    for _ in range(n):
        shape = tuple(rng.integers(5, 25, 2))
        mask = rng.choice(present, shape).astype(np.uint8)
        prediction = np.where(rng.random(shape) < 0.5, mask, rng.choice(present, shape)).astype(np.int64)
        mask[rng.random(shape) < ignored] = 255
        pairs.append((prediction, mask))
    return pairs


def matrix_of(pairs, classes):
    matrix = ConfusionMatrix(classes)
    for prediction, mask in pairs:
        matrix.update(prediction, mask)
    return matrix


def known_pixels(pairs):
    """(truth, prediction) of every labelled pixel."""
    return [
        (int(mask[y, x]), int(prediction[y, x]))
        for prediction, mask in pairs
        for y in range(mask.shape[0])
        for x in range(mask.shape[1])
        if mask[y, x] != 255
    ]


def loop_scores(pixels, classes):
    """All scores from lists of pixels, without a matrix."""
    per_class = {}
    for k in classes:
        right = sum(t == k and p == k for t, p in pixels)
        missed, false = sum(t == k and p != k for t, p in pixels), sum(t != k and p == k for t, p in pixels)
        per_class[k] = {
            "iou": right / (right + missed + false) if right + missed + false else None,
            "precision": right / (right + false) if right + false else None,
            "recall": right / (right + missed) if right + missed else None,
            "f1": right / (right + (missed + false) / 2) if right + missed + false else None,
            "pixels": right + missed,
        }
        per_class[k]["dice"] = per_class[k]["f1"]
    known = {k: scores for k, scores in per_class.items() if scores["iou"] is not None}
    return {
        "oa": sum(t == p for t, p in pixels) / len(pixels),
        "miou": sum(scores["iou"] for scores in known.values()) / len(known),
        "fwiou": sum(scores["iou"] * scores["pixels"] for scores in known.values()) / len(pixels),
        "per_class": per_class,
    }


def assert_equal_scores(found, expected):
    for key in ("oa", "miou", "fwiou"):
        assert found[key] == pytest.approx(expected[key], abs=1e-12)
    assert found["per_class"].keys() == expected["per_class"].keys()
    for k, scores in expected["per_class"].items():
        assert found["per_class"][k] == pytest.approx(scores, abs=1e-12)


class PublishedMetric:
    """CWSAM's evaluation as its specification states it: background last, an all-zero one-hot pixel is class 0."""

    def __init__(self, classes, ignore_bg):
        self.classes, self.ignore_bg, self.matrix = classes, ignore_bg, np.zeros((classes, classes))

    def add(self, one_hot, scores):
        """(K, H, W) and (K, H, W)."""
        truth, prediction = one_hot.argmax(0), scores.argmax(0)
        for t, p in zip(truth.ravel(), prediction.ravel()):
            self.matrix[t, p] += 1

    def scores(self):
        cut = self.classes - 1 if self.ignore_bg else self.classes
        matrix = self.matrix[:cut, :cut]
        diagonal, rows, columns = np.diag(matrix), matrix.sum(1), matrix.sum(0)
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = np.round(diagonal / columns, 4), np.round(diagonal / rows, 4)
            iou = diagonal / (rows + columns - diagonal)
            f1 = 2 * precision * recall / (precision + recall)
        share = rows / matrix.sum()
        return {
            "oa": diagonal.sum() / matrix.sum(),
            "miou": np.nanmean(iou),
            "fwiou": (share[share > 0] * iou[share > 0]).sum(),
            "iou": iou,
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }


def published(pairs, classes, ignore_bg):
    metric = PublishedMetric(classes, ignore_bg)
    for prediction, mask in pairs:
        one_hot = np.stack([mask == k for k in range(classes)])
        metric.add(one_hot, np.stack([prediction == k for k in range(classes)]).astype(float))
    return metric.scores()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("classes", "absent"), [(2, ()), (5, ()), (7, (2, 4))])
def test_equals_loops_over_pixels(classes, absent, seed):
    pairs = images(seed, classes, absent=absent)
    result = matrix_of(pairs, classes).compute()
    assert result["ignore_background"] is False
    assert_equal_scores(result, loop_scores(known_pixels(pairs), range(classes)))
    for k in absent:
        assert result["per_class"][k]["iou"] is None


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("background", [0, 2, 4])
def test_ignored_background_drops_its_true_pixels_and_keeps_missed_ones_as_errors(background, seed):
    pairs = images(seed, 5)
    result = matrix_of(pairs, 5).compute(ignore_background=True, background=background)
    assert result["ignore_background"] is True
    pixels = [(t, p) for t, p in known_pixels(pairs) if t != background]
    assert_equal_scores(result, loop_scores(pixels, [k for k in range(5) if k != background]))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ignore_bg", [False, True])
def test_equals_the_published_evaluation(ignore_bg, seed):
    pairs = images(seed, 5, ignored=0)
    result = matrix_of(pairs, 5).compute(ignore_background="official" if ignore_bg else False, background=4)
    expected = published(pairs, 5, ignore_bg)
    assert result["ignore_background"] == ("official" if ignore_bg else False)
    for key in ("oa", "miou", "fwiou"):
        assert result[key] == pytest.approx(expected[key], abs=1e-12)
    assert len(result["per_class"]) == (4 if ignore_bg else 5)
    for k, scores in result["per_class"].items():
        assert scores["iou"] == pytest.approx(expected["iou"][k], abs=1e-12)
        assert round(scores["precision"], 4) == expected["precision"][k]
        assert round(scores["recall"], 4) == expected["recall"][k]
        assert scores["f1"] == pytest.approx(expected["f1"][k], abs=1e-4)  # theirs is of rounded values


def test_the_official_reading_does_not_depend_on_where_the_background_is():
    pairs = images(seed=5, classes=5)
    moved = [(np.where(p == 4, 0, p + 1), np.where(m == 255, 255, (m + 1) % 5).astype(np.uint8)) for p, m in pairs]
    for p, (q, _) in zip(pairs, moved):
        assert ((p[0] + 1) % 5 == q).all()
    last = matrix_of(pairs, 5).compute("official", background=4)
    first = matrix_of(moved, 5).compute("official", background=0)
    assert {k: last[k] for k in ("oa", "miou", "fwiou")} == pytest.approx(
        {k: first[k] for k in ("oa", "miou", "fwiou")}, abs=1e-12
    )
    assert [last["per_class"][k] for k in range(4)] == [first["per_class"][k] for k in range(1, 5)]


def test_buildings_lost_in_the_background_are_errors_but_for_the_official_reading():
    """100 building pixels, 40 found, 60 predicted as background: published recall and IoU are 1."""
    mask = np.ones((10, 10), np.uint8)
    prediction = np.zeros((10, 10), np.int64)
    prediction[:4] = 1
    matrix = matrix_of([(prediction, mask)], 2)
    official, standard = matrix.compute("official"), matrix.compute(True)
    assert official["per_class"][1]["recall"] == official["per_class"][1]["iou"] == official["oa"] == 1.0
    assert standard["per_class"][1]["recall"] == standard["per_class"][1]["iou"] == standard["oa"] == 0.4
    assert matrix.compute()["per_class"][0] == {
        "iou": 0.0, "precision": 0.0, "recall": None, "f1": 0.0, "dice": 0.0, "pixels": 0,
    }  # fmt: skip


def test_pixels_of_unknown_colour_do_not_count_while_published_code_takes_them_for_class_0():
    pairs = images(seed=6, classes=5, ignored=0.3)
    result = matrix_of(pairs, 5).compute()
    as_published = published(pairs, 5, ignore_bg=False)
    assert result["per_class"][0]["pixels"] == sum((mask == 0).sum() for _, mask in pairs)
    as_class_0 = matrix_of([(p, np.where(m == 255, 0, m).astype(np.uint8)) for p, m in pairs], 5).compute()
    assert as_class_0["per_class"][0]["iou"] == pytest.approx(as_published["iou"][0], abs=1e-12)
    assert abs(result["per_class"][0]["iou"] - as_published["iou"][0]) > 0.03


def test_all_pixels_ignored_gives_none_and_json():
    matrix = matrix_of([(np.zeros((3, 4), np.int64), np.full((3, 4), 255, np.uint8))], 3)
    result = matrix.compute()
    assert result["oa"] is result["miou"] is result["fwiou"] is None
    for reading in (False, True, "official"):
        assert "NaN" not in json.dumps(matrix_of(images(1, 4, absent=(2,)), 4).compute(reading), allow_nan=False)


def test_merged_parts_are_the_whole():
    pairs = images(seed=7, classes=6, n=7)
    parts = [matrix_of(pairs[i::3], 6) for i in range(3)]
    before = parts[0].counts.copy()
    merged = parts[0].merge(parts[1:])
    assert (merged.counts == matrix_of(pairs, 6).counts).all()
    assert (parts[0].counts == before).all()
    with pytest.raises(ValueError, match="6 and 5 classes"):
        merged.merge([ConfusionMatrix(5)])


@pytest.mark.parametrize(
    ("prediction", "mask", "message"),
    [
        (np.zeros((3, 4), int), np.zeros((4, 3), np.uint8), "one size"),
        (np.zeros((1, 3, 4), int), np.zeros((1, 3, 4), np.uint8), "one size"),
        (np.zeros((3, 4)), np.zeros((3, 4), np.uint8), "must be integer"),
        (np.full((3, 4), 5), np.zeros((3, 4), np.uint8), "prediction holds class 5, expected 0..4"),
        (np.full((3, 4), -1), np.zeros((3, 4), np.uint8), "prediction holds class -1"),
        (np.zeros((3, 4), int), np.full((3, 4), 254, np.uint8), "mask holds class 254"),
    ],
)
def test_bad_input_raises_and_counts_nothing(prediction, mask, message):
    matrix = ConfusionMatrix(5)
    with pytest.raises(ValueError, match=message):
        matrix.update(prediction, mask)
    assert matrix.counts.sum() == 0


def test_readings_and_sizes_that_do_not_exist_raise():
    with pytest.raises(ValueError, match="at least 2"):
        ConfusionMatrix(1)
    with pytest.raises(ValueError, match="expected True, False or 'official'"):
        ConfusionMatrix(3).compute("standard")
    with pytest.raises(ValueError, match="background is class 3"):
        ConfusionMatrix(3).compute(True, background=3)


def test_a_prediction_under_an_ignored_pixel_may_be_anything():
    matrix = ConfusionMatrix(3)
    matrix.update(np.array([[7, 1]]), np.array([[255, 2]], np.uint8))
    assert matrix.counts[2, 1] == matrix.counts.sum() == 1


def test_confusion_figure_has_the_truth_in_rows():
    counts = np.array([[6, 2, 0], [0, 0, 0], [1, 0, 3]])
    figure = _confusion_figure(counts, ["water", "road", "paddy"])
    axis = figure.axes[0]
    assert (axis.get_ylabel(), axis.get_xlabel()) == ("truth", "predicted")
    for labels in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["water", "road", "paddy"]
    shown = np.ma.filled(axis.images[0].get_array().astype(float), math.nan)
    expected = np.array([[0.75, 0.25, 0], [math.nan] * 3, [0.25, 0, 0.75]])
    assert np.array_equal(shown, expected, equal_nan=True)
    texts = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axis.texts}
    assert texts[0, 1] == "0.25" and texts[2, 0] == "0.25" and (1, 1) not in texts and len(texts) == 6
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first row on top
    with pytest.raises(ValueError, match="2 names for 3 classes"):
        _confusion_figure(counts, ["water", "road"])


@pytest.mark.parametrize(("classes", "printed"), [(20, 400), (21, 0)])
def test_values_are_printed_for_up_to_20_classes_and_the_picture_is_written(classes, printed, tmp_path):
    matrix = matrix_of(images(seed=8, classes=classes, n=6, ignored=0), classes)
    names = [f"class {k}" for k in range(classes)]
    assert len(_confusion_figure(matrix.counts, names).axes[0].texts) == printed
    plot_confusion(matrix, names, tmp_path / "confusion.png")
    with Image.open(tmp_path / "confusion.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 500
