"""Pre-training on photographs: how they are packed and drawn, what has a loss, and that a resumed run is the same."""

import dataclasses
import json
import sys

import evaluate_tiny
import numpy as np
import pretrain_tiny
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from tiny_images.augment import changed_pixels
from tiny_images.photographs import Photographs, held_back_sources, pack_photographs
from tiny_images.sources import COMPLETE, UNGUESSED
from tiny_training.losses import all_masks, embed_prompts, enlarged_box, neighbourhood, prompt_loss
from tiny_training.model import ARCHITECTURES, encode, new_model
from tiny_training.prompts import correct, draw_prompts
from tiny_training.steps import HeldBack, cover
from transformers import HfArgumentParser

from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_base
from hf_sam_adapt.sam.base_names import tiny_folder
from hf_sam_adapt.sam.families import SAM2, family_of


# Name of a source -> photographs of it. The first two label all of one kind, the last is a partition of each picture.
SOURCES = {"mugs": 8, "floors": 2, "street": 2, "zones": 2}


def draw_source(folder, name: str, count: int, rng: np.random.Generator) -> None:
    for part in ("images", "masks"):
        (folder / name / part).mkdir(parents=True)
    for number in range(1, count + 1):
        height, width = 60 + 10 * number, 90
        rows, columns = np.mgrid[:height, :width]
        layer = np.zeros((height, width), np.uint8)
        for region, (row, column) in enumerate([(20, 20), (40, 65)], 1):
            layer[(rows - row) ** 2 + (columns - column) ** 2 < 144] = region
        if name == "zones":
            layer += 1
        image = rng.integers(0, 60, (height, width, 3)).astype(np.uint8) + 40 * layer[..., None]
        Image.fromarray(image).save(folder / name / "images" / f"{number:04d}.jpg", quality=90)
        palette_picture(layer).save(folder / name / "masks" / f"{number:04d}.png")
        if name == "street":  # a second layer: both regions as one
            palette_picture((layer > 0).astype(np.uint8)).save(folder / name / "masks" / f"{number:04d}_2.png")


def palette_picture(layer: np.ndarray) -> Image.Image:
    picture = Image.fromarray(layer, "P")
    picture.putpalette(list(range(256)) * 3)
    return picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for name, count in SOURCES.items():
        draw_source(folder, name, count, rng)
    return folder


@pytest.fixture(scope="module")
def cache(folder, tmp_path_factory):
    return pack_photographs(folder, tmp_path_factory.mktemp("cache"))


def photographs_of(cache, *names: str) -> Photographs:
    return Photographs(cache, list(names), {name: number for number, name in enumerate(names, 1)})


@pytest.mark.parametrize("recipe", [pretrain_tiny, evaluate_tiny], ids=lambda recipe: recipe.__name__)
def test_the_recipes_help_can_be_shown(recipe):
    shown = HfArgumentParser(recipe.Arguments).format_help()
    assert all(f"--{field.name}" in shown for field in dataclasses.fields(recipe.Arguments))


def test_packed_records_are_the_files(folder, cache):
    photographs = photographs_of(cache, *SOURCES)
    for source, (name, count) in enumerate(SOURCES.items()):
        assert len(photographs.records[source]) == count
        record = photographs.record(source, count - 1)
        image = Image.open(folder / name / "images" / f"{count:04d}.jpg")
        assert np.array_equal(record[..., :3], np.asarray(image))
        layers = sorted((folder / name / "masks").glob(f"{count:04d}*.png"), key=lambda path: (len(path.name), path))
        assert record.shape[2] == 3 + len(layers) == (5 if name == "street" else 4)
        for number, path in enumerate(layers, 3):
            assert np.array_equal(record[..., number], np.asarray(Image.open(path)))


def test_a_source_is_packed_once_and_again_when_it_has_grown(folder, tmp_path):
    draw_source(tmp_path / "in", "mugs", 2, np.random.default_rng(1))
    pack_photographs(tmp_path / "in", tmp_path / "cache")
    first = (tmp_path / "cache" / "mugs.npy").stat().st_mtime_ns
    pack_photographs(tmp_path / "in", tmp_path / "cache")
    assert (tmp_path / "cache" / "mugs.npy").stat().st_mtime_ns == first
    for part, ending in (("images", "jpg"), ("masks", "png")):
        old = tmp_path / "in" / "mugs" / part / f"0002.{ending}"
        old.with_stem("0003").write_bytes(old.read_bytes())
    pack_photographs(tmp_path / "in", tmp_path / "cache")
    assert len(json.loads((tmp_path / "cache" / "index.json").read_text())["mugs"]) == 3


@pytest.mark.parametrize("fault", ["no sources", "no mask", "another size"])
def test_a_folder_at_fault_is_refused(fault, tmp_path):
    if fault != "no sources":
        draw_source(tmp_path, "mugs", 1, np.random.default_rng(0))
    mask = tmp_path / "mugs" / "masks" / "0001.png"
    if fault == "no mask":
        mask.unlink()
    elif fault == "another size":
        Image.fromarray(np.zeros((5, 5), np.uint8)).save(mask)
    with pytest.raises(UserError, match={"no sources": "images", "no mask": "0001", "another size": "size"}[fault]):
        pack_photographs(tmp_path, tmp_path / "cache")


def test_sources_are_drawn_by_the_square_root_of_their_size(cache):
    assert photographs_of(cache, "mugs", "floors").share == pytest.approx([2 / 3, 1 / 3])


def test_what_a_source_labels_decides_what_is_asked(cache):
    """A class without a prompt only where all of a kind is labelled; by its task alone where it cannot be guessed."""
    assert UNGUESSED < COMPLETE and "mugs" in COMPLETE - UNGUESSED and "floors" in UNGUESSED
    photographs, rng = photographs_of(cache, *SOURCES), np.random.default_rng(0)
    seen = {name: [photographs.plain(source, 0, rng, 4) for _ in range(12)] for source, name in enumerate(SOURCES)}
    assert {example.task for example in seen["mugs"]} == {0, 1}
    assert {example.task for example in seen["floors"]} == {2}
    assert all(example.whole is None for name in ("street", "zones") for example in seen[name])
    assert {name for name, examples in seen.items() if examples[0].partial} == {"street"}
    example = seen["mugs"][0]
    assert example.objects.shape == (4, 256, 256) and example.objects.any((1, 2)).all()
    assert not (example.objects & ~example.whole).any()
    height = round(256 * 70 / 90)
    assert example.image[:, height:].abs().max() == 0 and not example.whole[height:].any()
    disc = np.pi * 12**2 * (256 / 90) ** 2
    assert example.whole.sum().item() == pytest.approx(2 * disc, rel=0.05)
    # A layer first, then a region of it: the second layer of `street` has one region, the size of both of the first.
    areas = {round(mask.sum().item() / disc) for example in seen["street"] for mask in example.objects}
    assert areas == {1, 2}
    held_back = Photographs(cache, ["mugs", "floors"], {})
    assert held_back.plain(0, 0, rng, 1).whole is not None and held_back.plain(1, 0, rng, 1).whole is None


def test_examples_are_changed_and_their_objects_follow(cache):
    """In these pictures an object is brighter than what is around it, however they are turned and cropped."""
    photographs, rng = photographs_of(cache, "mugs"), np.random.default_rng(0)
    examples = [photographs.draw(rng, 2) for _ in range(40)]
    assert len({example.image.shape for example in examples}) == 1
    right = 0
    for example in examples:
        whole, inside = photographs_whole(example), example.image.abs().sum(0) > 0
        right += example.image.mean(0)[whole].mean() > example.image.mean(0)[inside & ~whole].mean()
    assert right >= 36  # the colours of some are turned into their negatives
    assert len({example.objects[0].sum().item() for example in examples}) > 30


def photographs_whole(example) -> torch.Tensor:
    return example.whole if example.whole is not None else example.objects.any(0)


def test_changed_pixels_keep_shape_and_type():
    rng, image = np.random.default_rng(0), np.random.default_rng(1).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    found = [changed_pixels(image, rng) for _ in range(60)]
    assert {(picture.shape, picture.dtype.name) for picture in found} == {((40, 50, 3), "uint8")}
    spread = [np.abs(picture - picture.mean(2, keepdims=True)).max() for picture in found]
    assert 1 <= sum(value < 1 for value in spread) <= 20  # grey ones
    assert sum(np.array_equal(picture, image) for picture in found) <= 20


def test_held_back_sources_are_a_tenth():
    names = [f"source_{number:02d}" for number in range(86)]
    assert held_back_sources(names[::-1]) == names[4::10] and len(names[4::10]) == 9
    assert held_back_sources(["b", "a"]) == ["b"]


def test_held_back_photographs_are_the_same_at_each_look(cache):
    first, second = (HeldBack.draw(Photographs(cache, ["mugs", "street"], {}), 1, images=3, objects=2) for _ in "ab")
    assert first.names == ["mugs", "street"] and len(first.items[0]["images"]) == 3
    assert torch.equal(first.items[1]["cover"], second.items[1]["cover"])
    for kind, name in (("box", "input_boxes"), ("point", "input_points")):
        assert torch.equal(first.prompts[1][kind][name], second.prompts[1][kind][name])
    assert len(first.items[0]["with_whole"]) == 3 and len(first.items[1]["with_whole"]) == 0


def random_masks(seed: int) -> torch.Tensor:
    """Masks (2, 3, 64, 64), one of them empty."""
    generator = torch.Generator().manual_seed(seed)
    masks = F.interpolate(torch.rand(2, 3, 6, 6, generator=generator), size=64) > 0.9
    masks[0, 0] = False
    return masks


def test_boxes_around_masks():
    masks = random_masks(0)
    near, far = enlarged_box(masks), neighbourhood(masks)
    assert near[0, 0].sum() == 0
    for mask, box, wide in zip(masks.flatten(0, 1)[1:], near.flatten(0, 1)[1:], far.flatten(0, 1)[1:]):
        rows, columns = (np.flatnonzero(mask.numpy().any(axis)) for axis in (1, 0))
        expected = np.zeros((64, 64))
        expected[max(0, rows[0] - 4) : rows[-1] + 5, max(0, columns[0] - 4) : columns[-1] + 5] = 1
        assert np.array_equal(box.numpy(), expected)
        height, width = (span[-1] - span[0] + 1 for span in (rows, columns))
        top, left = max(0, rows[0] - 4 - height // 2), max(0, columns[0] - 4 - width // 2)
        expected = np.zeros((64, 64))
        expected[top : rows[-1] + 5 + height // 2, left : columns[-1] + 5 + width // 2] = 1
        assert np.array_equal(wide.numpy(), expected)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_what_is_not_known_has_no_part_in_the_loss(balance):
    truth = random_masks(1)[1:].float()
    known = (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(2)) < 0.7).float()
    logits = torch.randn(1, 3, 4, 64, 64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    loss, iou = prompt_loss(logits, torch.zeros(1, 3, 4), truth, known, balance)
    loss.backward()
    assert not logits.grad[(known == 0)[:, :, None].expand_as(logits)].any()
    assert logits.grad[:, :, 0][known > 0].ne(0).all()
    changed = torch.where(known[:, :, None] > 0, logits.detach(), 9.0)
    assert prompt_loss(changed, torch.zeros(1, 3, 4), truth, known, balance)[0].item() == pytest.approx(loss.item())
    both = ((logits[:, :, 0] > 0) & (truth > 0) & (known > 0)).sum((2, 3))
    either = (((logits[:, :, 0] > 0) | (truth > 0)) & (known > 0)).sum((2, 3))
    assert iou.item() == pytest.approx((both / either).mean().item())


def test_corrections_point_at_what_is_wrong():
    masks = torch.zeros(2, 1, 256, 256, dtype=torch.bool)
    masks[:, :, 64:128, 64:128] = True
    prompts = draw_prompts(masks, "box", np.random.default_rng(0))
    truth = cover(masks)[:, 0] > 0.5
    logits = torch.where(truth, 5.0, -5.0)
    logits[0, 20, 20], logits[1, 40, 50] = -5.0, 5.0  # one pixel missed, one claimed
    logits[1, 0, 0] = 5.0  # and one wrong where nothing is known
    known = torch.ones_like(truth)
    known[1, 0, 0] = False
    found = correct(prompts, logits, truth, known, torch.tensor([[0.5], [0.5]]))
    assert torch.equal(found["input_points"], torch.tensor([[[[82.0, 82.0]]], [[[202.0, 162.0]]]]))
    assert found["input_labels"].tolist() == [[[1]], [[0]]]
    assert torch.equal(found["input_boxes"], prompts["input_boxes"])
    assert torch.equal(found["input_masks"], logits[:, None])
    again = correct(found, logits, truth, known, torch.tensor([[0.5], [0.5]]))
    assert again["input_points"].shape == (2, 1, 2, 2) and again["input_labels"].shape == (2, 1, 2)


def pretrain(monkeypatch, folder, cache, output, **changed) -> None:
    flags = {"images": folder, "cache": cache, "output_dir": output, "held_back": "mugs", "drawn_share": 0}
    flags |= {"max_steps": 4, "dense_steps": 1, "batch_size": 2, "prompts_per_image": 2, "dense_per_image": 2}
    flags |= {"num_workers": 0, "check_every": 2, "save_every": 2, "seed": 3} | changed
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["pretrain_tiny.py", *words])
    pretrain_tiny.main()


@pytest.mark.slow
def test_a_resumed_run_is_the_straight_one(monkeypatch, folder, cache, tmp_path):
    """Corrections are in the later half; the held-back source is looked at and the best weights are kept."""
    pretrain(monkeypatch, folder, cache, tmp_path / "straight")
    pretrain(monkeypatch, folder, cache, tmp_path / "resumed", stop_at=2)
    assert json.loads((tmp_path / "resumed" / "progress.json").read_text())["step"] == 2
    pretrain(monkeypatch, folder, cache, tmp_path / "resumed")
    straight, resumed = (load_file(tmp_path / name / "step_4.safetensors") for name in ("straight", "resumed"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    lines = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("straight", "resumed")]
    assert lines[0] == lines[1] and len(lines[0]) == 2
    looks = [json.loads(line) for line in lines[0]]
    assert [look["step"] for look in looks] == [2, 4] and set(looks[0]["held_back"]) == {"box", "point", "none"}
    progress = [json.loads((tmp_path / name / "progress.json").read_text()) for name in ("straight", "resumed")]
    assert progress[0] == progress[1]
    assert progress[0]["best"] == pytest.approx(max(look["mean"] for look in looks), abs=1e-4)
    kept = {name: load_file(tmp_path / name / "best" / "model.safetensors") for name in ("straight", "resumed")}
    assert all(torch.equal(value, kept["resumed"][key]) for key, value in kept["straight"].items())
    # An exported model is a start for another run, and a run that has ended can be made longer.
    pretrain(monkeypatch, folder, cache, tmp_path / "next", init=tmp_path / "straight" / "model", stop_at=1)
    pretrain(monkeypatch, folder, cache, tmp_path / "straight", schedule_start=4, max_steps=5)
    assert json.loads((tmp_path / "straight" / "progress.json").read_text())["step"] == 5


@pytest.mark.slow
def test_the_variant_on_hiera_trains_and_loads(monkeypatch, folder, cache, tmp_path):
    pretrain(monkeypatch, folder, cache, tmp_path / "run", architecture="tiny2", stop_at=2)
    pretrain(monkeypatch, folder, cache, tmp_path / "run", architecture="tiny2")
    looks = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [look["step"] for look in looks] == [2, 4] and set(looks[0]["held_back"]) == {"box", "point", "none"}
    model, processor = load_base(str(tmp_path / "run" / "model"))
    assert family_of(model) is SAM2 and processor.image_size == 256
    assert sum(parameter.numel() for parameter in model.parameters()) <= 6e6
    assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_size < 12e6
    first, last = (tmp_path / "run" / name / "model.safetensors" for name in ("best", "model"))
    assert load_file(first).keys() == load_file(last).keys()


@torch.no_grad()
def test_tiny2_takes_the_decoder_of_tiny():
    sam, taken, fresh = (new_model(*how) for how in (("tiny", tiny_folder()), ("tiny2", tiny_folder()), ("tiny2",)))
    embedding = encode(sam, torch.randn(2, 3, 256, 256))
    prompts = {"input_boxes": torch.tensor([[[20.0, 30, 90, 120]], [[10, 10, 200, 100]]])}
    wanted, _ = all_masks(sam, embedding, *embed_prompts(sam, prompts, 2))
    errors = []
    for model in (taken, fresh):
        own = encode(model, torch.randn(2, 3, 256, 256))
        own.maps.copy_(embedding.maps)
        masks, _ = all_masks(model, own, *embed_prompts(model, prompts, 2))
        errors.append(((masks - wanted).norm() / wanted.norm()).item())
    assert errors[0] < 0.2  # all that differs is the token of the object's score, to which the others attend
    assert errors[1] > 0.8


@pytest.mark.slow
def test_tiny2_learns_the_embedding_of_tiny(monkeypatch, folder, cache, tmp_path):
    how = {"architecture": "tiny2", "init": tiny_folder(), "dense_steps": 200, "max_steps": 200, "check_every": 200}
    pretrain(monkeypatch, folder, cache, tmp_path / "run", **how)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0] and losses[-1] < 1  # 1 for the teacher's mean


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_all_masks_are_those_of_the_models_forward(architecture):
    model, images = new_model(architecture).train(), torch.randn(2, 3, 256, 256)
    boxes = torch.tensor([[[10.0, 20, 90, 120], [50, 50, 200, 220]]]).expand(2, -1, -1)
    points, labels = torch.full((2, 1, 1, 2), 70.0), torch.ones(2, 1, 1, dtype=torch.int64)
    cases = ({"input_boxes": boxes}, {"input_points": points, "input_labels": labels}, {})
    with torch.no_grad():
        embedding = encode(model, images)
        for prompts in cases:
            masks, estimates = all_masks(model, embedding, *embed_prompts(model, dict(prompts), 2))
            for multimask, rows in ((False, slice(0, 1)), (True, slice(1, None))):
                wanted = model(pixel_values=images, multimask_output=multimask, **prompts)
                torch.testing.assert_close(masks[:, :, rows], wanted.pred_masks, rtol=1e-4, atol=1e-4)
                torch.testing.assert_close(estimates[:, :, rows], wanted.iou_scores, rtol=1e-4, atol=1e-4)


def test_a_source_to_hold_back_must_exist(monkeypatch, folder, cache, tmp_path):
    with pytest.raises(UserError, match="cups"):
        pretrain(monkeypatch, folder, cache, tmp_path / "run", held_back="cups")
