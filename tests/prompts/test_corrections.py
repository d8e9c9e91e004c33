"""Correction rounds of the training: where the points go, what else the decoder gets, and what is computed once."""

import numpy as np
import pytest
import torch
from sams import random_sam

from hf_sam_adapt.inference.forward import PromptedSam, encode, segment, segment_rounds
from hf_sam_adapt.losses.segmentation import segmentation_loss
from hf_sam_adapt.prompts import Prompt, corrected, training_prompt
from hf_sam_adapt.sam.processing import SamAdaptProcessor
from hf_sam_adapt.training.loop import batch_loss


S, STRIDE = 64, 2  # input and the pixels of it that a mask pixel covers


def random_case(seed: int, n: int = 5, rounds: int = 2) -> tuple[Prompt, torch.Tensor]:
    """Boxes of n objects of random pixels, a quarter ignored, and random logits."""
    generator = torch.Generator().manual_seed(seed)
    targets = (torch.rand(n, S, S, generator=generator) < 0.3).long()
    targets[torch.rand(n, S, S, generator=generator) < 0.25] = 255
    logits = torch.randn(n, S // STRIDE, S // STRIDE, generator=generator)
    draws = torch.rand(n, rounds, generator=generator)
    return Prompt("box", boxes=torch.zeros(n, 4), targets=targets, draws=draws), logits


def test_points_are_wrong_pixels_with_the_truth_as_label():
    for seed in range(20):
        prompt, logits = random_case(seed)
        after = corrected(prompt, logits, seed % 2)
        assert after.points.shape == (5, 1, 2) and after.point_labels.shape == (5, 1)
        for target, mask, (x, y), label in zip(prompt.targets, logits, after.points[:, 0].long(), after.point_labels):
            truth, claimed = target[y, x].item(), bool(mask[y // STRIDE, x // STRIDE] > 0)
            assert truth in (0, 1) and claimed != bool(truth) and label.item() == truth
        assert torch.equal(after.masks, logits) and after.boxes is prompt.boxes and prompt.points is None


def test_every_wrong_pixel_is_equally_likely():
    targets = torch.zeros(1, S, S, dtype=torch.int64)
    targets[0, 10:14, 20:26] = 1  # 2 x 3 mask pixels are missed
    logits = torch.full((1, 32, 32), -1.0)
    logits[0, 30, 0:2] = 1.0  # and 2 claimed
    counts = {}
    for number in range(800):
        draws = torch.tensor([[(number + 0.5) / 800]])
        after = corrected(Prompt("box", boxes=torch.zeros(1, 4), targets=targets, draws=draws), logits, 0)
        place = tuple(after.points[0, 0].long().tolist())
        counts[place] = counts.get(place, 0) + 1
        assert after.point_labels.item() == (place[1] < 20)
    assert len(counts) == 8 and set(counts.values()) == {100}


def test_where_nothing_is_wrong_any_known_pixel_is_shown():
    targets = torch.full((3, S, S), 255)
    targets[0, :, :32], targets[0, 20:30, 5:15] = 0, 1
    targets[1, 40:50] = 1
    logits = torch.where(targets[:, 1::2, 1::2] == 1, 5.0, -5.0)
    prompt = Prompt("box", boxes=torch.zeros(3, 4), targets=targets, draws=torch.tensor([[0.0], [0.999999], [0.5]]))
    after = corrected(prompt, logits, 0)
    assert torch.isfinite(after.points).all() and after.points.max() < S
    for number in (0, 1):
        x, y = after.points[number, 0].long()
        assert targets[number, y, x] == after.point_labels[number]
    assert after.point_labels[2].item() == 0  # all ignored: its loss is 0 whatever it is shown


def test_points_add_up_and_no_gradient_flows_back():
    prompt, logits = random_case(3)
    logits.requires_grad_()
    first = corrected(prompt, logits, 0)
    again = torch.randn_like(logits)
    second = corrected(first, again, 1)
    assert second.points.shape == (5, 2, 2) and torch.equal(second.points[:, :1], first.points)
    assert torch.equal(second.point_labels[:, 0], first.point_labels[:, 0]) and torch.equal(second.masks, again)
    assert not first.masks.requires_grad


@pytest.fixture(scope="module")
def sam():
    return random_sam()


def ragged(seed: int):
    """Pixels and prompts of seven images: other kinds, other numbers of objects, other numbers of rounds."""
    rng, processor = np.random.default_rng(seed), SamAdaptProcessor(S, patch_size=8)
    images, masks, prompts = [], [], []
    for kind, count, rounds in zip(
        ["box", "none", "point", "mask", "box", "point", "mask"], [2, 0, 3, 1, 1, 0, 2], [2, 0, 2, 1, 0, 2, 2]
    ):
        height, width = rng.integers(40, 90, 2)
        mask = np.zeros((height, width), np.uint8)
        for number in range(count):
            mask[12 * number + 2 : 12 * number + 10, 4 : rng.integers(12, 34)] = 1
        images.append(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        masks.append(mask)
        prompts.append(Prompt("none") if kind == "none" else training_prompt(mask, kind, rng, rounds=rounds))
    batch = processor(images, masks=masks, prompts=prompts)
    return batch["pixel_values"], batch["prompts"], batch["labels"]


def test_a_ragged_batch_of_rounds_equals_one_image_at_a_time(sam):
    pixels, prompts, _ = ragged(0)
    with torch.no_grad():
        together, _ = segment_rounds(sam, prompts, encode(sam, pixels))
        for index, prompt in enumerate(prompts):
            (alone,), _ = segment_rounds(sam, [prompt], encode(sam, pixels[index : index + 1]))
            torch.testing.assert_close(together[index], alone, atol=1e-6, rtol=1e-6)
    assert [len(logits) for logits in together] == [6, 1, 9, 2, 1, 0, 6]
    # The rounds change the masks.
    assert (together[0][:2] - together[0][2:4]).abs().max() > 1e-3
    assert (together[0][2:4] - together[0][4:]).abs().max() > 1e-3


def test_each_round_gets_the_box_all_points_and_the_logits_before(sam):
    pixels, prompts, _ = ragged(1)
    pixels, prompts = pixels[:1], prompts[:1]
    calls = []
    handle = sam.prompt_encoder.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(kwargs), with_kwargs=True
    )
    try:
        with torch.no_grad():
            embeddings = encode(sam, pixels)
            (masks,), _ = segment_rounds(sam, prompts, embeddings)
            rounds = masks.split(2)
    finally:
        handle.remove()
    assert len(calls) == 3
    assert calls[0]["input_masks"] is None and calls[0]["input_points"] is None
    for number in (1, 2):
        assert torch.equal(calls[number]["input_masks"][:, 0], rounds[number - 1])
        assert torch.equal(calls[number]["input_boxes"][:, 0], prompts[0].boxes)
        assert calls[number]["input_points"].shape == (2, 1, number, 2)
    # By hand: the same prompt, corrected twice.
    with torch.no_grad():
        one = corrected(prompts[0], segment(sam, pixels, prompts)[0], 0)
        two = corrected(one, segment(sam, pixels, [one])[0], 1)
        torch.testing.assert_close(rounds[2], segment(sam, pixels, [two])[0], atol=1e-6, rtol=1e-6)


def test_images_are_encoded_once_for_all_rounds(sam):
    pixels, prompts, _ = ragged(2)
    calls = []
    handle = sam.vision_encoder.register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    try:
        with torch.no_grad():
            PromptedSam(sam)(pixels, prompts)
    finally:
        handle.remove()
    assert calls == [len(prompts)]


def test_the_loss_is_a_mean_over_rounds(sam):
    pixels, prompts, labels = ragged(3)
    batch = {"labels": labels, "prompts": prompts, "weight": torch.ones(len(prompts))}
    with torch.no_grad():
        logits, *_ = PromptedSam(sam)(pixels, prompts)
    loss, iou = batch_loss(logits, batch, "structure")
    expected = []
    for maps, prompt, own in zip(logits, prompts, labels):
        targets = own[None] if prompt.kind == "none" else prompt.targets
        if len(targets):
            rounds = maps.split(len(targets))
            per_round = [segmentation_loss(one[:, None], targets, "structure") for one in rounds]
            expected.append(torch.stack(per_round).mean())
        else:
            expected.append(torch.tensor(0.0))
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    assert 0 <= iou.item() <= 1
