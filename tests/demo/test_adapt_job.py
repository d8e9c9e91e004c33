"""Trainings in the background: what they learn from, how they are watched, stopped and handed out."""

import io
import json
import time
import zipfile

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.demo.job import AdaptJob
from hf_sam_adapt.demo.training_images import painted_pair, read_pairs, write_pairs
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted


@pytest.fixture
def files(tmp_path):
    """Returns `files(count, suffix="_mask")`: image and mask files of drawn radar."""

    def draw(count, suffix="_mask"):
        found = []
        for number in range(count):
            image, mask = draw_sample("speckle", "train", number, size=(96, 128))
            paths = tmp_path / f"scene{number}.png", tmp_path / f"scene{number}{suffix or '.gt'}.png"
            Image.fromarray(image).save(paths[0])
            Image.fromarray(mask * 255).save(paths[1])
            found.append([str(path) for path in paths])
        return [list(part) for part in zip(*found)]

    return draw


class NoWorker:
    """A process that trains nothing."""

    def __init__(self):
        self.stdin = io.StringIO()


def wait(job, seconds=240, until=lambda now: now.is_over):
    end = time.monotonic() + seconds
    while not until(now := job.progress()):
        assert not now.is_over, now.message
        assert time.monotonic() < end, now
        time.sleep(0.2)
    return now


def test_masks_find_their_images_by_name_or_by_place(files):
    images, masks = files(4)
    for order in (masks, masks[::-1]):
        pairs = read_pairs(images, order, 10**6)
        for index, pair in enumerate(pairs):
            assert np.array_equal(pair.mask, draw_sample("speckle", "train", index, size=(96, 128))[1])
    assert [pair.picture.name for pair in pairs] == [f"scene{index}.png" for index in range(4)]


def test_what_cannot_be_learned_from(files, tmp_path):
    images, masks = files(2)
    with pytest.raises(UserError, match="2 images and 1 masks"):
        read_pairs(images, masks[:1], 10**6)
    with pytest.raises(UserError, match="choose the files of both"):
        read_pairs(images, [], 10**6)
    Image.new("L", (128, 96)).save(tmp_path / "empty.png")
    with pytest.raises(UserError, match=r"empty\.png: no pixel is foreground"):
        read_pairs(images[:1], [str(tmp_path / "empty.png")], 10**6)
    Image.new("L", (100, 96), 255).save(tmp_path / "other.png")
    with pytest.raises(UserError, match=r"100x96 pixels for scene0\.png of 128x96"):
        read_pairs(images[:1], [str(tmp_path / "other.png")], 10**6)
    pairs = read_pairs(images, masks, 10**6)
    for wrong, message in (
        ((pairs[:1], "tiny", "hq", 10), "1 images with masks: give 2 to 12"),
        ((pairs, "tiny", "magic", 10), "'magic' is not offered"),
        ((pairs, "tiny", "hq", 0), "not in 1..400"),
    ):
        with pytest.raises(UserError, match=message):
            AdaptJob(*wrong, tmp_path)


def test_painted_masks():
    picture = np.random.default_rng().integers(0, 256, (30, 40, 4), dtype=np.uint8)
    layer = np.zeros((30, 40, 4), np.uint8)
    with pytest.raises(UserError, match="paint over the object"):
        painted_pair(picture, [layer], "mine.png")
    layer[5:9, 3:12, 3] = 200
    pair = painted_pair(picture, [np.zeros_like(layer), layer], "mine.png")
    assert pair.mask.sum() == 4 * 9
    assert np.array_equal(pair.picture.image, picture[..., :3])


def test_the_last_pair_is_held_out(files, tmp_path):
    pairs = read_pairs(*files(3), 10**6)
    write_pairs(pairs, tmp_path / "data")
    assert len(list((tmp_path / "data/train/images").iterdir())) == 2
    (held_out,) = (tmp_path / "data/val/masks").iterdir()
    assert np.array_equal(np.asarray(Image.open(held_out)), pairs[-1].mask)


def test_ignored_pixels_stay_ignored(files, tmp_path):
    images, masks = files(2)
    for file in masks:
        mask = np.asarray(Image.open(file)) // 255
        mask[:20] = 255
        Image.fromarray(mask).save(file)
    job = AdaptJob(read_pairs(images, masks, 10**6), "tiny", "hq", 1, tmp_path, worker=NoWorker)
    keys = yaml.safe_load((job.folder / "recipe.yaml").read_text())
    data = load_segmentation_dataset(job.folder / "data", mask_values=keys["mask_values"])
    for split in (data.train, data.val):
        assert set(np.unique(split[0].mask)) == {0, 1, 255} and (split[0].mask[:20] == 255).all()


@pytest.mark.slow
def test_a_training_is_watched_and_its_adapter_handed_out(files, tmp_path):
    pairs = read_pairs(*files(5), 10**6)
    job = AdaptJob(pairs, "tiny", "hq", 30, tmp_path)
    seen = wait(job, until=lambda now: len(now.scores) > 2)
    assert seen.state in ("training", "measuring")
    assert 0 < seen.step <= seen.total == 30
    now = wait(job)
    assert now.state == "finished", (job.folder / "log.txt").read_text()[-2000:]
    assert [step for step, _ in now.scores] == [0, *range(3, 31, 3)]
    assert max(iou for _, iou in now.scores) > now.scores[0][1] + 0.3
    assert now.masks[0].shape == now.masks[30].shape == pairs[-1].mask.shape
    assert (now.masks[0] != now.masks[30]).any()
    metrics = job.metrics()
    best = dict(now.scores)[metrics["train"]["best_step"]]
    assert metrics["test"]["none"]["adapted"]["iou"] == pytest.approx(best, abs=1e-4)
    assert metrics["test"]["none"]["zero_shot"]["iou"] == pytest.approx(now.scores[0][1], abs=1e-4)

    with zipfile.ZipFile(job.zipped()) as archive:
        archive.extractall(tmp_path / "out")
        texts = [archive.read(name) for name in archive.namelist() if name.endswith((".json", ".yaml", ".md"))]
    assert not any(str(tmp_path).encode() in text for text in texts)
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    assert load_adapted(str(tmp_path / "out/adapter")).config.decoder == "hq"
    job.close()
    assert not job.folder.exists()


@pytest.mark.slow
def test_cancel_failure_and_time_limit(files, tmp_path):
    pairs = read_pairs(*files(3), 10**6)
    jobs = {
        "cancelled": AdaptJob(pairs, "tiny", "decoder", 400, tmp_path),
        "broken": AdaptJob(pairs, str(tmp_path), "decoder", 5, tmp_path),
        "late": AdaptJob(pairs, "tiny", "sam_adapter", 400, tmp_path, max_seconds=1),
    }
    with pytest.raises(UserError, match="no adapter yet"):
        jobs["cancelled"].zipped()
    wait(jobs["cancelled"], until=lambda now: now.step > 0)
    start = time.monotonic()
    jobs["cancelled"].cancel()
    assert jobs["cancelled"].progress().state == "cancelled"
    assert time.monotonic() - start < 8
    assert not (jobs["cancelled"].adapter / "adapter_model.safetensors").exists()
    now = wait(jobs["broken"])
    assert (now.state, now.message.split(":")[0]) == ("failed", "model")
    now = wait(jobs["late"])
    assert now.state == "failed"
    assert "longer than 1 seconds" in now.message
    for job in jobs.values():
        job.close()
    assert not list(tmp_path.glob("adapt_*"))
