"""Prompts drawn for training: where they may lie, how often each kind comes, and what they are drawn from."""

import json

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.prompts import components, instance_masks, tight_box, training_prompt
from hf_sam_adapt.prompts.training import any_point, jittered
from hf_sam_adapt.sam.processing import SamAdaptProcessor
from hf_sam_adapt.training.batches import TrainingSamples


def blobs(seed: int, size=(70, 90)) -> np.ndarray:
    """Two to four rectangles apart from each other, and a stripe of ignored pixels."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for number in range(rng.integers(2, 5)):
        top, left = rng.integers(0, 50), 22 * number + rng.integers(0, 4)
        mask[top : top + rng.integers(4, 18), left : left + rng.integers(4, 17)] = 1
    mask[-1] = 255
    return mask


def test_boxes_are_jittered_by_their_size_within_sams_limit():
    rng, size = np.random.default_rng(0), (300, 400)
    limit = 20 / 1024 * 400
    for box in (np.array([100, 100, 139, 179], np.float32), np.array([60, 50, 339, 249], np.float32)):
        moved = np.stack([jittered(box, size, rng, 0.1) for _ in range(3000)])
        assert moved.dtype == np.float32 and np.abs(moved - box).max() <= limit + 1e-4
        lengths = np.tile(box[2:] - box[:2] + 1, 2)
        free = 0.1 * lengths * 3.5 < limit  # never reached
        deviation = (moved - box).std(axis=0)
        assert np.allclose(deviation[free], 0.1 * lengths[free], rtol=0.08)
        assert np.abs((moved - box).mean(axis=0)).max() < 0.05 * limit
    assert np.array_equal(jittered(box, size, rng, 0.0), box)


def test_jittered_boxes_stay_boxes_inside_the_image():
    rng = np.random.default_rng(1)
    for box in ([0, 0, 3, 3], [0, 0, 99, 49], [98, 48, 99, 49]):
        for _ in range(200):
            x1, y1, x2, y2 = jittered(np.array(box, np.float32), (50, 100), rng, 1.0)
            assert 0 <= x1 <= x2 <= 99 and 0 <= y1 <= y2 <= 49


def test_points_are_any_pixel_of_the_object():
    rng = np.random.default_rng(2)
    target = np.zeros((9, 11), bool)
    target[2, 3:9] = target[5:8, 1] = True
    counts = np.zeros(target.shape, int)
    for _ in range(4500):
        x, y = any_point(target, rng).astype(int)
        counts[y, x] += 1
    assert counts[~target].sum() == 0
    assert (np.abs(counts[target] - 500) < 110).all()  # five standard deviations


@pytest.mark.parametrize("kind", ["box", "point", "mask"])
def test_prompts_belong_to_their_targets(kind):
    for seed in range(10):
        mask = blobs(seed)
        rng = np.random.default_rng(seed)
        prompt = training_prompt(mask, kind, rng, rounds=3)
        expected, _ = components(mask)
        assert np.array_equal(prompt.targets, expected) and prompt.kind == kind
        assert prompt.draws.shape == (len(prompt), 3) and prompt.draws.dtype == np.float32
        assert (prompt.draws >= 0).all() and (prompt.draws < 1).all()
        for number, target in enumerate(prompt.targets):
            if kind == "box":
                assert np.abs(prompt.boxes[number] - tight_box(target)).max() <= 20 / 1024 * 90 + 1e-4
            elif kind == "point":
                x, y = prompt.points[number, 0].astype(int)
                assert target[y, x] and prompt.point_labels[number] == 1
            else:
                degraded = prompt.masks[number]
                assert not np.array_equal(degraded, target) and (degraded & target).any()
    assert training_prompt(mask, kind, rng).draws is None


def test_at_most_so_many_objects():
    mask = np.zeros((60, 60), np.uint8)
    for place in range(12):
        mask[15 * (place // 4) :, 15 * (place % 4) :][:9, :9] = 1
    drawn = [training_prompt(mask, "point", np.random.default_rng(s), max_objects=5) for s in range(6)]
    assert all(len(prompt) == 5 for prompt in drawn)
    assert len({tuple(map(tuple, prompt.targets.reshape(5, -1).argmax(1)[:, None])) for prompt in drawn}) > 3


def test_instances_that_touch_are_told_apart():
    instances = np.zeros((40, 40), np.uint8)
    instances[5:15, 5:15], instances[5:15, 15:25], instances[30:35, 30:35], instances[38, 0] = 1, 2, 9, 4
    mask = (instances > 0).astype(np.uint8)
    mask[30:33, 30:35] = 255
    targets, labels = instance_masks(instances, mask)
    assert labels.tolist() == [1, 1, 1, 1] and targets.sum(axis=(1, 2)).tolist() == [100, 100, 1, 10]
    assert np.array_equal(targets[0], instances == 1) and not targets[:, mask == 255].any()
    assert len(components(mask)[0]) == 3
    prompt = training_prompt(mask, "box", np.random.default_rng(0), jitter=0, instances=instances)
    assert prompt.boxes.tolist()[:2] == [[5, 5, 14, 14], [15, 5, 24, 14]]
    assert len(instance_masks(np.full((9, 9), 255, np.uint8), np.ones((9, 9), np.uint8))[0]) == 0


def test_objects_of_a_coco_file_follow_the_augmentation(tmp_path):
    rng = np.random.default_rng(3)
    # Two squares side by side: one component, two objects. The image says which is which.
    image = np.full((60, 80, 3), 20, np.uint8)
    image[20:40, 20:40, 0], image[20:40, 40:60, 0] = 120, 220
    Image.fromarray(image).save(tmp_path / "a.png")
    squares = [[20, 20, 40, 20, 40, 40, 20, 40], [40, 20, 60, 20, 60, 40, 40, 40]]
    annotations = [
        {"id": i, "image_id": 1, "category_id": 1, "segmentation": [square], "iscrowd": 0}
        for i, square in enumerate(squares, 1)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 60, "width": 80}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "square"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    split = load_segmentation_dataset(str(tmp_path), mask_values="binary").train
    assert np.bincount(split.instances(0).ravel()).tolist() == [60 * 80 - 800, 400, 400]
    samples = TrainingSamples(
        split, SamAdaptProcessor(64, patch_size=8), ["box"], ["flip", "scale", "crop"], seed=int(rng.integers(99))
    )
    seen = set()
    for epoch in range(12):
        sample = samples[epoch, 0]
        red = sample["pixel_values"][0, 0].numpy()
        for target in sample["prompts"][0].targets.numpy():
            inside = red[target == 1]
            if len(inside) < 100:
                continue  # a crop left little but its border, whose colours are mixed
            assert (np.abs(inside - np.median(inside)) < 0.05).mean() > 0.6
            seen.add(round(float(np.median(inside)), 1))
    assert len(seen) == 2


def test_kinds_come_as_often_as_their_weights(disc_like_split):
    samples = TrainingSamples(
        disc_like_split, SamAdaptProcessor(64, patch_size=8), ["none", "box", "mask"], [], 0, weights={"box": 4}
    )
    kinds = [samples[epoch, 0]["prompts"][0].kind for epoch in range(600)]
    assert abs(kinds.count("box") - 400) < 60 and abs(kinds.count("none") - 100) < 46
    assert samples.shares == [1 / 6, 4 / 6, 1 / 6]


@pytest.fixture
def disc_like_split(make_dataset):
    return load_segmentation_dataset(str(make_dataset(size=(24, 32)))).train


def test_recipe_keys(tmp_path):
    recipe = parse_recipe(["--prompts", "none", "box", "--prompt_weights.box", "3", "--correction_rounds", "2"])
    assert recipe.prompt_weights == {"box": 3.0} and recipe.correction_rounds == 2 and recipe.box_jitter == 0.1
    path = tmp_path / "recipe.yaml"
    path.write_text("prompts: [none, box]\nprompt_weights: {none: 1, box: 2.5}\n")
    assert parse_recipe(["--config", str(path)]).prompt_weights == {"none": 1.0, "box": 2.5}
    for flags, text in (
        (["--prompts", "box", "--prompt_weights.point", "2"], "'point' is not among the prompts box"),
        (["--prompts", "box", "--prompt_weights.box", "0"], "not above 0"),
        (["--correction_rounds", "1"], "add one of them to prompts"),
        (["--prompts", "box", "--box_jitter", "-1"], "box_jitter: -1.0 is below 0"),
    ):
        with pytest.raises(UserError, match=text):
            parse_recipe(flags)


@pytest.mark.parametrize("points", [1, 2, 5, 10])
def test_several_points_on_each_object(points):
    mask = np.zeros((40, 50), np.uint8)
    mask[2:20, 3:20] = mask[25:38, 30:48] = 1
    prompt = training_prompt(mask, "point", np.random.default_rng(4), points=points)
    assert prompt.points.shape == (2, points, 2) and prompt.point_labels.shape == (2, points)
    assert (prompt.point_labels == 1).all()
    for target, places in zip(prompt.targets, prompt.points.astype(int)):
        assert target[places[:, 1], places[:, 0]].all()
        assert points == 1 or len({tuple(place) for place in places}) > 1
    drawn = training_prompt(mask, "point", np.random.default_rng(4))
    assert points > 1 or (drawn.points == prompt.points).all()
    none = training_prompt(np.zeros_like(mask), "point", np.random.default_rng(4), points=points)
    assert none.points.shape == (0, points, 2) and len(none) == 0
