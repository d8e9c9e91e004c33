"""The simulated user against a plain loop over single objects, and the arithmetic of what is reported."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sams import perturb, random_sam
from scipy import ndimage
from test_evaluate import make_split

from hf_sam_adapt.evaluation.clicks import click_scores, clicks_needed, evaluate_clicks, next_click
from hf_sam_adapt.inference.loading import build_model
from hf_sam_adapt.prompts import components
from hf_sam_adapt.sam.processing import SamAdaptProcessor


@pytest.fixture(scope="module")
def processor():
    return SamAdaptProcessor(64, patch_size=8)


def reference_click(prediction, target, known):
    """By brute force over all regions and all pixels; the set of equally good answers."""
    best, answers = 0, set()
    for label, wrong in ((1, target & ~prediction & known), (0, prediction & ~target & known)):
        numbered, count = ndimage.label(wrong, structure=np.ones((3, 3)))
        for number in range(1, count + 1):
            region = numbered == number
            if region.sum() < best:
                continue
            if region.sum() > best:
                best, answers = region.sum(), set()
            outside = np.argwhere(~np.pad(region, 1)) - 1
            pixels = np.argwhere(region)
            distance = ((pixels[:, None] - outside[None]) ** 2).sum(-1).min(1)
            answers |= {(x, y, label) for y, x in pixels[distance == distance.max()].tolist()}
    return answers


def test_a_click_is_the_middle_of_the_largest_error():
    rng, labels = np.random.default_rng(0), set()
    for _ in range(60):
        size = rng.integers(8, 30, 2)
        prediction, target = (ndimage.gaussian_filter(rng.random(size), 1.2) > 0.5 for _ in range(2))
        known = rng.random(size) < 0.9
        click = next_click(prediction, target, known)
        assert click in reference_click(prediction, target, known)
        labels.add(click[2])
    assert labels == {0, 1}
    assert next_click(target, target, known) is None
    assert next_click(~target, target, np.zeros_like(known)) is None


def test_numbers_of_clicks():
    traces = [[0.5, 0.85, 0.7, 0.95], [0.9], [0.1] * 6, [0.2, 0.3, 0.4, 0.5, 0.6, 0.8]]
    assert [clicks_needed(trace, 0.8, 6) for trace in traces] == [2, 1, None, 6]
    assert [clicks_needed(trace, 0.8, 5) for trace in traces] == [2, 1, None, None]
    scores = click_scores(traces, 6)
    assert scores["noc"] == {"0.8": pytest.approx((2 + 1 + 6 + 6) / 4), "0.9": pytest.approx((4 + 1 + 6 + 6) / 4)}
    assert scores["failures"] == {"0.8": 0.25, "0.9": 0.5}
    assert scores["iou"]["1"] == pytest.approx((0.5 + 0.9 + 0.1 + 0.2) / 4)
    assert scores["iou"]["5"] == pytest.approx((0.95 + 0.9 + 0.1 + 0.6) / 4)
    assert set(click_scores(traces, 4)["iou"]) == {"1", "3"}


def plain_trace(model, processor, sample, target, clicks):
    """One object alone, with transformers' SamModel and no batch."""
    inputs = processor([sample.image])
    height, width = inputs["reshaped_input_sizes"][0].tolist()
    size, known = sample.mask.shape, sample.mask != 255
    scale = torch.tensor([width / size[1], height / size[0]])
    points, labels, low, mask, trace = [], [], None, np.zeros_like(target), []
    for _ in range(clicks):
        click = next_click(mask, target, known)
        if click is None:
            break
        points.append(click[:2])
        labels.append(click[2])
        low = model(
            pixel_values=inputs["pixel_values"],
            input_points=(torch.tensor(points) * scale)[None, None].float(),
            input_labels=torch.tensor(labels)[None, None],
            input_masks=low,
            multimask_output=False,
        ).pred_masks[:, 0]
        full = F.interpolate(low, (64, 64), mode="bilinear")[..., :height, :width]
        mask = (F.interpolate(full, size, mode="bilinear")[0, 0] > 0).numpy()
        trace.append((mask & target).sum() / ((mask | target) & known).sum())
    return trace


def test_equal_to_a_loop_over_single_objects(processor):
    split, model = make_split(4), perturb(build_model("decoder", {}, random_sam()), std=0.05)
    found = evaluate_clicks(model, processor, split, 6, batch_size=3, max_objects=5, progress=False)
    model.eval()
    expected = {"zero_shot": [], "adapted": []}
    with torch.no_grad():
        for sample in split:
            for target in components(sample.mask, max_objects=5)[0]:
                expected["adapted"].append(plain_trace(model, processor, sample, target, 6))
                with model.disable_adapter():
                    expected["zero_shot"].append(plain_trace(model, processor, sample, target, 6))
    assert found["objects"] == len(expected["adapted"]) > 6 and found["cap"] == 6
    for name, traces in expected.items():
        reference = click_scores(traces, 6)
        for key in ("iou", "noc", "failures"):
            for mark, value in reference[key].items():
                assert found[name][key][mark] == pytest.approx(value, abs=1e-5), (name, key, mark)
    assert found["zero_shot"] != found["adapted"]


def test_images_are_encoded_once_and_a_batch_changes_nothing(processor):
    split, model = make_split(5, seed=2), random_sam(1)
    calls = []
    handle = model.vision_encoder.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    together = evaluate_clicks(model, processor, split, 4, batch_size=5, adapted=False, progress=False)
    handle.remove()
    assert calls == [5] and together["adapted"] is None
    alone = evaluate_clicks(model, processor, split, 4, batch_size=1, adapted=False, progress=False)
    assert together["zero_shot"]["noc"] == alone["zero_shot"]["noc"]
    assert together["zero_shot"]["iou"] == pytest.approx(alone["zero_shot"]["iou"], abs=1e-6)


def test_without_objects_there_are_no_scores(processor):
    split = make_split(2)
    for sample in split:
        sample.mask[:] = 0
    found = evaluate_clicks(random_sam(), processor, split, 3, adapted=False, progress=False)
    assert found == {"cap": 3, "objects": 0, "zero_shot": None, "adapted": None}
