"""F-measure, its curves and the ROC area against PySODMetrics and plain loops; the settings that are recipe keys."""

import warnings

import numpy as np
import pytest
from PIL import Image
from py_sod_metrics import Fmeasure
from test_saliency import predictions, truths

from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.metrics import AucMetric, BerMetric, FMeasureMetric, SemanticMetric, make_metric
from hf_sam_adapt.names import check_metrics
from hf_sam_adapt.reporting.cards.tables import class_table
from hf_sam_adapt.reporting.curves import save_threshold_curves


def compute(metric, pairs):
    for prediction, truth in pairs:
        metric.update(prediction, truth.astype(np.uint8))
    return metric.compute()


@pytest.mark.parametrize("beta2", [0.3, 1.0])
@pytest.mark.parametrize("truth_name", list(truths(np.random.default_rng(0))))
def test_equals_pysodmetrics(truth_name, beta2):
    rng = np.random.default_rng(7)
    pairs = [(prediction, truths(rng)[truth_name]) for prediction in predictions(rng, truths(rng)["blob"]).values()]
    pairs = [(np.resize(prediction, truth.shape), truth) for prediction, truth in pairs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated by its authors
        oracle = Fmeasure(beta=beta2)
    for prediction, truth in pairs:
        low, high = prediction.min(), prediction.max()
        oracle.step((prediction - low) / (high - low) if low < high else prediction, truth, normalize=False)
    expected = oracle.get_results()
    found = compute(FMeasureMetric(beta2), pairs)
    assert found["f_curve"] == pytest.approx(list(expected["fm"]["curve"]), abs=1e-9)
    assert found["f_measure_max"] == pytest.approx(expected["fm"]["curve"].max(), abs=1e-9)
    assert found["f_measure"] == pytest.approx(expected["fm"]["curve"].mean(), abs=1e-9)
    assert found["f_measure_adaptive"] == pytest.approx(expected["fm"]["adp"], abs=1e-9)
    assert found["precision_curve"] == pytest.approx(list(expected["pr"]["p"]), abs=1e-9)
    assert found["recall_curve"] == pytest.approx(list(expected["pr"]["r"]), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_auc_is_the_share_of_pairs_in_the_right_order(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((12, 15)) > 0.6
    prediction = np.round((0.4 * truth + 0.6 * rng.random(truth.shape)) * 255) / 255
    prediction[0, 0], prediction[0, 1] = 0, 1  # whole range, so nothing is stretched
    levels = (prediction * 255).astype(np.uint8).astype(int)
    inside, outside = levels[truth][:, None], levels[~truth][None]
    expected = (inside > outside).mean() + (inside == outside).mean() / 2
    empty = np.zeros_like(truth)
    assert compute(AucMetric(), [(prediction, truth), (prediction, empty)])["auc"] == pytest.approx(expected, abs=1e-9)
    assert compute(AucMetric(), [(prediction, empty), (prediction, ~empty)])["auc"] is None


def test_ignored_pixels_count_nowhere():
    rng = np.random.default_rng(1)
    prediction, mask = rng.random((20, 20)), (rng.random((20, 20)) > 0.5).astype(np.uint8)
    mask[rng.random(mask.shape) < 0.3] = 255
    other = np.where(mask == 255, rng.random(mask.shape), prediction)
    for name in ("f_measure", "auc"):
        scores = []
        for one in (prediction, other):
            metric = make_metric(name)
            metric.update(one, mask)
            scores.append(metric.compute())
        assert scores[0] == scores[1]


@pytest.mark.parametrize("threshold", [0.1, 125 / 255, 0.5, 0.9])
def test_ber_of_probabilities_is_that_of_their_mask(threshold):
    rng = np.random.default_rng(2)
    prediction, truth = rng.random((20, 30)), rng.random((20, 30)) > 0.5
    expected = compute(BerMetric(), [(prediction > threshold, truth)])
    assert compute(make_metric("ber", ber_threshold=threshold), [(prediction, truth)]) == expected


def test_settings_reach_the_metrics_that_have_them():
    assert make_metric("weighted_f").beta2 == 1 and make_metric("f_measure").beta2 == 0.3
    for name in ("weighted_f", "f_measure"):
        assert make_metric(name, beta2=0.5, ber_threshold=0.2).beta2 == 0.5
    assert make_metric("ber").threshold is None
    assert not make_metric("ber").takes_probabilities and make_metric("ber", ber_threshold=0.4).takes_probabilities


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"beta2": 0.3}, "^beta2: .* f_measure and weighted_f"),
        ({"beta2": 0.3, "metrics": ["mae", "ber"]}, "^beta2: "),
        ({"beta2": 0.0, "metrics": ["f_measure"]}, "^beta2: 0.0 is out of range"),
        ({"ber_threshold": 0.3, "metrics": ["f_measure"]}, "^ber_threshold: of ber"),
        ({"ber_threshold": 1.5, "metrics": ["ber"]}, "^ber_threshold: 1.5 is out of range"),
    ],
)
def test_settings_that_nothing_uses_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        Recipe(**keys)
    with pytest.raises(UserError, match=message):
        check_metrics(keys.pop("metrics", []), ["none"], None, **keys)


def test_classes_without_the_background():
    truth, prediction = np.array([[0, 0, 0, 1, 1, 2]]), np.array([[0, 0, 1, 1, 0, 2]])
    scores = {}
    for choice in (False, True, "official"):
        metric = SemanticMetric(3, choice)
        metric.update(prediction, truth.astype(np.uint8))
        scores[choice] = metric.compute()
    assert scores[False]["miou"] == pytest.approx((2 / 4 + 1 / 3 + 1) / 3)
    assert scores[True]["miou"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["official"]["miou"] == pytest.approx(1)
    assert set(scores[True]["per_class"]) == {1, 2}


def test_curves_are_drawn_where_they_were_measured(tmp_path):
    scores = {"adapted": {"iou": 0.5}, "zero_shot": None, "constant": {"iou": 0.4}}
    save_threshold_curves(tmp_path / "none.png", scores)
    assert not (tmp_path / "none.png").exists()
    rng = np.random.default_rng(3)
    truth = rng.random((30, 30)) > 0.5
    for name, noise in (("adapted", 0.4), ("zero_shot", 0.9)):
        prediction = np.clip((1 - noise) * truth + noise * rng.random(truth.shape), 0, 1)
        scores[name] = compute(FMeasureMetric(), [(prediction, truth)])
    save_threshold_curves(tmp_path / "both.png", scores)
    assert Image.open(tmp_path / "both.png").size == (800, 340)


def test_a_class_table_without_the_background():
    one = {"iou": 0.5, "precision": 0.6, "recall": 0.7, "pixels": 9}
    text = class_table({"adapted": {"per_class": {"1": one, "2": one}}, "constant": None}, ["ground", "soil", "crop"])
    assert "soil" in text and "crop" in text and "ground" not in text
