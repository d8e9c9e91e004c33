"""Data that would score as a success and teach nothing: refused, or counted and said."""

import json
from io import BytesIO

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.data import Sample, load_segmentation_dataset
from hf_sam_adapt.doctor import examine_dataset
from hf_sam_adapt.errors import UserError


SIZE = (12, 16)


def mask_with(*values: int) -> np.ndarray:
    """A column of each value, the last one in all further columns."""
    mask = np.full(SIZE, values[-1], np.uint8)
    mask[:, : len(values)] = values
    return mask


def write_split(root, split: str, masks) -> None:
    for index, mask in enumerate(masks):
        for kind, array in (("images", np.full((*SIZE, 3), 90 + index, np.uint8)), ("masks", mask)):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / split / kind / f"{index:03d}.png")


GOOD = [mask_with(1, 0), mask_with(0, 1, 0), mask_with(1, 1, 0)]
# masks of the training split, keys, what is said
TEACH_NOTHING = {
    "empty": ([mask_with(0)], {}, "no foreground"),
    "empty as pictures": ([mask_with(0)], {"mask_values": "binary"}, "no foreground"),
    "empty and ignored": ([mask_with(0), mask_with(255)], {"mask_values": "index"}, "no foreground"),
    "mapped away": ([mask_with(1, 0)], {"label_map": {1: 0}}, "no foreground"),
    "full": ([mask_with(1)], {}, "no background"),
    "white pictures": ([mask_with(255)], {}, "no background"),
    "classes 1 and 2 read as binary": ([mask_with(1, 2)], {"mask_values": "binary"}, "no background"),
    "foreground and ignored": ([mask_with(1, 255)], {"mask_values": "index"}, "no background"),
    "ignored": ([mask_with(255)], {"mask_values": "index"}, "255 = ignore"),
    "mapped to ignore": ([mask_with(0, 1)], {"label_map": {0: 255, 1: 255}}, "255 = ignore"),
    "one class of three": ([mask_with(2), mask_with(2, 255)], {"num_labels": 3}, "only the class 2"),
    "the background of three": ([mask_with(0)], {"num_labels": 3}, "no foreground"),
}


@pytest.mark.parametrize("case", TEACH_NOTHING)
def test_training_masks_that_teach_nothing_are_an_error(case, tmp_path):
    masks, keys, message = TEACH_NOTHING[case]
    write_split(tmp_path, "train", masks * 4)
    write_split(tmp_path, "test", GOOD)
    with pytest.raises(UserError, match=message) as error:
        load_segmentation_dataset(tmp_path, **keys)
    assert "\n" not in str(error.value)
    assert not examine_dataset(tmp_path, processes=0, **keys).ok


@pytest.mark.parametrize("masks", [GOOD, [mask_with(0)] * 30 + GOOD[:1], [mask_with(1)] * 9 + [mask_with(0)]])
def test_few_masks_with_objects_are_enough(masks, tmp_path):
    for split in ("train", "val", "test"):
        write_split(tmp_path, split, masks)
    assert len(load_segmentation_dataset(tmp_path).train) == len(masks)


def test_foreground_that_the_sample_missed_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_sam_adapt.data.scan.SCANNED", 4)
    write_split(tmp_path, "train", [mask_with(0)] * 30 + GOOD[:1])
    write_split(tmp_path, "val", GOOD)
    assert len(load_segmentation_dataset(tmp_path).train) == 31
    (tmp_path / "train/masks/030.png").write_bytes((tmp_path / "train/masks/000.png").read_bytes())
    with pytest.raises(UserError, match="no foreground in 31 training masks"):
        load_segmentation_dataset(tmp_path)


@pytest.mark.parametrize("masks", [[mask_with(0)], [mask_with(1)], [mask_with(255), mask_with(0)]])
def test_validation_masks_that_choose_nothing_choose_nothing(masks, tmp_path):
    write_split(tmp_path, "train", GOOD * 3)
    write_split(tmp_path, "val", masks)
    data = load_segmentation_dataset(tmp_path, mask_values="index")
    assert not data.val_chooses and data.measured == ("train", data.train)
    assert data.notes[-1] == "no test split: the final evaluation uses the training images"
    assert any("validation masks: they choose no checkpoint" in note for note in data.notes)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_split_is_an_error(split, tmp_path):
    for name in ("train", "val", "test"):
        write_split(tmp_path, name, GOOD if name != split else ())
    for kind in ("images", "masks"):
        (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match=rf"{split}.*no images"):
        load_segmentation_dataset(tmp_path)
    table = datasets.Dataset.from_dict({"image": [mask_with(9)] * 3, "mask": GOOD})
    tables = {name: table if name != split else table.select([]) for name in ("train", "val", "test")}
    with pytest.raises(UserError, match=split):
        load_segmentation_dataset(datasets.DatasetDict(tables))


def encoded(array) -> dict:
    buffer = BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("column", ["image", "mask"])
@pytest.mark.parametrize("kind", ["all", "some", "empty", "lists"])
def test_empty_cells_are_counted(column, kind):
    cells = {"image": [encoded(np.full((*SIZE, 3), 9, np.uint8))] * 6, "mask": [encoded(mask) for mask in GOOD * 2]}
    if kind == "lists":
        cells = {"image": [np.full((*SIZE, 3), 9).tolist()] * 6, "mask": [mask.tolist() for mask in GOOD * 2]}
    nothing = {"bytes": None, "path": None} if kind == "empty" else None
    places = range(6) if kind == "all" else (2, 5)
    cells[column] = [nothing if place in places else cell for place, cell in enumerate(cells[column])]
    table = datasets.Dataset.from_dict(cells)
    with pytest.raises(UserError, match=rf"{len(places)} of 6 rows have no {column}, such as row {min(places)}"):
        load_segmentation_dataset(table)


def test_keys_of_a_label_map_that_match_nothing_are_said(tmp_path):
    write_split(tmp_path, "train", GOOD * 3)
    notes = load_segmentation_dataset(tmp_path, label_map={1: 1, 7: 0, 9: 255}).notes
    assert [note for note in notes if "label_map" in note] == ["label_map: no mask that was looked at holds 7, 9"]
    assert not any("label_map" in note for note in load_segmentation_dataset(tmp_path, label_map={1: 1}).notes)


def write_coco(root, images, annotations, categories=({"id": 1, "name": "cell"},), name="annotations.json") -> None:
    root.mkdir(exist_ok=True, parents=True)
    for image in images:
        Image.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(root / image["file_name"])
    content = {"images": images, "annotations": annotations, "categories": list(categories)}
    (root / name).write_text(json.dumps(content))


def coco_images(ids):
    return [{"id": id, "file_name": f"{place}.png", "height": 12, "width": 16} for place, id in enumerate(ids)]


def square(image_id, category=1, **more):
    return {"image_id": image_id, "category_id": category, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]], **more}


SPELLINGS = {
    "text for numbers": (lambda i: i, str),
    "numbers for text": (str, lambda i: i),
    "floats for numbers": (lambda i: i, float),
    "text on both sides": (str, str),
    "leading zeros": (lambda i: f"{i:06d}", lambda i: i),
    "words": (lambda i: f"scene-{i}", lambda i: f"scene-{i}"),
}


@pytest.mark.parametrize("case", SPELLINGS)
def test_ids_of_coco_are_equal_however_they_are_spelt(case, tmp_path):
    of_image, of_annotation = SPELLINGS[case]
    images = coco_images([of_image(index) for index in range(8)])
    categories = [{"id": of_image(4), "name": "cell"}]
    annotations = [square(of_annotation(index), of_annotation(4)) for index in range(8)]
    write_coco(tmp_path, images, annotations, categories)
    data = load_segmentation_dataset(tmp_path)
    assert data.id2label == {0: "background", 1: "cell"} and not any("left out" in note for note in data.notes)
    assert all(sample.mask.sum() == 64 for split in (data.train, data.val, data.test) for sample in split)


def test_annotations_without_an_image_are_counted(tmp_path):
    strays = [square(100 + index) for index in range(3)]
    boxes = [{"image_id": 0, "category_id": 1, "bbox": [1, 1, 5, 5]}] * 2
    write_coco(tmp_path, coco_images(range(6)), [square(index) for index in range(6)] + strays + boxes)
    told = {"left out: 3 x annotation that names no image", "left out: 2 x object with a box only"}
    assert told <= set(load_segmentation_dataset(tmp_path).notes)
    assert told <= set(convert_annotations("coco", tmp_path, tmp_path / "out"))
    write_coco(tmp_path, coco_images(range(6)), strays)
    for read in (load_segmentation_dataset, lambda root: convert_annotations("coco", root, root / "other")):
        with pytest.raises(UserError, match=r"no annotation belongs to one of its 6 images \(image_id 100"):
            read(tmp_path)


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_split_of_coco_without_annotations_is_an_error(split, tmp_path):
    for name in ("train", "val", "test"):
        annotations = [square(index) for index in range(4)] if name != split else []
        write_coco(tmp_path / name, coco_images(range(4)), annotations, name="_annotations.coco.json")
    with pytest.raises(UserError, match=rf"{split}/_annotations\.coco\.json: no annotation belongs"):
        load_segmentation_dataset(tmp_path)


@pytest.mark.parametrize(
    "images, categories, message",
    [
        (coco_images([0, "0"]), [{"id": 1, "name": "cell"}], "the id 0 is there 2 times under images"),
        (
            coco_images([0, 1]),
            [{"id": 1, "name": "a"}, {"id": "1", "name": "b"}],
            "the id 1 is there 2 times",
        ),
        ([coco_images([0])[0], coco_images([1])[0]], [{"id": 1, "name": "a"}], "the file_name 0.png is there 2 times"),
    ],
)
def test_ids_that_are_there_twice_are_an_error(images, categories, message, tmp_path):
    write_coco(tmp_path, images, [square(0)], categories)
    with pytest.raises(UserError, match=message):
        load_segmentation_dataset(tmp_path)


@pytest.mark.parametrize("masks", [[mask_with(0)], [mask_with(255)], [mask_with(0), mask_with(255)]])
@pytest.mark.parametrize("num_labels", [None, 3])
def test_scores_need_foreground(masks, num_labels, sam_folder):
    from peft import get_peft_model
    from sams import random_sam

    from hf_sam_adapt import CwsamConfig
    from hf_sam_adapt.evaluation import evaluate
    from hf_sam_adapt.evaluation.classes import evaluate_classes
    from hf_sam_adapt.sam.processing import SamAdaptProcessor

    image, processor = np.full((*SIZE, 3), 90, np.uint8), SamAdaptProcessor(image_size=64, patch_size=8)
    split = [Sample(image, mask, str(index), index) for index, mask in enumerate(masks)]
    with pytest.raises(UserError, match=rf"none of the {len(masks)} masks that are scored holds any foreground"):
        if num_labels is None:
            evaluate(random_sam(), processor, split, ["none", "box"], adapted=False)
        else:
            model = get_peft_model(random_sam(), CwsamConfig(num_labels=3))
            evaluate_classes(model, processor, split, num_labels)


def test_an_image_that_is_ignored_everywhere_does_not_count():
    from sams import random_sam

    from hf_sam_adapt.evaluation import evaluate
    from hf_sam_adapt.sam.processing import SamAdaptProcessor

    image, processor = np.full((*SIZE, 3), 90, np.uint8), SamAdaptProcessor(image_size=64, patch_size=8)
    split = [Sample(image, mask, str(i), i) for i, mask in enumerate([mask_with(0, 1, 0), mask_with(255)])]
    model = random_sam()
    one, both = (
        evaluate(model, processor, part, ["none"], adapted=False, metrics=["mae"]) for part in (split[:1], split)
    )
    scores = [result.test["none"]["zero_shot"] for result in (one, both)]
    assert scores[1] == pytest.approx(scores[0], rel=1e-5) and len(both.records) == 2
