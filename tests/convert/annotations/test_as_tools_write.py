"""Names, sizes, categories and labels as annotation tools write them."""

import json
import shutil

import numpy as np
import pytest
from annotation_files import (
    BOXES,
    HEIGHT,
    WIDTH,
    classes_of,
    coco,
    converted,
    cvat,
    mask_of,
    photograph,
    write_coco,
    write_cvat,
    write_labelme,
    yolo_lines,
)
from PIL import Image

from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.annotations import find_image
from hf_sam_adapt.errors import UserError


# How an image `my photos/näh 1.jpg` is named.
NAMES = {
    "as it is": "my photos/näh 1.jpg",
    "backslashes": "my photos\\näh 1.jpg",
    "of Windows": "C:\\Users\\Anna\\data\\my photos\\näh 1.jpg",
    "absolute, of another machine": "/home/anna/data/my photos/näh 1.jpg",
    "percent": "my%20photos/n%C3%A4h%201.jpg",
    "an address": "https://host:8080/data/my%20photos/n%C3%A4h%201.jpg?token=a%2Fb",
    "Label Studio's local files": "/data/local-files/?d=my%20photos/n%C3%A4h%201.jpg",
    "Label Studio's COCO with images": "..\\..\\label-studio\\media\\upload\\4\\my photos\\näh 1.jpg",
    "upward": "../elsewhere/my photos/näh 1.jpg",
    "decomposed": "my photos/na\u0308h 1.jpg",
    "upper case": "my photos/NÄH 1.JPG",
    "a dot": "./my photos/näh 1.jpg",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize("format", ["labelme", "coco", "cvat"])
def test_the_image_that_a_name_means(tmp_path, format, name):
    root = tmp_path / "source"
    photograph(root / "my photos/näh 1.jpg")
    boxes = {name: BOXES}
    if format == "labelme":
        write_labelme(root, {"a.jpg": BOXES})
        (root / "a.json").write_text(json.dumps(json.loads((root / "a.json").read_text()) | {"imagePath": name}))
    else:
        {"coco": write_coco, "cvat": write_cvat}[format](root, boxes)
    notes, masks = converted(format, root, tmp_path)
    stem = "a" if format == "labelme" else "my photos_" + ("NÄH 1" if "NÄH" in name else "näh 1")
    assert list(masks) == [f"masks/{stem}.png"] or format == "cvat" or name.startswith("..")
    assert np.array_equal(next(iter(masks.values())), mask_of(BOXES))
    assert len(notes) == 1
    if format == "coco":
        data = load_segmentation_dataset(root)
        assert np.array_equal(data.train[0].mask, mask_of(BOXES))
        assert np.array_equal(data.train[0].image, np.asarray(Image.open(root / "my photos/näh 1.jpg")))


def test_of_a_foreign_path_the_longest_end_decides(tmp_path):
    for folder in ("day1", "day2"):
        photograph(tmp_path / "photos" / folder / "1.jpg")
    photograph(tmp_path / "photos/1.jpg")
    for name in ("D:\\x\\day1\\1.jpg", "/y/day2/1.jpg"):
        found = find_image(name, [tmp_path / "photos"], "x")
        day = "day1" if "day1" in name else "day2"
        assert found == (tmp_path / "photos" / day / "1.jpg", f"{day}_1")
    with pytest.raises(UserError, match=r"^x: the image D:\\2.jpg is not in"):
        find_image("D:\\2.jpg", [tmp_path / "photos"], "x")


@pytest.mark.parametrize("names", [("day1/1.jpg", "day2/1.jpg"), ("1.jpg", "1.jpg"), ("1.jpg", "1.JPG")])
def test_two_names_of_one_file_are_refused(tmp_path, names):
    root = tmp_path / "source"
    photograph(root / "1.jpg")
    content = coco({names[0]: BOXES, "x": BOXES})
    content["images"][1]["file_name"] = names[1]
    (root / "annotations.json").write_text(json.dumps(content))
    for read in (load_segmentation_dataset, lambda root: convert_annotations("coco", root, tmp_path / "out")):
        with pytest.raises(UserError, match=r"annotations.json: .* (is there 2 times|are one file)"):
            read(root)


def test_an_archive_names_no_images_outside_of_it(tmp_path):
    photograph(tmp_path / "private.jpg")
    (tmp_path / "source").mkdir()
    write_coco(tmp_path / "source", {str(tmp_path / "private.jpg"): BOXES})
    archive = shutil.make_archive(str(tmp_path / "export"), "zip", tmp_path / "source")
    with pytest.raises(UserError, match=r"private\.jpg, which is not in the archive"):
        convert_annotations("coco", archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


SIZES = {
    "text": (str(HEIGHT), str(WIDTH)),
    "float": (float(HEIGHT), float(WIDTH)),
    "text of a float": (f"{HEIGHT}.0", f"{WIDTH}.0"),
    "null": (None, None),
    "half null": (None, WIDTH),
    "empty": ("", ""),
    "zero": (0, 0),
    "X-AnyLabeling's template": (-1, -1),
    "absent": None,
}


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("format", ["labelme", "coco", "cvat"])
def test_sizes(tmp_path, format, size):
    root = tmp_path / "source"
    photograph(root / "1.jpg")
    keys = dict(zip(("height", "width"), size)) if size else {}
    if format == "coco":
        content = coco({"1.jpg": BOXES})
        content["images"] = [{"id": 0, "file_name": "1.jpg", **keys}]
        (root / "annotations.json").write_text(json.dumps(content))
        data = load_segmentation_dataset(root)
        assert np.array_equal(data.train[0].mask, mask_of(BOXES))
    elif format == "labelme":
        write_labelme(root, {"1.jpg": BOXES})
        content = json.loads((root / "1.json").read_text())
        del content["imageHeight"], content["imageWidth"]
        content |= {f"image{key.title()}": value for key, value in keys.items()}
        (root / "1.json").write_text(json.dumps(content))
    else:
        said = "".join(f'{key}="{value}" ' for key, value in keys.items() if value is not None)
        text = cvat({"1.jpg": BOXES}).replace(f'width="{WIDTH}" height="{HEIGHT}"', said)
        (root / "annotations.xml").write_text(text)
    _, masks = converted(format, root, tmp_path)
    assert np.array_equal(masks["masks/1.png"], mask_of(BOXES))


@pytest.mark.parametrize("size", ["wide", 40.5, True, [40], float("nan"), 1e300, pytest.param(10**400, id="huge")])
def test_what_is_no_size(tmp_path, size):
    root = tmp_path / "source"
    photograph(root / "1.jpg")
    content = coco({"1.jpg": BOXES})
    content["images"][0]["height"] = size
    (root / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"1\.jpg: height: .* is not a height or width"):
        load_segmentation_dataset(root)


def test_categories_of_one_name_are_one_class(tmp_path):
    """The ids of a name differ within a file, and between the files of two splits."""
    root = tmp_path / "source"
    listed = [
        [{"id": 1, "name": "cell"}, {"id": 2, "name": "cell "}, {"id": "3", "name": "nucleus"}],
        [{"id": 2, "name": "nucleus"}, {"id": 9, "name": "cell"}],
    ]
    used = [[1, 2, 3], ["9", 2.0]]
    truth = [[1, 1, 2], [1, 2]]
    boxes = [(2, 2, 10, 10), (20, 2, 30, 10), (40, 2, 50, 10)]
    for split, categories, ids in zip(("train", "val"), listed, used):
        photograph(root / split / "1.jpg")
        content = coco({"1.jpg": boxes[: len(ids)]}) | {"categories": categories}
        for item, category in zip(content["annotations"], ids):
            item["category_id"] = category
        (root / split / "_annotations.coco.json").write_text(json.dumps(content))
    notes, masks = converted("coco", root, tmp_path)
    assert classes_of(notes) == "1 cell, 2 nucleus"
    assert notes[1:] == ["2 x category that is called cell, taken as one class"]
    data = load_segmentation_dataset(root)
    assert data.num_labels == 3 and data.id2label == {0: "background", 1: "cell", 2: "nucleus"}
    for split, values in zip(("train", "val"), truth):
        expected = np.zeros((HEIGHT, WIDTH), np.uint8)
        for box, value in zip(boxes, values):
            expected[mask_of([box])] = value
        assert np.array_equal(masks[f"{split}/masks/1.png"], expected)
        assert np.array_equal(getattr(data, split)[0].mask, expected)


@pytest.mark.parametrize("part", ["images", "categories"])
def test_an_id_of_two_is_refused(tmp_path, part):
    root = tmp_path / "source"
    content = coco({"1.jpg": BOXES, "2.jpg": BOXES})
    for image in content["images"]:
        photograph(root / image["file_name"])
        image["id"] = 0 if part == "images" else image["id"]
    content["categories"] += [{"id": "1", "name": "nucleus"}] if part == "categories" else []
    (root / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"the id [01] is there 2 times under {part}"):
        load_segmentation_dataset(root)


@pytest.mark.parametrize("format", ["yolo", "cvat", "labelme"])
def test_names_that_are_there_twice_are_one_class(tmp_path, format):
    root = tmp_path / "source"
    photograph(root / "1.jpg")
    if format == "yolo":
        (root / "data.yaml").write_text("names: [cell, cell]\ntrain: .\n")
        (root / "1.txt").write_text(yolo_lines(BOXES[:1]) + yolo_lines(BOXES[1:], label=1))
    elif format == "cvat":
        names = "<meta><labels><label><name>cell</name></label><label><name> cell</name></label></labels></meta>"
        text = cvat({"1.jpg": BOXES}).replace("<annotations>", f"<annotations>{names}")
        (root / "annotations.xml").write_text(text.replace('label="cell"', 'label="cell "', 1))
    else:
        write_labelme(root, {"1.jpg": BOXES})
        (root / "1.json").write_text((root / "1.json").read_text().replace('"cell"', '"cell "', 1))
    notes, masks = converted(format, root, tmp_path)
    assert classes_of(notes) == "1 cell" and np.array_equal(masks["masks/1.png"], mask_of(BOXES))


NOTHING = {"null": None, "empty": "", "blank": "  ", "absent": ...}


# VIA writes null for a category whose name is no number; without one an annotation of COCO is damaged.
@pytest.mark.parametrize(
    ("format", "label"),
    [(format, label) for format in ("labelme", "cvat") for label in NOTHING.values()] + [("coco", None)],
)
@pytest.mark.parametrize("every", [True, False])
def test_areas_without_a_label(tmp_path, format, label, every):
    """Where all are, they are the only class; else they are of an unknown one, and ignored."""
    root = tmp_path / "source"
    photograph(root / "1.jpg")
    if format == "labelme":
        write_labelme(root, {"1.jpg": BOXES})
        content = json.loads((root / "1.json").read_text())
        items, key = content["shapes"], "label"
    elif format == "coco":
        content = coco({"1.jpg": BOXES})
        items, key = content["annotations"], "category_id"
    else:
        said = {None: "", ...: ""}.get(label, f'label="{label}"')
        text = cvat({"1.jpg": BOXES}).replace('label="cell"', said, 2 if every else 1)
        (root / "annotations.xml").write_text(text)
        items = []
    for item in items if every else items[:1]:
        item[key] = label
        if label is ...:
            del item[key]
    if items:
        (root / ("1.json" if format == "labelme" else "annotations.json")).write_text(json.dumps(content))
    notes, masks = converted(format, root, tmp_path)
    expected = np.where(mask_of(BOXES[:1]), 1 if every else 255, mask_of(BOXES[1:]))
    assert np.array_equal(masks["masks/1.png"], expected)
    assert classes_of(notes) == ("1 object" if every else "1 cell")
    what = "object without a category" if format == "coco" else "area without a label"
    taken = "as all are, taken as object" if every else "ignored (255)"
    assert notes[1:] == [f"{2 if every else 1} x {what}, {taken}"]
    if format == "coco":
        data = load_segmentation_dataset(root)
        assert np.array_equal(data.train[0].mask, expected) and notes[1] in data.notes


@pytest.mark.parametrize(
    ("file", "image"),
    [
        ("annotations/instances_default.json", "images/1.jpg"),  # CVAT
        ("annotations/instances_default.json", "images/default/1.jpg"),
        ("annotations/instances_Train.json", "images/Train/1.jpg"),
        ("result.json", "images/1.jpg"),  # Label Studio
        ("via_export_coco.json", "1.jpg"),
    ],
)
def test_where_coco_files_lie(tmp_path, file, image):
    root = tmp_path / "source"
    photograph(root / image)
    (root / file).parent.mkdir(exist_ok=True)
    (root / file).write_text(json.dumps(coco({"1.jpg": BOXES})))
    _, masks = converted("coco", root, tmp_path)
    assert np.array_equal(next(iter(masks.values())), mask_of(BOXES))
    assert np.array_equal(load_segmentation_dataset(root).train[0].mask, mask_of(BOXES))


def test_coco_as_via_writes_it(tmp_path):
    """A polygon without the list around it, ids and flags as text."""
    root = tmp_path / "source"
    photograph(root / "1.jpg")
    content = coco({"1.jpg": BOXES})
    for item in content["annotations"]:
        item |= {"segmentation": item["segmentation"][0], "image_id": "0", "category_id": "1", "iscrowd": "0"}
    (root / "annotations.json").write_text(json.dumps(content))
    _, masks = converted("coco", root, tmp_path)
    assert np.array_equal(masks["masks/1.png"], mask_of(BOXES))
    assert np.array_equal(load_segmentation_dataset(root).train[0].mask, mask_of(BOXES))


@pytest.mark.parametrize(("name", "value"), [("background", 0), ("__ignore__", 255)])
def test_a_category_of_background_or_ignored_pixels(tmp_path, name, value):
    """Read directly and converted they are the same."""
    root = tmp_path / "source"
    photograph(root / "1.jpg")
    hole = (8, 10, 14, 20)
    content = coco({"1.jpg": [*BOXES, hole]})
    content["categories"].append({"id": 0, "name": name})
    content["annotations"][-1]["category_id"] = 0
    (root / "annotations.json").write_text(json.dumps(content))
    expected = np.where(mask_of([hole]), value, mask_of(BOXES))
    notes, masks = converted("coco", root, tmp_path)
    data = load_segmentation_dataset(root)
    assert classes_of(notes) == "1 cell" and data.id2label == {0: "background", 1: "cell"}
    assert np.array_equal(masks["masks/1.png"], expected) and np.array_equal(data.train[0].mask, expected)


def test_cvat_masks_of_images_with_dots(tmp_path):
    root = tmp_path / "source"
    photograph(root / "JPEGImages/frame.1.JPG")
    photograph(root / "JPEGImages/frame.JPG", size=(9, 9))
    (root / "SegmentationClass").mkdir()
    (root / "labelmap.txt").write_bytes("background:0,0,0::\n细胞:128,0,0::\n".encode("gbk"))
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[mask_of(BOXES)] = (128, 0, 0)
    Image.fromarray(pixels).save(root / "SegmentationClass/frame.1.png")
    notes, masks = converted("cvat", root, tmp_path)
    assert classes_of(notes) == "1 细胞" and np.array_equal(masks["masks/frame.1.png"], mask_of(BOXES))
