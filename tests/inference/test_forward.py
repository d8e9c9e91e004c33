"""Ragged prompts in one forward equal one image at a time."""

import numpy as np
import pytest
import torch
from sams import random_sam

from hf_sam_adapt.inference.forward import PromptedSam, collate, encode, segment, segment_multimask, segment_scored
from hf_sam_adapt.prompts import Prompt, derive_prompts
from hf_sam_adapt.sam.processing import SamAdaptProcessor


KINDS = ["box", "none", "point", "mask", "box", "point", "none", "mask", "box", "point"]
COUNTS = [3, 1, 2, 3, 1, 0, 2, 1, 0, 2]


@pytest.fixture(scope="module")
def sam():
    return random_sam()


@pytest.fixture(scope="module")
def processor():
    return SamAdaptProcessor(64, patch_size=8)


def ragged(seed: int = 0) -> tuple[list[np.ndarray], list[Prompt]]:
    """Ten images of different sizes with prompts of every kind and between no and three objects."""
    rng = np.random.default_rng(seed)
    images, prompts = [], []
    for kind, count in zip(KINDS, COUNTS):
        height, width = rng.integers(40, 120, 2)
        mask = np.zeros((height, width), np.uint8)
        for index in range(count):
            top = rng.integers(0, 8)
            mask[top + 12 * index : top + 12 * index + 3, 3 : rng.integers(10, 30)] = 1
        images.append(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        prompts.append(derive_prompts(mask, kind, rng=rng))
    return images, prompts


def test_a_ragged_batch_equals_one_image_at_a_time(sam, processor):
    images, prompts = ragged()
    batch = processor(images, prompts=prompts)
    with torch.no_grad():
        together = segment(sam, batch["pixel_values"], batch["prompts"])
        for index, (image, prompt) in enumerate(zip(images, prompts)):
            single = processor(image, prompts=prompt)
            alone = segment(sam, single["pixel_values"], single["prompts"])[0]
            expected = 1 if prompt.kind == "none" else len(prompt)
            assert together[index].shape == alone.shape == (expected, 32, 32)
            torch.testing.assert_close(together[index], alone, atol=1e-6, rtol=1e-6)
    # Not because everything is equal: objects of one image and images of one kind differ.
    assert [len(logits) for logits in together] == [3, 1, 2, 3, 1, 0, 1, 1, 0, 2]
    assert (together[0][0] - together[0][1]).abs().max() > 1e-3
    assert (together[1] - together[6]).abs().max() > 1e-3
    assert all(logits.std() > 1e-2 for logits in together if len(logits))


def test_equals_the_plain_model(sam, processor):
    images, _ = ragged(1)
    pixel_values = processor(images[:2])["pixel_values"]
    boxes = torch.tensor([[[5.0, 6, 30, 40], [10, 3, 50, 20]], [[1, 1, 20, 30], [8, 8, 60, 50]]])
    points = torch.tensor([[[[20.0, 20], [40, 8]]], [[[30, 10], [5, 5]]]])
    labels = torch.tensor([[[1, 0]], [[1, 1]]])
    masks = torch.randn(2, 1, 32, 32) * 10
    with torch.no_grad():
        plain = sam(pixel_values=pixel_values, input_boxes=boxes, multimask_output=False).pred_masks[:, :, 0]
        ours = segment(sam, pixel_values, [Prompt("box", boxes=box) for box in boxes])
        torch.testing.assert_close(torch.stack(ours), plain, atol=1e-6, rtol=1e-6)

        plain = sam(pixel_values=pixel_values, input_points=points, input_labels=labels, multimask_output=True)
        prompts = [Prompt("point", points=p, point_labels=label) for p, label in zip(points, labels)]
        three = segment_multimask(sam, pixel_values, prompts)
        for (logits, scores), pred_masks, iou_scores in zip(three, plain.pred_masks, plain.iou_scores):
            assert logits.shape == (1, 3, 32, 32)
            torch.testing.assert_close(logits, pred_masks, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(scores, iou_scores, atol=1e-6, rtol=1e-6)

        plain = sam(pixel_values=pixel_values, input_masks=masks, multimask_output=False)
        scored = segment_scored(sam, pixel_values, [Prompt("mask", masks=mask) for mask in masks])
        torch.testing.assert_close(torch.stack([m for m, _ in scored]), plain.pred_masks[:, 0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(torch.stack([s for _, s in scored]), plain.iou_scores[:, 0], atol=1e-6, rtol=1e-6)

        plain = sam(pixel_values=pixel_values, multimask_output=False).pred_masks[:, 0]
        ours = segment(sam, pixel_values, [Prompt("none")] * 2)
        torch.testing.assert_close(torch.stack(ours), plain, atol=1e-6, rtol=1e-6)


def test_points_of_different_counts_are_not_padded(sam, processor):
    images, _ = ragged(2)
    pixel_values = processor(images[:2])["pixel_values"]
    one = Prompt("point", points=torch.tensor([[[20.0, 20]]]), point_labels=torch.ones(1, 1, dtype=torch.int64))
    two = Prompt("point", points=torch.tensor([[[20.0, 20], [9, 9]]]), point_labels=torch.tensor([[1, 0]]))
    with torch.no_grad():
        together = segment(sam, pixel_values, [one, two])
        alone = segment(sam, pixel_values[:1], [one])
    torch.testing.assert_close(together[0], alone[0], atol=1e-6, rtol=1e-6)


def test_the_images_are_encoded_once(sam, processor):
    images, prompts = ragged(3)
    batch = processor(images, prompts=prompts)
    calls = []
    handle = sam.vision_encoder.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
    try:
        with torch.no_grad():
            expected = segment(sam, batch["pixel_values"], batch["prompts"])
            assert calls == [len(images)]
            embeddings = encode(sam, batch["pixel_values"])
            again = segment(sam, None, batch["prompts"], image_embeddings=embeddings)
            assert calls == [len(images)] * 2
    finally:
        handle.remove()
    assert all(torch.equal(a, b) for a, b in zip(expected, again))


def test_gradients_equal_one_image_at_a_time(processor):
    images, prompts = ragged(4)
    batch = processor(images, prompts=prompts)

    def gradients(run) -> dict[str, torch.Tensor]:
        model = random_sam().double()
        sum(logits.square().sum() for logits in run(PromptedSam(model))).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    together = gradients(lambda module: module(batch["pixel_values"], batch["prompts"])[0])
    alone = gradients(
        lambda module: [
            module(batch["pixel_values"][i : i + 1], batch["prompts"][i : i + 1])[0][0] for i in range(len(images))
        ]
    )
    assert together.keys() == alone.keys()
    assert any(name.startswith("vision_encoder") for name in together)
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-6, atol=1e-11)


def test_collate_joins_processor_outputs(sam, processor):
    images, prompts = ragged(5)
    masks = [np.zeros(image.shape[:2], np.uint8) for image in images]
    whole = processor(images, masks, prompts)
    joined = collate([processor(*item) for item in zip(images, masks, prompts)])
    assert joined.keys() == whole.keys()
    for name in ("pixel_values", "labels", "original_sizes", "reshaped_input_sizes"):
        assert torch.equal(joined[name], whole[name])
    for ours, theirs in zip(joined["prompts"], whole["prompts"]):
        assert ours.kind == theirs.kind and len(ours) == len(theirs)


def test_wrong_number_of_prompts(sam, processor):
    images, prompts = ragged(6)
    with pytest.raises(ValueError, match="9 prompts for 10 images"):
        segment(sam, processor(images)["pixel_values"], prompts[:9])
