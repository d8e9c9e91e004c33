"""COCO annotations become class masks."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.areas import decode_runs, draw_segmentation, has_no_pixel
from hf_sam_adapt.errors import UserError


HEIGHT, WIDTH = 30, 40


def runs_of(mask: np.ndarray) -> list[int]:
    """Uncompressed COCO counts: lengths of alternating runs down the columns, zeros first."""
    flat = mask.T.ravel().astype(int)
    ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]]))).tolist()
    starts = [0, *ends[:-1]]
    return [end - start for start, end in zip(starts, ends)]


def compress(counts: list[int]) -> str:
    """COCO's string, after its C source."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != (-1 if bits & 0x10 else 0)
            text += chr((bits | 0x20 if more else bits) + 48)
    return text


def random_mask(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for _ in range(4):
        y, x = rng.integers(0, 20, 2)
        mask[y : y + rng.integers(1, 10), x : x + rng.integers(1, 20)] ^= True
    return mask


def test_run_lengths_both_ways():
    for seed in range(20):
        mask = random_mask(seed)
        counts = runs_of(mask)
        for stored in (counts, compress(counts)):
            runs = {"counts": stored, "size": [HEIGHT, WIDTH]}
            assert np.array_equal(decode_runs(runs, HEIGHT, WIDTH, "x"), mask)
    with pytest.raises(UserError, match=r"^x: run lengths"):
        decode_runs({"counts": [3, 4], "size": [HEIGHT, WIDTH]}, HEIGHT, WIDTH, "x")


def test_run_lengths_that_break_off_are_damaged():
    text = compress(runs_of(random_mask(0)))
    broken = {"counts": text[:-1] + "o", "size": [HEIGHT, WIDTH]}
    for counts in (broken["counts"], "o"):
        with pytest.raises(UserError, match=r"a damaged segmentation .*break off"):
            draw_segmentation(broken | {"counts": counts}, HEIGHT, WIDTH, "x")
    assert not has_no_pixel("o") and has_no_pixel(compress([HEIGHT * WIDTH])) and not has_no_pixel(text)


def test_rectangles_cover_their_pixels():
    rng = np.random.default_rng(0)
    for _ in range(20):
        (x1, x2), (y1, y2) = np.sort(rng.integers(0, WIDTH + 1, 2)), np.sort(rng.integers(0, HEIGHT + 1, 2))
        expected = np.zeros((HEIGHT, WIDTH), bool)
        expected[y1:y2, x1:x2] = True
        corners = [float(value) for value in (x1, y1, x2, y1, x2, y2, x1, y2)]
        assert np.array_equal(draw_segmentation([corners], HEIGHT, WIDTH, "x"), expected)


def test_polygons_hold_the_pixel_centres_inside():
    rng = np.random.default_rng(1)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
    radius = rng.uniform(5, 14, 9)
    corners = np.stack([20 + radius * np.cos(angles), 15 + radius * np.sin(angles)], axis=1)
    got = draw_segmentation([corners.ravel().tolist()], HEIGHT, WIDTH, "x")
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    winding = np.zeros((HEIGHT, WIDTH))
    for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0)):
        cross = (x1 - x) * (y2 - y) - (y1 - y) * (x2 - x)
        dot = (x1 - x) * (x2 - x) + (y1 - y) * (y2 - y)
        winding += np.arctan2(cross, dot)
    assert np.array_equal(got, np.abs(winding) > np.pi)
    both = draw_segmentation([[0, 0, 3, 0, 3, 3, 0, 3], [2, 2, 6, 2, 6, 6, 2, 6]], HEIGHT, WIDTH, "x")
    assert both.sum() == 9 + 16 - 1
    assert not draw_segmentation([], HEIGHT, WIDTH, "x").any()


def square(x: int, y: int, side: int) -> list[list[int]]:
    return [[x, y, x + side, y, x + side, y + side, x, y + side]]


def write_coco(file, image_folder, count: int, names: dict[int, str], **changes) -> None:
    """`count` images; the annotations of image i are a square per category and, in image 0, a crowd."""
    image_folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for index in range(count):
        name = f"{file.parent.name}_{index}.png"
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), index, np.uint8)).save(image_folder / name)
        images.append({"id": 100 + index, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for number, category in enumerate(names):
            annotations.append(
                {"image_id": 100 + index, "category_id": category, "segmentation": square(10 * number, index, 5)}
            )
    crowd = np.zeros((HEIGHT, WIDTH), bool)
    crowd[25:, 30:] = True
    runs = {"counts": runs_of(crowd), "size": [HEIGHT, WIDTH]}
    annotations.append({"image_id": 100, "category_id": min(names), "segmentation": runs, "iscrowd": 1})
    named = [{"id": category, "name": name} for category, name in names.items()]
    content = {"images": images, "annotations": annotations, "categories": named} | changes
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def test_one_category_is_binary(tmp_path):
    write_coco(tmp_path / "annotations.json", tmp_path, 10, {7: "boat"})
    data = load_segmentation_dataset(tmp_path)
    assert data.num_labels is None and data.id2label == {0: "background", 1: "boat"}
    assert len(data.train) + len(data.val) + len(data.test) == 10 and data.mask_values == "index"
    for split in (data.train, data.val, data.test):
        for sample in split:
            number = int(sample.id.rsplit("_", 1)[1])
            expected = np.zeros((HEIGHT, WIDTH), np.uint8)
            expected[number : number + 5, 0:5] = 1
            if number == 0:
                expected[25:, 30:] = 255
            assert np.array_equal(sample.mask, expected) and (sample.image == number).all()


@pytest.mark.parametrize("count", [254, 255])
def test_more_categories_than_a_mask_has_room_for_are_refused(tmp_path, count):
    names = {number: f"c{number}" for number in range(count)}
    annotations = [
        {"image_id": 100 + number % 4, "category_id": number, "segmentation": square(number % 10, 0, 5)}
        for number in names
    ]
    write_coco(tmp_path / "annotations.json", tmp_path, 4, names, annotations=annotations)
    if count == 254:
        assert load_segmentation_dataset(tmp_path).num_labels == 255
        return
    with pytest.raises(UserError, match="255 categories are annotated, a mask has room for 254"):
        load_segmentation_dataset(tmp_path)


def test_several_categories_as_one_leave_crowds_ignored(tmp_path):
    write_coco(tmp_path / "annotations.json", tmp_path, 10, {3: "car", 1: "bus"})
    data = load_segmentation_dataset(tmp_path, mask_values="binary")
    assert data.num_labels is None
    for split in (data.train, data.val, data.test):
        for sample in split:
            expected = np.zeros((HEIGHT, WIDTH), np.uint8)
            number = int(sample.id.rsplit("_", 1)[1])
            expected[number : number + 5, 0:5] = expected[number : number + 5, 10:15] = 1
            if number == 0:
                expected[25:, 30:] = 255
            assert np.array_equal(sample.mask, expected)


@pytest.mark.parametrize("layout", ["roboflow", "official", "images"])
def test_splits_and_classes(tmp_path, layout):
    categories = {3: "car", 1: "bus"}
    for split, count in (("train", 4), ("valid" if layout == "roboflow" else "val", 2), ("test", 3)):
        file = {
            "roboflow": tmp_path / split / "_annotations.coco.json",
            "official": tmp_path / "annotations" / f"instances_{split}2017.json",
            "images": tmp_path / split / "annotations.json",
        }[layout]
        folder = {"roboflow": "", "official": "2017", "images": "/images"}[layout]
        write_coco(file, tmp_path / f"{split}{folder}", count, categories)
    data = load_segmentation_dataset(tmp_path)
    assert [len(split) for split in (data.train, data.val, data.test)] == [4, 2, 3]
    assert data.num_labels == 3 and data.id2label == {0: "background", 1: "bus", 2: "car"}
    mask = data.train[1].mask
    assert mask[3, 2] == 2 and mask[3, 12] == 1 and np.count_nonzero(mask) == 50
    with pytest.raises(UserError, match="num_labels"):
        load_segmentation_dataset(tmp_path, num_labels=2)


def test_names_of_the_model_and_of_the_file(tmp_path):
    for split in ("train", "test"):
        write_coco(tmp_path / split / "annotations.json", tmp_path / split / "images", 4, {1: "bus", 2: "car"})
    swapped = {0: "background", 1: "Car", 2: "bus"}
    with pytest.raises(UserError, match=r"bus is class 1 in .* and class 2 of the model; set label_map to") as refused:
        load_segmentation_dataset(tmp_path, num_labels=3, id2label=swapped)
    label_map = yaml.safe_load(str(refused.value).split("label_map to ")[1])
    mask = load_segmentation_dataset(tmp_path, num_labels=3, id2label=swapped, label_map=label_map).train[1].mask
    assert mask[3, 2] == 2 and mask[3, 12] == 1  # bus, car
    other = load_segmentation_dataset(tmp_path, num_labels=3, id2label={0: "ground", 1: "bus", 2: "lorry"})
    assert any("2 is car there and lorry here" in note for note in other.notes)
    assert not any("other names" in note for note in load_segmentation_dataset(tmp_path).notes)


def test_bad_annotations(tmp_path):
    file = tmp_path / "annotations.json"
    file.write_text("{")
    with pytest.raises(UserError, match=r"annotations\.json: not a COCO file"):
        load_segmentation_dataset(tmp_path)
    write_coco(file, tmp_path, 2, {1: "x"}, categories={})
    with pytest.raises(UserError, match="'categories' is missing"):
        load_segmentation_dataset(tmp_path)
    write_coco(file, tmp_path, 2, {1: "x"}, categories=[])
    with pytest.raises(UserError, match="category 1 is annotated but not listed"):
        load_segmentation_dataset(tmp_path)
    for name, message in (
        ("gone", r"annotations\.json: the image gone0\.png is not in"),
        ("here", "mask of 25x20"),
    ):
        for number in range(2):
            Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / f"here{number}.png")
        images = [{"id": 100 + i, "file_name": f"{name}{i}.png", "height": 20, "width": 25} for i in range(2)]
        write_coco(file, tmp_path, 2, {1: "x"}, images=images)
        with pytest.raises(UserError, match=message):
            load_segmentation_dataset(tmp_path)
    for part, item, message in (
        ("images", {"id": 100, "width": 9, "height": 5}, "number 1 of images has no 'file_name'"),
        ("annotations", {"image_id": 100, "segmentation": []}, "number 1 of annotations has no 'category_id'"),
        ("categories", "x", "number 1 of categories has no 'id'"),
    ):
        write_coco(file, tmp_path, 2, {1: "x"}, **{part: [item]})
        with pytest.raises(UserError, match=message):
            load_segmentation_dataset(tmp_path)
    far = [[[0, 0, x, 0, 3, 3]] for x in (1e300, 10**400, float("nan"))]
    for segmentation in ([[0, 0, 3]], {"size": [HEIGHT, WIDTH]}, 5, *far):
        with pytest.raises(UserError, match=r"^x: a damaged segmentation"):
            draw_segmentation(segmentation, HEIGHT, WIDTH, "x")
    write_coco(file, tmp_path, 2, {1: "x"}, annotations=[])
    with pytest.raises(UserError, match="no annotations"):
        load_segmentation_dataset(tmp_path)
