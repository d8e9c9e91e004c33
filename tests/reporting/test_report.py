"""The printed table, metrics.json's writing, overlays and samples.png."""

import copy
import json
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image
from sams import perturb, random_sam

from hf_sam_adapt.evaluation import evaluate
from hf_sam_adapt.files import write_json
from hf_sam_adapt.inference.loading import build_model
from hf_sam_adapt.reporting.report import (
    ABSENT,
    MASK_COLOURS,
    TRUTH_COLOURS,
    cost_line,
    hide_names,
    overlay,
    print_table,
    save_samples,
    truth_colour,
)
from hf_sam_adapt.sam.processing import SamAdaptProcessor


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


def test_outlines_grow_with_the_image():
    image, mask = np.zeros((1280, 1000, 3), np.uint8), np.zeros((1280, 1000), bool)
    mask[100:400, 100:400] = True
    full = (overlay(image, mask, (10, 200, 30)) == (10, 200, 30)).all(axis=-1)
    assert full[250, 100:400].tolist() == [True] * 4 + [False] * 292 + [True] * 4
    alone = overlay(image, mask, (10, 200, 30), tint=False)
    assert (alone[250, 104:396] == 0).all() and (alone[full] == (10, 200, 30)).all()


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((70, 140, 50), 1),  # leaves
        ((150, 190, 110), 1),  # pale leaves
        ((20, 60, 15), 1),  # a dark wood
        ((120, 120, 120), 0),
        ((205, 80, 120), 0),  # tissue
        ((30, 90, 200), 0),  # sea
    ],
)
def test_the_truth_has_a_colour_that_the_image_lacks(colour, expected):
    noise = np.random.default_rng(0).normal(0, 12, (90, 120, 3))
    image = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    assert truth_colour(image) == TRUTH_COLOURS[expected]


def test_without_a_free_colour_the_truth_has_the_rarest():
    image = np.zeros((40, 100, 3), np.uint8)
    for place, colour in enumerate(TRUTH_COLOURS):
        image[:, 10 * place : 10 * place + 10] = colour
    image[:, 40:] = TRUTH_COLOURS[0]
    assert truth_colour(image) != TRUTH_COLOURS[0]


def sorted_by_iou(result, kind):
    """Best, median and worst of five."""
    return sorted(result.records, key=lambda record: -record.scores[kind]["adapted"].iou)[::2]


def test_samples_have_no_gaps_and_names_that_can_be_hidden(tmp_path):
    base, processor = random_sam(seed=5), SamAdaptProcessor(image_size=64, patch_size=8)
    split = make_split(3)
    for sample, (height, width) in zip(split, ((40, 200), (64, 64), (200, 90))):
        sample.image = np.random.default_rng(0).integers(0, 250, (height, width, 3)).astype(np.uint8)
        sample.mask = np.zeros((height, width), np.uint8)
        sample.mask[5:20, 5:30] = 1
    for name in ("s", "patient_7" * 30, "$x_{1$"):
        split[0].id = name
        result = evaluate(base, processor, split, ["none"], adapted=False, progress=False)
        save_samples(tmp_path / "samples.png", base, processor, split, result, adapted=False)
        named = np.asarray(Image.open(tmp_path / "samples.png").convert("RGB"))
        white = (named == 255).all(axis=-1)
        titles = 3 * 22 / len(named)
        assert white.mean() < titles + (1 - titles) * 4 / 320 + 0.01
        hide_names(tmp_path / "samples.png")
        hidden = np.asarray(Image.open(tmp_path / "samples.png").convert("RGB"))
        bands = np.flatnonzero((named != hidden).any(axis=(1, 2)))
        assert len(bands) <= 3 * 22 and (hidden[bands, 62:320] == 255).all()
        assert np.array_equal(named[:, 320:], hidden[:, 320:]) and (hidden[:22, :62] < 255).any()  # "best" stays
        again = (tmp_path / "samples.png").read_bytes()
        hide_names(tmp_path / "samples.png")
        assert (tmp_path / "samples.png").read_bytes() == again


@pytest.mark.parametrize("kind", ["none", "box", "point", "mask"])
def test_samples_of_best_median_and_worst(tmp_path, kind):
    base = random_sam(seed=5)
    adapted = perturb(build_model("sam_adapter", {}, base)).eval()
    processor, split = SamAdaptProcessor(image_size=64, patch_size=8), make_split(5)
    result = evaluate(adapted, processor, split, [kind, "none"][: 2 - (kind == "none")], progress=False)
    save_samples(tmp_path / "samples.png", adapted, processor, split, result)
    picture = np.asarray(Image.open(tmp_path / "samples.png").convert("RGB"))
    shapes = [split[record.index].mask.shape for record in sorted_by_iou(result, kind)]
    heights = [22 + round(316 * height / width) for height, width in shapes]
    assert picture.shape == (sum(heights), 1280, 3)
    # Each column of each row holds a picture, and only the third and fourth one may hold the colours of the masks.
    rows = np.split(picture, np.cumsum(heights)[:-1])
    panels = [np.split(row, 4, axis=1) for row in rows]
    assert all(panel.std(axis=(0, 1)).min() > 20 for line in panels for panel in line)
    for line, record in zip(panels, sorted_by_iou(result, kind), strict=True):
        shown = (line[3] == MASK_COLOURS["adapted"]).all(axis=-1).any()
        assert shown == (record.scores[kind]["adapted"].prediction > 0)


def test_samples_of_fewer_images_and_columns(tmp_path):
    base = random_sam(seed=5)
    full = perturb(build_model("full", {}, copy.deepcopy(base))).eval()
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    heights = [22 + round(316 * (60 + index) / 80) for index in range(3)]
    for count in (1, 2, 3):
        split = make_split(count)
        result = evaluate(base, processor, split, ["none"], adapted=False, progress=False)
        save_samples(tmp_path / "samples.png", base, processor, split, result, adapted=False)
        assert Image.open(tmp_path / "samples.png").size == (3 * 320, sum(heights[:count]))
    result = evaluate(full, processor, split, ["none"], zero_shot_model=base, progress=False)
    save_samples(tmp_path / "samples.png", full, processor, split, result, zero_shot_model=base)
    assert Image.open(tmp_path / "samples.png").size == (4 * 320, sum(heights))
