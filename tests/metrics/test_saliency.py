"""S-measure, E-measure, weighted F, MAE and BER against PySODMetrics and against plain loops."""

import warnings

import numpy as np
import pytest
from py_sod_metrics import MAE, Emeasure, Smeasure, WeightedFmeasure

from hf_sam_adapt.metrics import BerMetric, EMeasureMetric, MaeMetric, SMeasureMetric, WeightedFMetric


def blob(rng, shape):
    from scipy import ndimage

    return ndimage.gaussian_filter(rng.normal(size=shape), 2) > 0


def truths(rng):
    shape = tuple(int(side) for side in rng.integers(9, 40, 2))
    one = np.zeros(shape, bool)
    one[shape[0] // 2, shape[1] // 3] = True
    corner = np.zeros(shape, bool)
    corner[-1, -1] = True
    return {
        "blob": blob(rng, shape),
        "noise": rng.random(shape) > 0.7,
        "empty": np.zeros(shape, bool),
        "full": np.ones(shape, bool),
        "one pixel": one,
        "corner": corner,
    }


def predictions(rng, truth):
    noisy = np.clip(0.6 * truth + 0.5 * rng.random(truth.shape), 0, 1)
    return {
        "random": rng.random(truth.shape),
        "near": noisy,
        "perfect": truth.astype(float),
        "wrong": 1.0 - truth,
        "constant": np.full(truth.shape, 0.3),
        "empty": np.zeros(truth.shape),
    }


def sod_scores(pairs, normalize, beta2=1.0):
    """PySODMetrics over (prediction, truth), fed with floats as they are."""
    metrics = Smeasure(), Emeasure(), WeightedFmeasure(beta=beta2), MAE()
    for prediction, truth in pairs:
        low, high = prediction.min(), prediction.max()
        if normalize and low < high:
            prediction = (prediction - low) / (high - low)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # means of empty quadrants
            for metric in metrics:
                metric.step(prediction, truth, normalize=False)
    s, e, f, mae = (metric.get_results() for metric in metrics)
    curve = e["em"]["curve"]
    return {
        "s_measure": s["sm"],
        "e_measure": curve.mean(),
        "e_measure_max": curve.max(),
        "e_measure_adaptive": e["em"]["adp"],
        "weighted_f": f["wfm"],
        "mae": mae["mae"],
    }


def our_scores(pairs, normalize=True, beta2=1.0):
    metrics = [SMeasureMetric(normalize), EMeasureMetric(normalize), WeightedFMetric(beta2, normalize)]
    metrics.append(MaeMetric(normalize))
    scores = {}
    for metric in metrics:
        for prediction, mask in pairs:
            metric.update(prediction, mask)
        scores |= metric.compute()
    return scores


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("truth_name", list(truths(np.random.default_rng(0))))
@pytest.mark.parametrize("normalize", [True, False])
def test_equals_pysodmetrics(truth_name, seed, normalize):
    rng = np.random.default_rng(seed)
    truth = truths(rng)[truth_name]
    for name, prediction in predictions(rng, truth).items():
        expected = sod_scores([(prediction, truth)], normalize)
        found = our_scores([(prediction, truth.astype(np.uint8))], normalize)
        assert np.isfinite(list(found.values())).all()
        if truth_name == "corner" and np.isnan(expected["s_measure"]):
            expected.pop("s_measure")  # three of its quadrants are empty, which the oracle averages to NaN
            found.pop("s_measure")
        assert found == pytest.approx(expected, abs=1e-9), name


def test_means_over_images_and_beta():
    rng = np.random.default_rng(5)
    pairs = [(rng.random(truth.shape), truth) for truth in truths(rng).values() if 1 < truth.sum()]
    ours = our_scores([(prediction, truth.astype(np.uint8)) for prediction, truth in pairs], beta2=0.3)
    assert ours == pytest.approx(sod_scores(pairs, True, beta2=0.3), abs=1e-9)
    assert ours["weighted_f"] != pytest.approx(our_scores(pairs)["weighted_f"], abs=1e-3)


def test_uint8_maps_as_the_published_pipeline_reads_them():
    rng = np.random.default_rng(6)
    truth = blob(rng, (30, 40))
    stored = rng.integers(0, 200, truth.shape).astype(np.uint8)
    oracle = Smeasure(), WeightedFmeasure(), MAE()
    for metric in oracle:
        metric.step(stored, truth.astype(np.uint8) * 255)
    s, f, mae = (metric.get_results() for metric in oracle)
    found = our_scores([(stored / 255, truth.astype(np.uint8))])
    wanted = {"s_measure": s["sm"], "weighted_f": f["wfm"], "mae": mae["mae"]}
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)


def plain_scores(prediction, mask):
    """S-measure and weighted F by loops over the pixels, ignored ones left out; no normalisation."""
    height, width = mask.shape
    pixels = [(r, c) for r in range(height) for c in range(width) if mask[r, c] != 255]
    truth = {p for p in pixels if mask[p]}
    error = {p: abs(prediction[p] - (p in truth)) for p in pixels}

    def similarity(values):
        values = np.array(values)
        return 2 * values.mean() / (values.mean() ** 2 + 1 + values.std(ddof=1))

    share = len(truth) / len(pixels)
    objects = share * similarity([prediction[p] for p in pixels if p in truth])
    objects += (1 - share) * similarity([1 - prediction[p] for p in pixels if p not in truth])
    row, column = (round(float(np.mean([p[axis] for p in truth]))) for axis in (0, 1))
    regions = 0
    for quadrant in ((r, c) for r in (True, False) for c in (True, False)):
        part = [p for p in pixels if (p[0] <= row, p[1] <= column) == quadrant]
        if part:
            x, y = np.array([prediction[p] for p in part]), np.array([float(p in truth) for p in part])
            joint = 4 * x.mean() * y.mean() * ((x - x.mean()) * (y - y.mean())).sum() / max(len(x) - 1, 1)
            total = (x.mean() ** 2 + y.mean() ** 2) * (x.var() + y.var()) * len(x) / max(len(x) - 1, 1)
            regions += len(part) / len(pixels) * (joint / total if joint else float(total == 0))

    near = {p: min(((p[0] - q[0]) ** 2 + (p[1] - q[1]) ** 2, q) for q in truth) for p in pixels}
    kernel = {(a, b): np.exp(-(a * a + b * b) / 50) for a in range(-3, 4) for b in range(-3, 4)}
    shared = {p: error[p] if p in truth else error[near[p][1]] for p in pixels}
    smooth = {
        p: sum(kernel[a, b] * shared.get((p[0] + a, p[1] + b), 0) for a, b in kernel) / sum(kernel.values())
        for p in truth
    }
    inside = [min(error[p], smooth[p]) for p in truth]
    outside = sum(error[p] * (2 - 0.5 ** (near[p][0] ** 0.5 / 5)) for p in pixels if p not in truth)
    hits = len(truth) - sum(inside)
    recall, precision = 1 - np.mean(inside), hits / (hits + outside)
    return {
        "s_measure": 0.5 * (objects + regions),
        "weighted_f": 2 * recall * precision / (recall + precision),
        "mae": np.mean(list(error.values())),
    }


@pytest.mark.parametrize("seed", range(3))
def test_ignored_pixels_are_left_out(seed):
    rng = np.random.default_rng(seed)
    mask = np.zeros((11, 13), np.uint8)
    # One true pixel in reach of the background alone, so that no two are equally near.
    mask[4, 6], mask[5, 9] = 1, 1
    mask[4:8, 2:5] = 1
    mask[rng.random(mask.shape) < 0.25] = 255
    mask[5, 3] = 1
    prediction = rng.random(mask.shape)
    constant_on_truth = np.where(mask == 1, 0.7, prediction)  # whichever of the nearest is taken
    found = our_scores([(constant_on_truth, mask)], normalize=False)
    expected = plain_scores(constant_on_truth, mask)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    # The E-measure knows counts only, so the known pixels in one row are the same image to it.
    known = mask != 255
    row = sod_scores([(prediction[known][None], mask[known][None] == 1)], True)
    assert our_scores([(prediction, mask)])["e_measure"] == pytest.approx(row["e_measure"], abs=1e-9)
    other = np.where(known, prediction, rng.random(mask.shape))
    assert our_scores([(other, mask)]) == our_scores([(prediction, mask)])


def plain_ber(prediction, mask):
    wrong, pixels = [0, 0], [0, 0]
    for predicted, true in zip(prediction.ravel(), mask.ravel()):
        if true != 255:
            side = 0 if true else 1
            pixels[side] += 1
            wrong[side] += bool(predicted) != bool(true)
    return wrong, pixels


def mean_rate(wrong, pixels):
    rates = [error / count for error, count in zip(wrong, pixels) if count]
    return sum(rates) / len(rates)


@pytest.mark.parametrize("seed", range(4))
def test_ber_per_image_and_pooled(seed):
    rng = np.random.default_rng(seed)
    metric, wrong, pixels, per_image = BerMetric(), np.zeros(2), np.zeros(2), []
    for truth in truths(rng).values():
        mask = np.where(rng.random(truth.shape) < 0.1, 255, truth).astype(np.uint8)
        prediction = rng.random(truth.shape) > 0.4
        metric.update(prediction, mask)
        own = plain_ber(prediction, mask)
        per_image.append(mean_rate(*own))
        wrong, pixels = wrong + own[0], pixels + own[1]
    expected = {
        "ber": np.mean(per_image),
        "ber_pooled": mean_rate(wrong, pixels),
        "foreground_error": wrong[0] / pixels[0],
        "background_error": wrong[1] / pixels[1],
    }
    assert metric.compute() == pytest.approx(expected, abs=1e-12)


def test_ber_of_empty_masks_is_the_error_of_the_background():
    metric = BerMetric()
    prediction = np.zeros((4, 5), bool)
    prediction[0] = True
    metric.update(prediction, np.zeros((4, 5), np.uint8))
    assert metric.compute() == {"ber": 0.25, "ber_pooled": 0.25, "foreground_error": None, "background_error": 0.25}


def test_the_definitions_for_empty_truths():
    empty, map_ = np.zeros((4, 5), np.uint8), np.full((4, 5), 0.25)
    map_[0, 0] = 0.45
    scores = our_scores([(map_, empty)], normalize=False)
    assert scores["s_measure"] == pytest.approx(1 - map_.mean()) and scores["weighted_f"] == 0
    assert scores["e_measure_adaptive"] == pytest.approx(20 / 19)  # nothing reaches twice the mean


@pytest.mark.parametrize("metric", [SMeasureMetric, EMeasureMetric, WeightedFMetric, MaeMetric])
@pytest.mark.parametrize("wrong", [1.5, -0.1, np.nan])
def test_what_is_no_probability_is_refused(metric, wrong):
    prediction = np.full((3, 4), 0.5)
    prediction[1, 1] = wrong
    with pytest.raises(ValueError, match="give probabilities"):
        metric().update(prediction, np.ones((3, 4), np.uint8))


@pytest.mark.parametrize("wrong", [np.array([[2.0, 0.5]]), np.array([[np.nan, 0.5]]), np.array([[255, 0]], np.uint8)])
def test_a_threshold_is_for_probabilities(wrong):
    metric, mask = BerMetric(threshold=0.5), np.array([[1, 0]], np.uint8)
    with pytest.raises(ValueError, match="give probabilities"):
        metric.update(wrong, mask)
    metric.update(np.array([[0.7, 9.0]]), np.array([[1, 255]], np.uint8))
    assert metric.compute()["ber"] == 0
