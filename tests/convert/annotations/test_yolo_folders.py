"""YOLO as Ultralytics, Roboflow, Label Studio and CVAT lay it out."""

import numpy as np
import pytest
import yaml
from annotation_files import (
    BOXES,
    classes_of,
    converted,
    mask_of,
    photograph,
    yolo_lines,
)

from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.errors import UserError


def yolo(root, files, **content):
    """Images with their labels, a file name without labels maps to None."""
    for name, boxes in files.items():
        photograph(root / name)
        if boxes is not None:
            label = root / name.replace("images/", "labels/").replace(".jpg", ".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(yolo_lines(boxes))
    (root / "data.yaml").write_text(yaml.safe_dump({"names": ["cell"]} | content))
    return root


def test_yolo_equal_names_in_two_folders(tmp_path):
    files = {f"images/train/{folder}/1.jpg": [box] for folder, box in zip("ab", BOXES)}
    files["images/train/2.jpg"] = BOXES
    _, masks = converted("yolo", yolo(tmp_path / "one", files, train="images/train"), tmp_path)
    expected = {"a_1": BOXES[:1], "b_1": BOXES[1:], "2": BOXES}
    assert {path: mask.tolist() for path, mask in masks.items()} == {
        f"masks/{stem}.png": mask_of(boxes).astype(int).tolist() for stem, boxes in expected.items()
    }


@pytest.mark.parametrize("listed", ["folders", "text"])
def test_yolo_equal_names_in_two_sets(tmp_path, listed):
    root, names = tmp_path / "two", ["north/images/1.jpg", "south/images/1.jpg"]
    yolo(root, dict(zip(names, ([box] for box in BOXES))))
    (root / "train.txt").write_text("".join(f"C:\\data\\two\\{name}\n".replace("/", "\\") for name in names))
    train = ["north/images", "south/images"] if listed == "folders" else "train.txt"
    (root / "data.yaml").write_text(yaml.safe_dump({"names": ["cell"], "train": train, "path": "C:/data/two"}))
    _, masks = converted("yolo", root, tmp_path)
    assert sorted(masks) == ["masks/north_1.png", "masks/south_1.png"]
    for stem, box in zip(("north_1", "south_1"), BOXES):
        assert np.array_equal(masks[f"masks/{stem}.png"], mask_of([box]))


@pytest.mark.parametrize(
    ("images", "labels"), [("Images", "Labels"), ("images", "Labels"), ("IMAGES", "labels"), ("images", "LABELS")]
)
def test_yolo_folders_in_upper_case(tmp_path, images, labels):
    root = yolo(tmp_path / "source", {"images/train/1.jpg": BOXES}, train=f"{images}/train")
    for old, new in (("images", images), ("labels", labels)):
        (root / old).rename(root / f"{old}_")
        (root / f"{old}_").rename(root / new)
    _, masks = converted("yolo", root, tmp_path)
    assert np.array_equal(masks["masks/1.png"], mask_of(BOXES))


@pytest.mark.parametrize("split", ["val", "test"])
def test_yolo_a_split_without_labels_is_left_out(tmp_path, split):
    files = {"images/train/1.jpg": BOXES, "images/train/2.jpg": None}
    files |= {f"images/{split}/{number}.jpg": None for number in "345"}
    root = yolo(tmp_path / "source", files, train="images/train", **{split: f"images/{split}"})
    notes, masks = converted("yolo", root, tmp_path)
    assert sorted(masks) == ["train/masks/1.png", "train/masks/2.png"]
    assert notes[1:] == [
        "1 x image without a label file, taken as background",
        f"left out: 3 x image of {split}, where none has a label file",
    ]


@pytest.mark.parametrize("more", [{}, {"val": "images/val"}])
def test_yolo_training_images_without_labels_are_refused(tmp_path, more):
    root = yolo(
        tmp_path / "source", {"images/train/1.jpg": None, "images/val/2.jpg": BOXES}, train="images/train", **more
    )
    with pytest.raises(UserError, match=r"labels/train/1\.txt: no image of .* has a label file"):
        convert_annotations("yolo", root, tmp_path / "out")


def test_yolo_val_that_is_train_is_taken_once(tmp_path):
    root = yolo(tmp_path / "source", {"images/train/1.jpg": BOXES}, train="images/train", val="images/train")
    notes, masks = converted("yolo", root, tmp_path)
    assert sorted(masks) == ["train/masks/1.png"]
    assert notes[1:] == ["left out: 1 x image of val that is in another split, too"]


YAMLS = {
    "Roboflow": (
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['cell']\n",
        "1 cell",
    ),
    "of Windows": (
        "path: D:\\data\\cells\ntrain: train\\images\nval: valid\\images\nnames:\n  0: cell\n",
        "1 cell",
    ),
    "absolute": (
        "train: /kaggle/input/cells/train/images\nval: /kaggle/input/cells/valid/images\nnames: [cell]\n",
        "1 cell",
    ),
    "keys of another case": ("Train: train/images\nvalidation: valid/images\nnames: [cell]\ntest:\n", "1 cell"),
    "names with a gap": ("train: train/images\nval: valid/images\nnames: {'0': cell, 4: x}\n", "1 cell, 2 x"),
    "names that YAML changes": ("train: train/images\nval: valid/images\nnames: [no]\ntest: null\n", "1 no"),
}


@pytest.mark.parametrize(("text", "classes"), YAMLS.values(), ids=YAMLS)
def test_yolo_yaml(tmp_path, text, classes):
    files = {"train/images/1.jpg": BOXES[:1], "valid/images/1.jpg": BOXES[1:]}
    root = yolo(tmp_path / "source", files)
    (root / "data.yaml").write_text(text)
    (root / "train/labels/1.txt").write_text(yolo_lines(BOXES[:1]).replace("0 ", "0.0 ", 1))
    notes, masks = converted("yolo", root, tmp_path)
    assert classes_of(notes) == classes
    assert np.array_equal(masks["train/masks/1.png"], mask_of(BOXES[:1]))
    assert np.array_equal(masks["val/masks/1.png"], mask_of(BOXES[1:]))
    assert notes[1:] == (["1 x split test, whose folder ../test/images does not exist"] if "../" in text else [])


@pytest.mark.parametrize("line", ["1 .1 .1 .5 .1 .5 .5", "0.5 .1 .1 .5 .1 .5 .5", "x .1 .1 .5 .1 .5 .5"])
def test_yolo_classes_that_are_not_named(tmp_path, line):
    root = yolo(tmp_path / "source", {"images/1.jpg": BOXES}, train="images")
    (root / "data.yaml").write_text("names: {0: cell, 4: other}\ntrain: images\n")
    (root / "labels/1.txt").write_text(line)
    with pytest.raises(UserError, match=r"1\.txt: line 1"):
        convert_annotations("yolo", root, tmp_path / "out")


def test_yolo_key_points_are_no_polygons(tmp_path):
    root = yolo(tmp_path / "source", {"images/1.jpg": BOXES}, train="images", kpt_shape=[4, 2])
    with pytest.raises(UserError, match="key points"):
        convert_annotations("yolo", root, tmp_path / "out")


@pytest.mark.parametrize("splits", [True, False])
def test_yolo_of_label_studio(tmp_path, splits):
    places = ("images/train/1.jpg", "images/val/2.jpg") if splits else ("images/1.jpg", "images/2.jpg")
    root = yolo(tmp_path / "source", dict.fromkeys(places, BOXES))
    (root / "data.yaml").unlink()
    (root / "classes.txt").write_text("cell\n\n")
    (root / "notes.json").write_text("{}")
    notes, masks = converted("yolo", root, tmp_path)
    expected = ["train/masks/1.png", "val/masks/2.png"] if splits else ["masks/1.png", "masks/2.png"]
    assert sorted(masks) == expected and classes_of(notes) == "1 cell"
    assert all(np.array_equal(mask, mask_of(BOXES)) for mask in masks.values())
