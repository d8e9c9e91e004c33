"""Every kind of shape of labelme and X-AnyLabeling that covers an area becomes one; others are counted."""

import base64
import json
from io import BytesIO

import numpy as np
import pytest
from annotation_files import (
    BOXES,
    HEIGHT,
    WIDTH,
    converted,
    corners,
    mask_of,
    photograph,
    write_labelme,
)
from PIL import Image

from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.errors import UserError


TURNED = [[10.3, 20.0], [25.3, 5.0], [40.3, 20.0], [25.3, 35.0]]  # a square that stands on its corner


def encoded(mode: str, bitmap: np.ndarray) -> str:
    stream = BytesIO()
    Image.fromarray((bitmap * 255).astype(np.uint8)).convert(mode).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


BITMAP = np.arange(24).reshape(4, 6) % 5 > 1
KINDS = {
    "oriented_rectangle": (TURNED, {}),
    "rotation": (TURNED, {"direction": 0.785, "difficult": False}),
    "quadrilateral": (TURNED, {}),
    "polygon": (TURNED, {}),
    None: (TURNED, {}),
    "rectangle": ([[40, 35], [10, 5]], {}),
    "rectangle of four": (corners(10, 5, 40, 35), {"shape_type": "rectangle"}),
    "circle": ([[25, 20], [40, 20]], {}),
    "mask": ([[10, 5], [15, 8]], {"mask": encoded("L", BITMAP)}),
    "mask in colours": ([[10, 5], [15, 8]], {"mask": encoded("RGB", BITMAP), "shape_type": "mask"}),
    "mask with alpha": ([[10, 5], [15, 8]], {"mask": encoded("RGBA", BITMAP), "shape_type": "mask"}),
    "mask as address": (
        [[10, 5], [15, 8]],
        {"mask": "data:image/png;base64," + encoded("1", BITMAP), "shape_type": "mask"},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_of_labelme_that_cover_an_area(tmp_path, kind):
    points, more = KINDS[kind]
    root = tmp_path / "source"
    photograph(root / "1.jpg")
    write_labelme(root, {"1.jpg": BOXES[:1]}, points=points, **{"shape_type": kind} | more)
    notes, masks = converted("labelme", root, tmp_path)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    if "mask" in str(kind):
        expected = np.zeros((HEIGHT, WIDTH), bool)
        expected[5:9, 10:16] = BITMAP
    elif "rectangle" in str(kind) and points is not TURNED:
        expected = mask_of([(10, 5, 40, 35)])
    elif kind == "circle":
        expected = (columns - 25) ** 2 + (rows - 20) ** 2 <= 15**2
    else:
        expected = np.abs(columns - 25.3) + np.abs(rows - 20) < 15
    unequal = int((masks["masks/1.png"] != expected).sum())
    assert unequal <= (4 if kind == "circle" else 0) and expected.any() and len(notes) == 1


@pytest.mark.parametrize("kind", ["point", "points", "line", "linestrip", "cuboid", "polygon of two", "empty"])
def test_shapes_of_labelme_without_an_area_are_counted(tmp_path, kind):
    root = tmp_path / "source"
    photograph(root / "1.jpg")
    write_labelme(root, {"1.jpg": BOXES})
    content = json.loads((root / "1.json").read_text())
    points = [] if kind == "empty" else [[1, 2], [20, 30]]
    shape_type = "polygon" if kind in ("polygon of two", "empty") else kind
    content["shapes"].append({"label": "cell", "points": points, "shape_type": shape_type})
    (root / "1.json").write_text(json.dumps(content))
    notes, masks = converted("labelme", root, tmp_path)
    assert notes[1:] == [f"left out: 1 x {shape_type} without an area"]
    assert np.array_equal(masks["masks/1.png"], mask_of(BOXES))


def test_points_of_three_numbers_are_no_corners(tmp_path):
    root = tmp_path / "source"
    photograph(root / "1.jpg")
    write_labelme(root, {"1.jpg": BOXES[:1]}, points=[[1, 2, 2], [9, 2, 2], [9, 9, 2], [1, 9, 2]])
    with pytest.raises(UserError, match=r"1\.json: shape 0 is damaged .*not all x and y"):
        convert_annotations("labelme", root, tmp_path / "out")
