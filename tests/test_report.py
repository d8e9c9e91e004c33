"""The printed table, metrics.json's writing, overlays and samples.png."""

import copy
import json
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from sams import perturb, random_sam

from hf_sam_adapt.evaluation import evaluate
from hf_sam_adapt.loading import build_model
from hf_sam_adapt.processing import SamAdaptProcessor
from hf_sam_adapt.report import ABSENT, MASK_COLOURS, cost_line, overlay, print_table, save_samples, write_json


@dataclass
class Sample:
    image: np.ndarray
    mask: np.ndarray
    id: str


def make_split(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    samples = []
    for index in range(count):
        mask = np.zeros((60 + index, 80), np.uint8)
        mask[10:40, 20 : 30 + 8 * index] = 1
        mask[:, :4] = 255
        samples.append(Sample(rng.integers(0, 255, (*mask.shape, 3)).astype(np.uint8), mask, f"image{index}"))
    return samples


def test_table_shows_every_score_and_the_cost(capsys):
    scores = {"iou": 0.12345, "dice": 0.5}
    metrics = {
        "test": {
            "none": {"zero_shot": None, "adapted": {"iou": 0.7771, "dice": 0.8881}, "constant": scores},
            "point": {"zero_shot": scores, "adapted": None, "zero_shot_best_of_3": {"iou": 0.6543, "dice": 0.7}},
        },
        "train": {
            "images_per_second": 12.34,
            "peak_memory_bytes": 1_500_000_000,
            "trainable_parameters": 3569616,
            "adapter_bytes": 20_400,
        },
    }
    print_table(metrics)
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    rows = {row[0]: row[1:] for row in cells}
    assert rows["none"] == [ABSENT, "0.777 / 0.888", "0.123 / 0.500"]
    assert rows["point"] == ["0.123 / 0.500", ABSENT, ABSENT]
    assert rows["point, best of 3"] == ["0.654 / 0.700", ABSENT, ABSENT]
    assert lines[-1] == "12.3 images/s, peak memory 1.5 GB, 3,569,616 trainable parameters, adapter 20.4 KB"
    assert "Test images" in lines[0]


def test_table_names_the_images_it_was_measured_on(capsys):
    print_table({"test": {"box": {"zero_shot": None, "adapted": None}}, "measured_on": "val"})
    assert "Validation images" in capsys.readouterr().out


def test_cost_line_without_a_step():
    cost = {"images_per_second": None, "peak_memory_bytes": 999, "trainable_parameters": 0, "adapter_bytes": 1000}
    assert cost_line(cost) == f"{ABSENT} images/s, peak memory 999 B, 0 trainable parameters, adapter 1.0 KB"


def test_write_json_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "metrics.json"
    for content in ({"a": 1}, {"b": [1, None]}):
        write_json(path, content)
        assert json.loads(path.read_text()) == content
    assert list(tmp_path.iterdir()) == [path]


def test_overlay_tints_inside_and_nothing_outside():
    rng = np.random.default_rng(1)
    image, colour = rng.integers(0, 255, (12, 15, 3)).astype(np.uint8), (30, 110, 230)
    mask = np.zeros((12, 15), bool)
    mask[3:8, 2:9] = True
    before, result = image.copy(), overlay(image, mask, colour)
    assert np.array_equal(image, before) and np.array_equal(result[~mask], image[~mask])
    assert np.array_equal(result[3, 2:9], np.tile(colour, (7, 1)))
    inside = 0.55 * image[4:7, 3:8] + 0.45 * np.array(colour)
    assert np.abs(result[4:7, 3:8] - inside).max() <= 1
    assert np.array_equal(overlay(image, np.zeros_like(mask), colour), image)


@pytest.mark.parametrize("kind", ["none", "box", "point", "mask"])
def test_samples_of_best_median_and_worst(tmp_path, kind):
    base = random_sam(seed=5)
    adapted = perturb(build_model("sam_adapter", {}, base)).eval()
    processor, split = SamAdaptProcessor(image_size=64, patch_size=8), make_split(5)
    result = evaluate(adapted, processor, split, [kind, "none"][: 2 - (kind == "none")], progress=False)
    save_samples(tmp_path / "samples.png", adapted, processor, split, result)
    picture = np.asarray(Image.open(tmp_path / "samples.png").convert("RGB"))
    assert picture.shape == (1020, 1280, 3)
    # Each column of each row holds a picture, and only the third and fourth one may hold the colours of the masks.
    panels = picture.reshape(3, 340, 4, 320, 3).swapaxes(1, 2)  # (row, column, y, x, channel)
    assert (panels.std(axis=(2, 3)).min(axis=-1) > 20).all()
    for row, record in enumerate(sorted(result.records, key=lambda r: -r.scores[kind]["adapted"].iou)[::2]):
        shown = (panels[row, 3] == MASK_COLOURS["adapted"]).all(axis=-1).any()
        assert shown == (record.scores[kind]["adapted"].prediction > 0)


def test_samples_of_fewer_images_and_columns(tmp_path):
    base = random_sam(seed=5)
    full = perturb(build_model("full", {}, copy.deepcopy(base))).eval()
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    for count, rows in ((1, 1), (2, 2), (3, 3)):
        split = make_split(count)
        result = evaluate(base, processor, split, ["none"], adapted=False, progress=False)
        save_samples(tmp_path / "samples.png", base, processor, split, result, adapted=False)
        assert Image.open(tmp_path / "samples.png").size == (3 * 320, rows * 340)
    result = evaluate(full, processor, split, ["none"], zero_shot_model=base, progress=False)
    save_samples(tmp_path / "samples.png", full, processor, split, result, zero_shot_model=base)
    assert Image.open(tmp_path / "samples.png").size == (4 * 320, 3 * 340)
