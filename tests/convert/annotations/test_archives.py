"""Errors about files in an archive name the archive, not the folder it is unpacked to."""

import json
import tempfile
import zipfile

import pytest

from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.errors import UserError


SHAPE = {"label": "a", "points": [[0, 0], [9, 0], [9, 9]], "shape_type": "polygon"}
LABELME = {"imagePath": "gone.png", "imageData": None, "imageHeight": 20, "imageWidth": 20, "shapes": [SHAPE]}
COCO = {"images": [{"id": 1, "file_name": "gone.png", "height": 9, "width": 9}], "categories": [], "annotations": []}
BROKEN = [
    ("labelme", "a.json", "{"),
    ("labelme", "deep/a.json", json.dumps(LABELME)),
    ("coco", "annotations.json", "{}"),
    ("coco", "annotations.json", json.dumps(COCO)),
    ("yolo", "data.yaml", "train: images"),
    ("yolo", "data.yaml", "names: [a]\ntrain: images"),
    ("cvat", "annotations.xml", "<"),
    ("cvat", "annotations.xml", "<annotations/>"),
]


@pytest.mark.parametrize("top", ["", "export/"])
@pytest.mark.parametrize(("format", "file", "text"), BROKEN)
def test_the_file_is_named_in_its_archive(tmp_path, format, file, text, top):
    archive = tmp_path / "labels.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr(top + file, text)
        content.writestr(f"{top}other.txt", "")
    with pytest.raises(UserError) as raised:
        convert_annotations(format, archive, tmp_path / "out")
    assert raised.value.where.startswith(f"{archive}/{top}".rstrip("/"))
    said = str(raised.value).replace(str(archive), "")
    assert tempfile.gettempdir() not in said and not (tmp_path / "out").exists()
