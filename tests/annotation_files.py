"""The same boxes and names in the files of each annotation tool."""

import json
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from hf_sam_adapt.convert.annotations import convert_annotations


HEIGHT, WIDTH = 40, 60
ORIENTATION = 0x0112
BOXES = [(5, 6, 20, 30), (30, 10, 45, 35)]


def photograph(path: Path, size=(HEIGHT, WIDTH), orientation: int = 1) -> None:
    """A picture of `size` as it is stored, (height, width), with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = sum(map(ord, path.stem))
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)


def corners(x1, y1, x2, y2) -> list[list[float]]:
    return [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]


def mask_of(boxes, size=(HEIGHT, WIDTH)) -> np.ndarray:
    """Boxes of whole pixels -> bool `size`."""
    mask = np.zeros(size, bool)
    for x1, y1, x2, y2 in boxes:
        mask[max(0, y1) : y2, max(0, x1) : x2] = True
    return mask


def write_labelme(root: Path, boxes: dict[str, list], size=(HEIGHT, WIDTH), label="cell", **shape) -> None:
    for name, found in boxes.items():
        shapes = [
            {"label": label, "points": corners(*box), "shape_type": "polygon", "flags": {}} | shape for box in found
        ]
        content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": name, "imageData": None}
        content |= {"imageHeight": size[0], "imageWidth": size[1]}
        (root / name).with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")


def coco(boxes: dict[str, list], size=(HEIGHT, WIDTH)) -> dict:
    """The content of a COCO file."""
    images = [
        {"id": number, "file_name": name, "height": size[0], "width": size[1]} for number, name in enumerate(boxes)
    ]
    annotations = [
        {"image_id": number, "category_id": 1, "segmentation": [np.ravel(corners(*box)).tolist()], "iscrowd": 0}
        for number, found in enumerate(boxes.values())
        for box in found
    ]
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}


def write_coco(root: Path, boxes: dict[str, list], size=(HEIGHT, WIDTH)) -> None:
    (root / "annotations.json").write_text(json.dumps(coco(boxes, size)))


def cvat(boxes: dict[str, list], size=(HEIGHT, WIDTH), label="cell") -> str:
    """The content of an annotations.xml."""
    lines = ["<annotations>"]
    for number, (name, found) in enumerate(boxes.items()):
        lines.append(f'<image id="{number}" name="{name}" width="{size[1]}" height="{size[0]}">')
        for box in found:
            points = ";".join(f"{x},{y}" for x, y in corners(*box))
            lines.append(f'<polygon label="{label}" z_order="0" points="{points}"/>')
        lines.append("</image>")
    return "\n".join([*lines, "</annotations>"])


def write_cvat(root: Path, boxes: dict[str, list], size=(HEIGHT, WIDTH)) -> None:
    (root / "annotations.xml").write_text(cvat(boxes, size))


def yolo_lines(boxes, size=(HEIGHT, WIDTH), label=0) -> str:
    return "".join(
        f"{label} " + " ".join(f"{x / size[1]:.6f} {y / size[0]:.6f}" for x, y in corners(*box)) + "\n"
        for box in boxes
    )


def write_yolo(root: Path, boxes: dict[str, list], size=(HEIGHT, WIDTH)) -> None:
    (root / "data.yaml").write_text(yaml.safe_dump({"train": ".", "names": ["cell"]}))
    for name, found in boxes.items():
        (root / name).with_suffix(".txt").write_text(yolo_lines(found, size))


WRITERS = {"labelme": write_labelme, "coco": write_coco, "cvat": write_cvat, "yolo": write_yolo}


def converted(format, root, tmp_path, **keys) -> tuple[list[str], dict[str, np.ndarray]]:
    """The notes, and the masks by their paths."""
    out = tmp_path / "out"
    notes = convert_annotations(format, root, out, **keys)
    masks = {path.relative_to(out).as_posix(): np.asarray(Image.open(path)) for path in sorted(out.rglob("masks/*"))}
    return notes, masks


def classes_of(notes) -> str:
    return notes[0].partition("classes: 0 background, ")[2]


def samples(source) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Image and stored mask of every id."""
    rows = [row for table in source.tables.values() for row in table]
    return {row["id"]: (source.reader.read_image(row), source.reader.read_mask(row)[0]) for row in rows}
