"""Annotations that draw nothing, or lie outside of their images, are counted, and refused where they are most."""

import numpy as np
import pytest
from annotation_files import HEIGHT, WIDTH, WRITERS, mask_of, photograph, write_coco, write_cvat, write_labelme
from PIL import Image

from hf_sam_adapt.cli import main
from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.doctor import examine_dataset
from hf_sam_adapt.errors import UserError


GOOD = [(5, 6, 20, 30), (30, 10, 45, 35), (46, 2, 58, 12)]


def scaled(box, x, y):
    return tuple(value * factor for value, factor in zip(box, (x, y, x, y)))


# What becomes of a box of the truth, and what is said of it.
FAULTS = {
    "coordinates in 0..1": (lambda box: scaled(box, 1 / WIDTH, 1 / HEIGHT), "in the first pixel"),
    "of an image four times as large": (lambda box: tuple(value + 70 for value in scaled(box, 4, 4)), "outside"),
    "moved out to the left": (lambda box: (box[0] - 56, box[1], box[2] - 56, box[3]), "outside"),
    "moved out to the bottom": (lambda box: (box[0], box[1] + 38, box[2], box[3] + 38), "outside"),
    "smaller than a pixel": (lambda box: (box[0] + 0.6, box[1] + 0.6, box[0] + 0.9, box[1] + 0.9), "too small"),
    "without height": (lambda box: (box[0], box[1], box[2], box[1]), "too small"),
    "from the last pixel on": (lambda box: (59, 39, 75, 60), "outside"),
}
# A line of YOLO holds fractions of the image: beyond 1.1 it is refused by itself.
YOLO_FAULTS = {
    "fractions of fractions": (lambda box: scaled(box, 1 / WIDTH, 1 / HEIGHT), "in the first pixel"),
    "smaller than a pixel": FAULTS["smaller than a pixel"],
    "from the last pixel on": (lambda box: (59, 39, 65, 43), "outside"),
}
CASES = [(format, *fault) for format in ("labelme", "coco", "cvat") for fault in FAULTS.values()]
CASES += [("yolo", *fault) for fault in YOLO_FAULTS.values()]


def annotated(root, format, boxes, **keys):
    for name in boxes:
        photograph(root / name)
    WRITERS[format](root, boxes, **keys)
    return root


@pytest.mark.parametrize(("format", "move", "said"), CASES)
def test_most_of_them_is_an_error(tmp_path, format, move, said):
    boxes = {f"{number}.jpg": [move(box) for box in GOOD] for number in range(4)}
    boxes["4.jpg"] = GOOD
    root = annotated(tmp_path / "source", format, boxes)
    with pytest.raises(UserError, match=f"^12 of 15 areas are .*{said}.*; ") as error:
        convert_annotations(format, root, tmp_path / "out")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()
    if format == "coco":
        with pytest.raises(UserError, match=f"^12 of 15 areas are .*{said}"):
            load_segmentation_dataset(root)
        assert not examine_dataset(root).ok


@pytest.mark.parametrize(("format", "move", "said"), CASES)
def test_a_few_of_them_are_counted(tmp_path, format, move, said, capsys):
    boxes = {f"{number}.jpg": GOOD for number in range(5)}
    boxes["2.jpg"] = [move(GOOD[0]), GOOD[1]]
    root = annotated(tmp_path / "source", format, boxes)
    assert main(["convert", "--from", format, str(root), "--out", str(tmp_path / "out")]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("1 x area ")]
    assert len(lines) == 1 and said in lines[0] and "2." in lines[0].partition("such as in ")[2]
    mask = np.asarray(Image.open(tmp_path / "out/masks/1.png"))
    assert np.array_equal(mask == 1, mask_of(GOOD))
    if format == "coco":
        assert lines[0] in load_segmentation_dataset(root).notes
        main(["doctor", str(root)])
        assert f": {lines[0]}; " in capsys.readouterr().out  # of a finding


def test_areas_that_reach_over_the_edge_are_usual(tmp_path):
    boxes = {"0.jpg": [(-5, -4, 20, 20), (40, 20, 70, 45)], "1.jpg": [(0, 0, 1, 1), (59, 39, 60, 40), (3, 3, 4, 4)]}
    for format in ("labelme", "coco", "cvat"):
        root = annotated(tmp_path / format, format, boxes)
        notes = convert_annotations(format, root, tmp_path / f"{format}_out")
        # One pixel in the corner is what coordinates in 0..1 look like.
        assert [note.partition(", ")[0] for note in notes[1:]] == ["1 x area in the first pixel of its image"]
        mask = np.asarray(Image.open(tmp_path / f"{format}_out/masks/0.png"))
        assert np.array_equal(mask == 1, mask_of(boxes["0.jpg"]))


PORTRAIT = [(2, 30, 30, 58), (5, 4, 20, 20)]  # on the photograph as it is shown, 40 wide and 60 high
LYING = [(30, 2, 58, 30), (4, 5, 20, 20)]  # on the photograph as it is stored


@pytest.mark.parametrize("write", [write_labelme, write_coco, write_cvat])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("shown", [True, False])
def test_a_photograph_that_exif_turns(tmp_path, write, orientation, shown):
    """Right where size and coordinates are of one orientation, refused where they are not."""
    root, format = tmp_path / "source", write.__name__.removeprefix("write_")
    photograph(root / "0.jpg", orientation=orientation)
    sizes = [(WIDTH, HEIGHT), (HEIGHT, WIDTH)]
    boxes = PORTRAIT if shown else LYING
    write(root, {"0.jpg": boxes}, sizes[not shown])
    convert_annotations(format, root, tmp_path / "right")
    mask = np.asarray(Image.open(tmp_path / "right/masks/0.png"))
    image = np.asarray(Image.open(tmp_path / "right/images/0.png"))
    assert np.array_equal(mask == 1, mask_of(boxes, sizes[not shown])) and image.shape[:2] == mask.shape
    write(root, {"0.jpg": boxes}, sizes[shown])
    with pytest.raises(UserError, match=r"1 of 2 areas lie outside of .* EXIF turns .*; swap width and height"):
        convert_annotations(format, root, tmp_path / "out")
    if format == "coco":
        with pytest.raises(UserError, match="EXIF"):
            load_segmentation_dataset(root)


@pytest.mark.parametrize("format", ["labelme", "coco", "cvat"])
def test_areas_under_later_ones_are_counted(tmp_path, format):
    """Two small ones under a large one of another class; one under its own class leaves its pixels."""
    small, large = [(8, 8, 12, 12), (30, 8, 34, 12)], (5, 5, 40, 30)
    root = annotated(tmp_path / "source", format, {"0.jpg": [*small, large, (6, 6, 9, 9)]})
    file = root / {"labelme": "0.json", "coco": "annotations.json", "cvat": "annotations.xml"}[format]
    text = file.read_text()
    if format == "coco":
        text = text.replace('"category_id": 1', '"category_id": 2', 2)
        text = text.replace('"categories": [', '"categories": [{"id": 2, "name": "nucleus"}, ')
    else:
        text = text.replace('"cell"', '"nucleus"', 2)
    file.write_text(text)
    notes = convert_annotations(format, root, tmp_path / "out")
    assert notes[1:] == ["2 x area that later ones of other classes cover as a whole"]


def test_masks_without_any_class_are_refused(tmp_path):
    for folder in ("JPEGImages", "SegmentationClass"):
        (tmp_path / "cvat" / folder).mkdir(parents=True)
    (tmp_path / "cvat/labelmap.txt").write_text("background:0,0,0::\ncell:128,0,0::\n")
    photograph(tmp_path / "cvat/JPEGImages/a.jpg")
    Image.fromarray(np.full((HEIGHT, WIDTH, 3), 9, np.uint8)).save(tmp_path / "cvat/SegmentationClass/a.png")
    with pytest.raises(UserError, match="no mask holds a pixel of cell"):
        convert_annotations("cvat", tmp_path / "cvat", tmp_path / "out")


def test_boxes_alone_are_no_areas(tmp_path):
    root = annotated(tmp_path / "source", "coco", {"0.jpg": GOOD, "1.jpg": GOOD})
    file = root / "annotations.json"
    file.write_text(file.read_text().replace("segmentation", "polygons"))
    for read in (load_segmentation_dataset, lambda root: convert_annotations("coco", root, tmp_path / "out")):
        with pytest.raises(UserError, match="all objects have a box only"):
            read(root)
