"""Label maps at original size, and their scores over a split."""

import numpy as np
import pytest
import torch
from peft import get_peft_model
from sams import perturb, random_sam
from torch.nn import functional as F

from hf_sam_adapt import CwsamConfig, SamAdaptProcessor
from hf_sam_adapt.data.dataset import Sample
from hf_sam_adapt.evaluation.classes import ConstantLabels, constant_labels, evaluate_classes
from hf_sam_adapt.inference.variants import inference, label_maps
from hf_sam_adapt.metrics import ConfusionMatrix


CLASSES = 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    return perturb(get_peft_model(random_sam(), CwsamConfig(num_labels=CLASSES, scale_factor=4)))


@pytest.fixture
def processor():
    return SamAdaptProcessor(image_size=64, patch_size=8)


def samples(sizes=((40, 64), (64, 30), (90, 70))):
    rng = np.random.default_rng(1)
    made = []
    for index, (height, width) in enumerate(sizes):
        mask = rng.integers(0, CLASSES, (height, width)).astype(np.uint8)
        mask[:3] = 255
        image = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
        made.append(Sample(image, mask, f"image_{index}", index))
    return made


def test_label_maps_are_the_largest_class_at_original_size(model, processor):
    batch = samples()
    with inference([model]):
        found = label_maps(model, processor, batch)
        for sample, labels in zip(batch, found):
            inputs = processor([sample.image])
            logits = model(pixel_values=inputs["pixel_values"]).pred_masks[0, 0]  # (K, h, w)
            height, width = inputs["reshaped_input_sizes"][0].tolist()
            full = F.interpolate(logits[None], size=(64, 64), mode="bilinear", align_corners=False)
            full = F.interpolate(
                full[..., :height, :width], size=sample.mask.shape, mode="bilinear", align_corners=False
            )
            assert labels.dtype == np.uint8 and labels.shape == sample.mask.shape
            assert (labels == full[0].argmax(0).numpy()).mean() > 0.999
    assert len({int(value) for labels in found for value in np.unique(labels)}) > 1


def test_scores_equal_counting_by_hand(model, processor):
    batch = samples()
    found = evaluate_classes(model, processor, batch, CLASSES, batch_size=2, progress=False)
    with inference([model]):
        maps = label_maps(model, processor, batch)
    truth = np.concatenate([sample.mask[sample.mask != 255] for sample in batch])
    guess = np.concatenate([labels[sample.mask != 255] for sample, labels in zip(batch, maps)])
    scores = found.test["none"]["adapted"]
    assert scores["oa"] == pytest.approx((truth == guess).mean(), abs=1e-3)
    ious = [((truth == k) & (guess == k)).sum() / ((truth == k) | (guess == k)).sum() for k in range(CLASSES)]
    assert scores["miou"] == pytest.approx(np.mean(ious), abs=1e-3) and scores["iou"] == scores["miou"]
    assert set(scores["per_class"]) == {"0", "1", "2", "3"}
    assert found.test["none"]["zero_shot"] is None
    assert [record.index for record in found.records] == [0, 1, 2]
    one = ConfusionMatrix(CLASSES)
    one.update(maps[1], batch[1].mask)
    assert found.records[1].miou == pytest.approx(one.compute()["miou"])
    alone = evaluate_classes(model, processor, batch, CLASSES, batch_size=1, progress=False)
    assert np.array_equal(alone.matrix.counts, found.matrix.counts)


def test_constant_labels_are_the_most_frequent_class_of_each_place():
    masks = [np.full((20, 30), value, np.uint8) for value in (1, 1, 2)]
    for mask in masks:
        mask[:, :15] = 3
    masks[0][:, :15] = 255
    split = [Sample(np.zeros((20, 30, 3), np.uint8), mask, str(i), i) for i, mask in enumerate(masks)]
    found = constant_labels(split, CLASSES).at(10, 40)
    assert found.shape == (10, 40)
    assert (found[:, :19] == 3).all() and (found[:, 21:] == 1).all()


def test_constant_is_scored_beside(model, processor):
    batch = samples()
    constant = ConstantLabels(np.full((128, 128), 2, np.uint8))
    scores = evaluate_classes(model, processor, batch, CLASSES, constant=constant, progress=False).test["none"]
    truth = np.concatenate([sample.mask[sample.mask != 255] for sample in batch])
    assert scores["constant"]["oa"] == pytest.approx((truth == 2).mean())
