"""Instances: run lengths and average precision against pycocotools, suppression and grids against plain loops."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sams import perturb, random_sam

from hf_sam_adapt.cli.predict import predict
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.areas import decode_runs
from hf_sam_adapt.data.dataset import Sample
from hf_sam_adapt.data.images import IGNORE
from hf_sam_adapt.data.run_length_encoding import encode_runs
from hf_sam_adapt.data.tiles import Tiles
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.evaluation import instances as measuring
from hf_sam_adapt.evaluation.instances import average_precision, evaluate_instances
from hf_sam_adapt.inference import instances as module
from hf_sam_adapt.inference.forward import segment_scored
from hf_sam_adapt.inference.instances import (
    Instance,
    coco_content,
    component_instances,
    find_instances,
    mask_nms,
    point_grid,
    stability,
)
from hf_sam_adapt.inference.loading import build_model, load_base, save_adapter
from hf_sam_adapt.inference.variants import Variant, embeddings_of, inference, model_inputs
from hf_sam_adapt.sam.processing import SamAdaptProcessor


def random_masks(count: int, seed: int, size=(24, 30)) -> np.ndarray:
    """Rectangles that overlap more or less: bool (count, H, W)."""
    rng, masks = np.random.default_rng(seed), np.zeros((count, *size), bool)
    for mask in masks:
        top, left = rng.integers(0, 12, 2)
        mask[top : top + rng.integers(4, 12), left : left + rng.integers(4, 15)] = True
    return masks


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_run_lengths(share):
    coco_mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(int(100 * share))
    for _ in range(20):
        mask = rng.random(rng.integers(1, 70, 2)) < share
        mask = np.kron(mask, np.ones(rng.integers(1, 5, 2), bool))
        runs = encode_runs(mask)
        assert np.array_equal(decode_runs(runs, *mask.shape, "mask"), mask)
        expected = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert runs == {"size": expected["size"], "counts": expected["counts"].decode()}
    json.dumps(runs)


def test_suppression_by_the_iou_of_masks():
    for seed in range(20):
        masks = random_masks(25, seed)
        scores = np.random.default_rng(seed).random(25)
        expected: list[int] = []
        for place in np.argsort(-scores):
            overlaps = [(masks[place] & masks[o]).sum() / (masks[place] | masks[o]).sum() for o in expected]
            if all(one <= 0.401 for one in overlaps):
                expected.append(int(place))
        assert mask_nms(torch.tensor(masks), torch.tensor(scores), 0.401).tolist() == expected
        assert 1 < len(expected) < 25
    assert mask_nms(torch.zeros(0, 4, 4, dtype=torch.bool), torch.zeros(0)).tolist() == []


def test_stability_is_the_iou_of_two_thresholds():
    logits = torch.randn(6, 9, 9, generator=torch.Generator().manual_seed(0)) * 2
    logits[5] = -9.0
    for mask, value in zip(logits[:5], stability(logits, 1.0)):
        inner, outer = mask > 1, mask > -1
        assert value.item() == pytest.approx(((inner & outer).sum() / (inner | outer).sum()).item())
    assert stability(logits, 1.0)[5] == 0


def test_grid_points_are_the_middles_of_cells():
    points = point_grid((30, 60), 3).points[:, 0]
    # Pixel k reaches from k - 0.5 to k + 0.5.
    assert points.tolist() == [[x - 0.5, y - 0.5] for y in (5, 15, 25) for x in (10, 30, 50)]


def test_components_of_a_promptless_mask():
    logits = torch.full((50, 60), -4.0)
    logits[5:15, 5:15], logits[30:40, 20:50], logits[45, 1] = 1.0, 3.0, 9.0  # the last is below 0.05 %
    found = component_instances(logits)
    assert [one.mask.sum() for one in found] == [300, 100]
    assert [one.score for one in found] == pytest.approx(torch.tensor([3.0, 1.0]).sigmoid().tolist(), abs=1e-6)
    assert found[0].box == [20, 30, 30, 10] and found[1].box == [5, 5, 10, 10]


def sample_of(seed: int, size):
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    mask[5:20, 6:22] = 1
    return type("Sample", (), {"image": rng.integers(0, 255, (*size, 3)).astype(np.uint8), "mask": mask})()


@pytest.mark.parametrize("has_estimate", [False, True])
def test_a_grid_against_single_points(has_estimate, monkeypatch):
    monkeypatch.setattr(module, "MIN_IOU_ESTIMATE", 0.2)
    monkeypatch.setattr(module, "OFFSET", 0.02)
    monkeypatch.setattr(module, "MIN_STABILITY", 0.2)
    monkeypatch.setattr(module, "POINTS_AT_ONCE", 7)
    model, processor = random_sam(2), SamAdaptProcessor(64, patch_size=8)
    samples = [sample_of(0, (40, 70)), sample_of(1, (64, 50))]
    with inference([model]):
        inputs = model_inputs(processor, samples)
        embeddings = embeddings_of(model, inputs)
        how = {"has_estimate": has_estimate, "points_per_side": 5}
        found = find_instances(model, processor, inputs, embeddings, "grid", **how)
        for number, sample in enumerate(samples):
            size, inside = sample.mask.shape, inputs["reshaped_input_sizes"][number].tolist()
            prompt = processor.transform_prompts([point_grid(size, 5)], [size])[0]
            kept = []
            for place in range(25):
                one = embeddings[number : number + 1]
                ((logits, score),) = segment_scored(model, None, [prompt.select([place])], image_embeddings=one)
                height, width = ((side + 1) // 2 for side in inside)
                window = logits[:, :height, :width]
                stable = stability(window, 0.02).item()
                x, y = (prompt.points[place, 0] // 2).long().clamp(min=0).tolist()
                good = window[0, y, x] > 0 and stable >= 0.2 and (window > 0).sum() >= 0.0005 * height * width
                if good and (not has_estimate or score.item() >= 0.2):
                    kept.append((min(1, max(0, score.item() if has_estimate else stable)), window[0] > 0, logits))
            order = mask_nms(torch.stack([mask for _, mask, _ in kept]), torch.tensor([score for score, *_ in kept]))
            assert 0 < len(order) <= len(kept) and len(found[number]) == len(order)
            for instance, place in zip(found[number], order.tolist()):
                full = processor.post_process_masks([kept[place][2]], [size], [inside])[0][0] > 0
                assert instance.score == pytest.approx(kept[place][0], abs=1e-5)
                assert np.array_equal(instance.mask, full.numpy())


def test_a_coco_file_that_pycocotools_reads(tmp_path):
    coco_module = pytest.importorskip("pycocotools.coco")
    masks = random_masks(5, 3)
    found = [[Instance(mask, 0.5 + 0.1 * i) for i, mask in enumerate(masks[:3])], [], [Instance(masks[4], 0.25)]]
    content = coco_content(["a.png", "b.png", "c.png"], found, [masks.shape[1:]] * 3)
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    coco = coco_module.COCO(str(path))
    assert [image["file_name"] for image in coco.dataset["images"]] == ["a.png", "b.png", "c.png"]
    for annotation, mask in zip(coco.dataset["annotations"], [*masks[:3], masks[4]]):
        assert np.array_equal(coco.annToMask(annotation), mask) and annotation["area"] == mask.sum()
        x, y, width, height = annotation["bbox"]
        assert (
            mask[y : y + height, x : x + width].any(0).all()
            and mask[y : y + height, x : x + width].sum() == mask.sum()
        )
    assert [annotation["image_id"] for annotation in coco.dataset["annotations"]] == [1, 1, 1, 3]


def described(index, masks, scores=None):
    scores = [1.0] * len(masks) if scores is None else scores
    content = coco_content([str(index)], [[Instance(m, s) for m, s in zip(masks, scores)]], [masks.shape[1:]])
    return content["images"][0] | {"id": index}, content["annotations"]


def test_average_precision():
    pytest.importorskip("pycocotools")
    masks = np.zeros((3, 20, 40), bool)
    masks[0, :10, :10] = masks[1, :10, 20:30] = masks[2, 12:, :] = True
    truth = [described(1, masks), described(2, masks[:1])]
    assert average_precision(truth, truth) == {"ap": 1.0, "ap50": 1.0, "ap75": 1.0}
    nothing = [described(1, masks[:0]), described(2, masks[:0])]
    assert average_precision(truth, nothing) == {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    # Of four true objects one is found exactly and one with IoU 0.6; a false one is surer than both.
    partly = np.zeros((3, 20, 40), bool)
    partly[0], partly[1, :6, 20:30], partly[2, :5, 35:] = masks[0], True, True
    scores = average_precision(truth, [described(1, partly, [0.8, 0.7, 0.9]), described(2, masks[:0])])
    # Precision 2/3 up to recall 1/2 where 0.6 is enough (51 of 101 levels), 1/2 up to recall 1/4 (26) where not.
    assert scores["ap50"] == pytest.approx(51 / 101 * 2 / 3) and scores["ap75"] == pytest.approx(26 / 101 / 2)
    assert scores["ap"] == pytest.approx((3 * scores["ap50"] + 7 * scores["ap75"]) / 10)


@pytest.mark.parametrize("tiles", [None, Tiles(40, 8)])
@pytest.mark.parametrize(("false_one", "expected"), [(False, 1.0), (True, 0.5)])
def test_what_lies_on_ignored_pixels_does_not_count(sam_folder, monkeypatch, tiles, false_one, expected):
    pytest.importorskip("pycocotools")
    mask = np.zeros((64, 64), np.uint8)
    mask[5:25, 5:25], mask[25:30, 5:25], mask[35:60, 35:60] = 1, IGNORE, IGNORE
    wider, false = np.zeros((2, 64, 64), bool)
    wider[5:30, 5:25] = True  # the object, with the ignored pixels beside it
    false[40:50, 5:15] = True
    own = [Instance(mask == IGNORE, 0.9), Instance(wider, 0.8)] + [Instance(false, 0.85)] * false_one
    base, processor = load_base(sam_folder)
    split = SimpleNamespace(instances=lambda index: None)
    sample = Sample(np.zeros((64, 64, 3), np.uint8), mask, "a", 0)
    if tiles is None:
        monkeypatch.setattr(measuring, "find_instances", lambda *args, **options: [own])
        variant = Variant("zero_shot", base)
        found = measuring.Instances(processor, [variant], split, "grid")
        found.add(variant, None, [sample], None)
        result = found.result()
    else:
        scene = SimpleNamespace(size=(64, 64), index=0, sample=lambda window: sample)
        monkeypatch.setattr(measuring, "own_scenes", lambda *args: [scene])
        monkeypatch.setattr(measuring, "assembled", lambda *args: SimpleNamespace(instances=own))
        result = evaluate_instances(base, processor, split, "grid", adapted=False, progress=False, tiles=tiles)
    assert result["zero_shot"]["ap"] == pytest.approx(expected)


def test_evaluation_of_components(sam_folder, make_dataset):
    pytest.importorskip("pycocotools")
    base, processor = load_base(sam_folder)
    model = perturb(build_model("decoder", {}, base), std=0.1)
    split = load_segmentation_dataset(str(make_dataset(train=4, test=5))).test
    found = evaluate_instances(model, processor, split, "components", batch_size=2, progress=False)
    again = evaluate_instances(model, processor, split, "components", batch_size=5, progress=False)
    assert found == again and found["objects"] == 5 and found["source"] == "components"
    assert all(0 <= found[name][key] <= 1 for name in ("zero_shot", "adapted") for key in ("ap", "ap50", "ap75"))


@pytest.fixture
def adapter(sam_folder, tmp_path):
    base, processor = load_base(sam_folder)
    save_adapter(perturb(build_model("sam_adapter", {}, base), std=0.2), tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter")


@pytest.mark.parametrize("source", ["components", "grid"])
def test_predict_writes_them(adapter, make_dataset, tmp_path, source):
    data, output = make_dataset(flat=3), tmp_path / "out"
    records = predict(
        [str(data / "images")],
        adapter,
        output_dir=output,
        instances=source,
        points_per_side=4,
        batch_size=2,
        progress=False,
    )
    content = json.loads((output / "instances.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["0000.png", "0001.png", "0002.png"]
    counts = [sum(one["image_id"] == number for one in content["annotations"]) for number in (1, 2, 3)]
    assert counts == [record["instances"] for record in records]
    for name in ("0000", "0001", "0002"):
        assert Image.open(output / f"{name}_instances.png").size == (64, 48)
    if source == "components":
        union = np.zeros((48, 64), bool)
        for one in content["annotations"]:
            if one["image_id"] == 1:
                union |= decode_runs(one["segmentation"], 48, 64, "mask")
        mask = np.asarray(Image.open(output / "0000_mask.png")) > 0
        assert sum(counts) > 0 and not (union & ~mask).any() and (mask & ~union).mean() < 0.01
    highest = max(one["score"] for one in content["annotations"]) if content["annotations"] else 0.0
    options = {"output_dir": output, "instances": source, "points_per_side": 4, "progress": False}
    fewer = predict([str(data / "images")], adapter, min_score=highest + 1e-6, **options)
    assert sum(record["instances"] for record in fewer) == 0


def test_refusals(adapter, make_dataset, tmp_path):
    data = str(make_dataset(flat=1) / "images")
    with pytest.raises(UserError, match="instances, box: instances are found without a prompt"):
        predict([data], adapter, output_dir=tmp_path / "out", instances="grid", box=[1, 1, 5, 5], progress=False)
    with pytest.raises(UserError, match="points_per_side: 0 is below 1"):
        predict([data], adapter, output_dir=tmp_path / "out", instances="grid", points_per_side=0, progress=False)
    assert not (tmp_path / "out").exists()
