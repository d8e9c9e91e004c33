"""Annotation files that are not UTF-8."""

import json

import numpy as np
import pytest
from annotation_files import (
    BOXES,
    classes_of,
    coco,
    converted,
    cvat,
    mask_of,
    photograph,
    write_labelme,
    yolo_lines,
)

from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.annotations import read_text
from hf_sam_adapt.errors import UserError


ENCODINGS = {
    "utf-8": ("细胞", "utf-8"),
    "utf-8-sig": ("细胞", "utf-8-sig"),
    "utf-16": ("细胞", "utf-16"),
    "utf-16 without a mark": ("细胞", "utf-16-le"),
    "utf-16 of the other order": ("Zähne", "utf-16-be"),
    "utf-32": ("Zähne", "utf-32"),
    "gbk": ("细胞", "gbk"),
    "gb18030": ("癌症病灶", "gb18030"),
    "cp1252": ("Zähne", "cp1252"),
    "latin-1": ("forêt brûlée", "latin-1"),
    "cp1252 of a pair": ("Segmentação größe", "cp1252"),
}


def annotate_named(root, format, label, encoding):
    """One image whose only class is `label`, in files of an encoding."""
    photograph(root / "1.jpg")
    if format == "labelme":
        write_labelme(root, {"1.jpg": BOXES}, label=label)
        file, text = root / "1.json", json.dumps(json.loads((root / "1.json").read_text()), ensure_ascii=False)
    elif format == "coco":
        content = coco({"1.jpg": BOXES}) | {"categories": [{"id": 1, "name": label}]}
        file, text = root / "annotations.json", json.dumps(content, ensure_ascii=False)
    elif format == "cvat":
        file, text = root / "annotations.xml", cvat({"1.jpg": BOXES}, label=label)
    else:
        (root / "1.txt").write_bytes(yolo_lines(BOXES).encode(encoding))
        file, text = root / "data.yaml", f"names: ['{label}']\ntrain: .\n"
    file.write_bytes(text.encode(encoding))


@pytest.mark.parametrize(("label", "encoding"), ENCODINGS.values(), ids=ENCODINGS)
@pytest.mark.parametrize("format", ["labelme", "coco", "cvat", "yolo"])
def test_encodings(tmp_path, format, label, encoding):
    root = tmp_path / "source"
    annotate_named(root, format, label, encoding)
    notes, masks = converted(format, root, tmp_path)
    assert classes_of(notes) == f"1 {label}" and np.array_equal(masks["masks/1.png"], mask_of(BOXES))
    guessed = [note for note in notes if "file read as" in note]
    assert len(guessed) == (not encoding.startswith("utf")), notes
    if format == "coco":
        data = load_segmentation_dataset(root)
        assert data.id2label[1] == label and len([note for note in data.notes if "file read as" in note]) == len(
            guessed
        )


@pytest.mark.parametrize(("label", "encoding"), [("セル", "shift_jis"), ("細胞", "big5"), ("клетка", "cp1251")])
@pytest.mark.parametrize("format", ["labelme", "coco", "cvat", "yolo"])
def test_an_encoding_that_is_named(tmp_path, format, label, encoding):
    root = tmp_path / "source"
    annotate_named(root, format, label, encoding)
    notes, _ = converted(format, root, tmp_path, encoding=encoding)
    assert classes_of(notes) == f"1 {label}"
    with pytest.raises(UserError, match="not UTF-8, and not utf-8"):
        convert_annotations(format, root, tmp_path / "other", encoding="utf-8")
    with pytest.raises(UserError, match="encoding: klingon is unknown"):
        convert_annotations(format, root, tmp_path / "other", encoding="klingon")


def test_a_declared_encoding_is_believed(tmp_path):
    photograph(tmp_path / "source/1.jpg")
    text = '<?xml version="1.0" encoding="shift_jis"?>\n' + cvat({"1.jpg": BOXES}, label="セル")
    (tmp_path / "source/annotations.xml").write_bytes(text.encode("shift_jis"))
    notes, _ = converted("cvat", tmp_path / "source", tmp_path)
    assert classes_of(notes) == "1 セル"


@pytest.mark.parametrize("content", ["セル".encode("shift_jis"), b"\xef\xbb\xbf\xff", b"\xff\xfe\x00"])
def test_a_text_of_no_clear_encoding_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"a.txt: .*; save it as UTF-8"):
        read_text(tmp_path / "a.txt")
