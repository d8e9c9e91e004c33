"""The stream of micro-batches: the same images however the work is divided, and nothing but the step to resume."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.distributed import SampleLoader, usual_workers
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.training.batches import (
    MAX_OBJECTS,
    BatchStream,
    TrainingSamples,
    seed_micro_step,
    to_device,
    training_loader,
)
from hf_sam_adapt.training.run import load_data, train


def stream(num_images, batch_size=1, accumulation=1, rank=0, world=1, first_step=0, last_step=6, seed=3):
    return BatchStream(num_images, seed, batch_size, accumulation, rank, world, first_step, last_step)


def images_per_step(num_images, batch_size, accumulation, world, steps=6):
    """All keys of each optimizer step, of every rank and micro-step."""
    ranks = [list(stream(num_images, batch_size, accumulation, rank, world, 0, steps)) for rank in range(world)]
    return [
        sorted(
            key for batches in ranks for batch in batches[s * accumulation : (s + 1) * accumulation] for key in batch
        )
        for s in range(steps)
    ]


@pytest.mark.parametrize("num_images", [1, 3, 5, 8, 97])
def test_an_optimizer_step_takes_the_same_images_however_they_are_divided(num_images):
    one = images_per_step(num_images, batch_size=8, accumulation=1, world=1)
    assert one == images_per_step(num_images, batch_size=4, accumulation=1, world=2)
    assert one == images_per_step(num_images, batch_size=1, accumulation=8, world=1)
    assert one == images_per_step(num_images, batch_size=2, accumulation=2, world=2)


@pytest.mark.parametrize("num_images", [1, 5, 13])
def test_every_epoch_takes_every_image_once_in_another_order(num_images):
    keys = [key for batch in stream(num_images, batch_size=3, last_step=5 * num_images) for key in batch]
    epochs = {}
    for epoch, index in keys:
        epochs.setdefault(epoch, []).append(index)
    whole = [epochs[epoch] for epoch in sorted(epochs) if len(epochs[epoch]) == num_images]
    assert len(whole) >= 14
    assert all(sorted(order) == list(range(num_images)) for order in whole)
    if num_images == 13:
        assert len({tuple(order) for order in whole}) == len(whole)
        assert keys != [key for batch in stream(13, batch_size=3, last_step=65, seed=4) for key in batch]


def test_a_resumed_stream_is_the_end_of_the_straight_one():
    straight = list(stream(7, batch_size=2, accumulation=3, last_step=9))
    resumed = stream(7, batch_size=2, accumulation=3, first_step=4, last_step=9)
    assert list(resumed) == straight[12:] and len(resumed) == 15


def test_seeds_of_micro_steps_differ_and_repeat():
    def draw(*place):
        seed_micro_step(*place)
        return torch.rand(1).item()

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]
    drawn = [draw(*place) for place in places]
    assert len(set(drawn)) == len(places)
    assert drawn == [draw(*place) for place in places]


def samples(split, processor, kinds=("none",), augmentations=("flip", "scale", "colour"), seed=0):
    return TrainingSamples(split, processor, kinds, augmentations, seed)


def equal(one, two):
    tensors = [(one[name], two[name]) for name in ("pixel_values", "labels", "weight")]
    return all(torch.equal(a, b) for a, b in tensors) and one["prompts"][0].kind == two["prompts"][0].kind


def test_a_sample_is_drawn_from_seed_epoch_and_index_alone(disc_split, processor):
    ours = samples(disc_split, processor, ("none", "box", "point", "mask"))
    first = [ours[(epoch, index)] for epoch in range(2) for index in range(4)]
    np.random.seed(5)
    torch.manual_seed(5)
    again = [ours[(epoch, index)] for epoch in reversed(range(2)) for index in reversed(range(4))][::-1]
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["pixel_values"], first[4]["pixel_values"])
    other = samples(disc_split, processor, ("none", "box", "point", "mask"), seed=1)
    assert not torch.equal(first[0]["pixel_values"], other[(0, 0)]["pixel_values"])


def test_workers_change_nothing(disc_split, processor):
    ours = samples(disc_split, processor, ("none", "box", "mask"))
    plain, parallel = (
        list(training_loader(ours, stream(4, batch_size=3, last_step=4), workers, pin_memory=False))
        for workers in (0, 2)
    )
    assert len(plain) == len(parallel) == 4
    for one, two in zip(plain, parallel, strict=True):
        assert torch.equal(one["pixel_values"], two["pixel_values"]) and torch.equal(one["labels"], two["labels"])
        assert [prompt.kind for prompt in one["prompts"]] == [prompt.kind for prompt in two["prompts"]]
        assert one["pixel_values"].shape == (3, 3, 64, 64) and one["weight"].tolist() == [1, 1, 1]


def test_a_packed_batch_becomes_what_the_processor_returns(disc_split, processor):
    """Bytes travel to the device, where they become the same network input bit for bit."""
    ours = samples(disc_split, processor, ("box",), augmentations=())
    (packed,) = training_loader(ours, stream(4, batch_size=4, last_step=1), 0, pin_memory=False)
    assert {packed[name].dtype for name in ("pixel_values", "labels")} == {torch.uint8}
    assert {prompt.targets.dtype for prompt in packed["prompts"]} == {torch.uint8}
    batch = to_device(packed, processor, torch.device("cpu"))
    (keys,) = stream(4, batch_size=4, last_step=1)
    chosen = [disc_split[index] for _, index in keys]
    expected = processor([one.image for one in chosen], masks=[one.mask for one in chosen])
    assert all(one.image.shape[0] < one.image.shape[1] for one in chosen), "a square image has no padding"
    assert torch.equal(batch["pixel_values"], expected["pixel_values"])
    assert torch.equal(batch["labels"].long(), expected["labels"])


def test_all_prompt_kinds_are_drawn_with_their_targets(disc_split, processor):
    ours = samples(disc_split, processor, ("none", "box", "point", "mask"), augmentations=())
    drawn = [ours[(epoch, 0)]["prompts"][0] for epoch in range(40)]
    assert {prompt.kind for prompt in drawn} == {"none", "box", "point", "mask"}
    labels = ours[(0, 0)]["labels"][0]
    for prompt in drawn:
        if prompt.kind != "none":
            # The objects of an image are disjoint and together its foreground.
            assert prompt.targets.shape == (len(prompt), 64, 64)
            assert torch.equal((prompt.targets == 1).sum(dim=0), (labels == 1).long())
            assert torch.equal((prompt.targets == 255).all(dim=0), labels == 255)


def test_at_most_eight_objects_chosen_at_random(crowd_split, processor):
    ours = samples(crowd_split, processor, ("box",), augmentations=())
    boxes = [ours[(epoch, 0)]["prompts"][0].boxes for epoch in range(6)]
    assert all(len(b) == MAX_OBJECTS for b in boxes)
    assert len({tuple(map(tuple, b.tolist())) for b in boxes}) == 6


def test_an_image_without_objects_is_skipped_or_trained_promptless(empty_split, processor):
    skipped = samples(empty_split, processor, ("box", "point"))[(0, 0)]
    assert skipped["prompts"][0].kind == "none" and skipped["weight"].item() == 0
    promptless = samples(empty_split, processor, ("box", "none"))
    assert {promptless[(epoch, 0)]["weight"].item() for epoch in range(8)} == {1.0}


@pytest.mark.parametrize("prompts", ["box", "none box", "none"])
def test_objects_too_small_to_be_prompted_are_said_before_the_first_step(short_recipe, tmp_path, prompts):
    mask = np.zeros((60, 60), np.uint8)
    mask[5::10, 5::10] = 255  # single pixels, 0.03 % each
    for split in ("train", "val", "test"):
        for part in ("images", "masks"):
            (tmp_path / "small" / split / part).mkdir(parents=True)
        for number in range(4):
            image = np.random.default_rng(number).integers(0, 255, (60, 60, 3), np.uint8)
            Image.fromarray(image).save(tmp_path / "small" / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(tmp_path / "small" / split / "masks" / f"{number}.png")
    keys = {"dataset": tmp_path / "small", "prompts": prompts.split(), "max_steps": 1}
    recipe = parse_recipe(list(map(str, short_recipe("small_run", **keys))))
    if prompts == "box":
        with pytest.raises(UserError, match=r"none of 4 training images with foreground has an object of 0\.05%"):
            train(recipe)
        assert not (tmp_path / "small_run").exists()
        return
    data = load_data(recipe)
    train(recipe, data=data)
    assert any("those images train without a prompt" in note for note in data.notes) == (prompts != "none")


@pytest.mark.parametrize(
    ("gpu", "cores", "processes", "asked_for_cpu", "expected"),
    [
        (False, 16, 1, False, 0),
        (True, 16, 1, False, 8),
        (True, 16, 4, False, 3),
        (True, 4, 1, False, 3),
        (True, 2, 2, False, 1),
        (True, 16, 1, True, 0),
    ],
)
def test_workers_by_device_and_cores(gpu, cores, processes, asked_for_cpu, expected, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(asked_for_cpu).lower())
    assert usual_workers() == expected
    assert SampleLoader(range(40), batch_size=4, num_workers=None).num_workers == expected
    assert SampleLoader(range(8), batch_size=4, num_workers=None).num_workers == min(2, expected)
    assert SampleLoader(range(8), batch_size=4, num_workers=5).num_workers == 5
