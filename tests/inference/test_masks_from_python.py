"""Masks that come from Python are read by the rule of the commands: 0 and 255 alone are a picture of the object."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from hf_sam_adapt import SamAdaptProcessor, load_segmentation_dataset, segmentation_loss
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.metrics import OverlapMetric
from hf_sam_adapt.prompts import Prompt, derive_prompts


IMAGE = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
MASK = np.zeros((40, 64), np.uint8)
MASK[8:30, 10:50] = 1
PROCESSOR = SamAdaptProcessor(64)

PICTURES = {
    "PIL": Image.fromarray(MASK * 255),
    "PIL RGB": Image.fromarray(MASK * 255).convert("RGB"),
    "PIL opaque RGBA": Image.fromarray(MASK * 255).convert("RGBA"),
    "array": MASK * 255,
    "array of three channels": np.repeat(MASK[..., None] * 255, 3, axis=2),
    "array of four channels": np.dstack([MASK * 255] * 3 + [np.full_like(MASK, 255)]).astype(np.int64),
    "tensor": torch.from_numpy(MASK * 255),
    "int64": MASK.astype(np.int64) * 255,
    "float": MASK.astype(np.float32) * 255,
    "1 bit": Image.fromarray(MASK > 0),
    "bool": MASK > 0,
    "float of one": MASK.astype(np.float32),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_the_processor_reads_pictures_as_the_commands_do(kind):
    expected = PROCESSOR(IMAGE, MASK)["labels"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = PROCESSOR(IMAGE, masks=PICTURES[kind])["labels"]
    assert torch.equal(got, expected) and (got == 1).sum() == 880
    held = np.asarray(PICTURES[kind]).max() == 255
    assert any("255 = foreground" in str(one.message) for one in caught) is bool(held)
    logits = torch.where(expected == 1, 9.0, -9.0)[:, None]
    assert segmentation_loss(-logits, got) > 5 > 0.1 > segmentation_loss(logits, got)


def test_commands_and_processor_agree(tmp_path):
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for number in range(5):
        Image.fromarray(np.roll(IMAGE, number, axis=0)).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(MASK * 255).save(tmp_path / "masks" / f"{number}.png")
    sample = load_segmentation_dataset(tmp_path).train[0]
    with pytest.warns(UserWarning, match="255 = foreground"):
        (labels,) = PROCESSOR(sample.image, Image.open(tmp_path / "masks/0.png"))["labels"]
    assert torch.equal(labels, PROCESSOR(sample.image, sample.mask, mask_values="index")["labels"][0])


def test_ignored_pixels_and_classes_stay_what_they_are():
    ignored = np.where(np.arange(64) > 55, 255, MASK).astype(np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mask in (MASK, MASK * 7, MASK * 0, ignored, np.full_like(MASK, 255)):
            (labels,) = PROCESSOR(IMAGE, mask)["labels"]
            assert set(labels.unique().tolist()) == set(np.unique(mask).tolist()) | {255}
        (labels,) = PROCESSOR(IMAGE, MASK * 255, mask_values="index")["labels"]
        assert not (labels == 1).any()
        (labels,) = PROCESSOR(IMAGE, MASK * 90, mask_values="binary")["labels"]
        assert (labels == 1).sum() == 880


@pytest.mark.parametrize(
    "masks, message",
    [
        ([MASK, MASK * 255], r"mixed: masks\[1\] holds 255.*masks\[0\] holds class indices"),
        ([MASK, MASK.astype(np.uint16) * 300], r"masks\[1\]: mask value 300.*binary"),
        ([MASK, MASK * 0.5], r"masks\[1\]: mask value 0\.5"),
        ([MASK, MASK.astype(np.int64) * -1], r"masks\[1\]: mask value -1"),
        ([MASK, np.where(MASK, np.nan, 0)], "NaN"),
        ([MASK, np.dstack([MASK, MASK, MASK, MASK])], "transparent"),
    ],
)
def test_masks_that_are_none_are_refused(masks, message):
    with pytest.raises(UserError, match=message):
        PROCESSOR([IMAGE, IMAGE], masks)


@pytest.mark.parametrize("value", [2, 7, 128, 254, -1, 0.5])
@pytest.mark.parametrize("channels", [1, 2])
def test_labels_that_are_no_class_are_refused(value, channels):
    logits = torch.zeros(1, channels, 10, 16)
    labels = torch.from_numpy(MASK * np.float32(value))[None]
    labels = labels if value == 0.5 else labels.long()
    labels[0, 0, 0] = 255
    with pytest.raises(UserError, match=f"labels: value {value:g}, but .*255 = ignore; pass labels > 0"):
        segmentation_loss(logits, labels)


def test_labels_of_0_and_255_are_said():
    labels = torch.from_numpy(MASK * 255)[None]
    with pytest.warns(UserWarning, match="if 255 is the object, pass labels > 0"):
        assert segmentation_loss(torch.zeros(1, 1, 10, 16), labels, "bce") > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        segmentation_loss(torch.zeros(1, 1, 10, 16), torch.from_numpy(MASK)[None])
        segmentation_loss(torch.zeros(1, 1, 10, 16), torch.from_numpy(MASK > 0)[None])


@pytest.mark.parametrize("kind", ["box", "point", "mask"])
def test_prompts_of_a_picture(kind):
    expected = derive_prompts(MASK, kind)
    with pytest.warns(UserWarning, match="255 = foreground"):
        got = derive_prompts(MASK * 255, kind)
    assert len(got) == len(expected) == 1 and np.array_equal(got.targets, expected.targets)
    assert len(derive_prompts(MASK * 255, kind, mask_values="index")) == 0


def test_mask_prompts_of_0_and_255():
    truth = Prompt("mask", masks=(MASK > 0)[None])
    expected = PROCESSOR(IMAGE, prompts=truth)["prompts"][0].masks
    for masks in (MASK[None] * 255, MASK[None].astype(np.float32)):
        assert torch.equal(PROCESSOR(IMAGE, prompts=Prompt("mask", masks=masks))["prompts"][0].masks, expected)
    with pytest.raises(UserError, match="prompt mask: values other than"):
        PROCESSOR(IMAGE, prompts=Prompt("mask", masks=MASK[None] * 128))


def test_metrics_say_that_nothing_was_foreground():
    metric = OverlapMetric()
    metric.update(MASK > 0, MASK * 255)
    with pytest.warns(UserWarning, match="if 255 is the object"):
        metric.compute()
