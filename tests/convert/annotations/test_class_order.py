"""Classes of predicted labelme and GeoJSON files keep the values that they have in the model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from annotation_files import BOXES, HEIGHT, WIDTH, classes_of, converted, photograph, write_labelme

from hf_sam_adapt.data.annotations import CHECKED
from hf_sam_adapt.reporting.results import WRITERS
from hf_sam_adapt.reporting.results.result import ImageResult, WriteOptions


CLASSES = ["background", "zebra", "never", "ant"]


def predicted(format, folder, mask, classes=CLASSES, name="1"):
    """Write a mask as `predict` does, checked by a person."""
    photograph(folder / f"{name}.jpg")
    chances = np.stack([mask == label for label in range(len(classes))]).astype(np.float32)
    prediction = SimpleNamespace(mask=mask, probabilities=chances, classes=classes, instances=None)
    writer = WRITERS[format](folder, WriteOptions(classes=classes, simplify=0))
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    file = folder / writer.write(ImageResult(folder / f"{name}.jpg", name, image, prediction))[format]
    if format == "labelme":
        content = json.loads(file.read_text())
        file.write_text(json.dumps(content | {"flags": {CHECKED: True}}))
    return file


def mask_of(first, second):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for (x1, y1, x2, y2), value in zip(BOXES, (first, second)):
        mask[y1:y2, x1:x2] = value
    return mask


@pytest.mark.parametrize("format", ["labelme", "geojson"])
def test_values_are_those_of_the_model(tmp_path, format):
    mask = mask_of(1, 3)
    source = predicted(format, tmp_path / "results", mask).parent
    notes, masks = converted(format, source, tmp_path, images=tmp_path / "results")
    assert classes_of(notes) == "1 zebra, 2 never, 3 ant"
    assert np.array_equal(masks["masks/1.png"], mask)


@pytest.mark.parametrize("format", ["labelme", "geojson"])
@pytest.mark.parametrize(
    ("others", "wanted"),
    [
        (["background", "ant", "zebra"], "1 ant, 2 zebra"),  # the lists contradict each other
        (["background", "ant"], "1 ant, 2 zebra"),
        (CLASSES, "1 zebra, 2 never, 3 ant"),
    ],
)
def test_only_lists_that_agree_are_taken(tmp_path, format, others, wanted):
    predicted(format, tmp_path / "results", mask_of(1, 3))
    value = others.index("ant")
    source = predicted(format, tmp_path / "results", mask_of(value, value), others, "2").parent
    notes, _ = converted(format, source, tmp_path, images=tmp_path / "results")
    assert classes_of(notes) == wanted


def test_what_a_person_adds_comes_after_and_people_alone_are_sorted(tmp_path):
    source = predicted("labelme", tmp_path / "results", mask_of(3, 3)).parent
    photograph(source / "2.jpg")
    write_labelme(source, {"2.jpg": BOXES}, label="Aardvark")
    assert classes_of(converted("labelme", source, tmp_path)[0]) == "1 zebra, 2 never, 3 ant, 4 Aardvark"
    (source / "1.json").unlink()
    (tmp_path / "again").mkdir()
    assert classes_of(converted("labelme", source, tmp_path / "again")[0]) == "1 Aardvark"


def test_one_class_that_a_person_renames_is_gone(tmp_path):
    file = predicted("labelme", tmp_path / "results", mask_of(1, 1), ["background", "object"])
    file.write_text(file.read_text().replace('"label": "object"', '"label": "polyp"'))
    assert classes_of(converted("labelme", file.parent, tmp_path)[0]) == "1 polyp"
