"""COCO annotations: polygons and run lengths drawn into one class mask per image."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError, first_line
from .channels import load_header, load_image
from .folder import SPLIT_NAMES
from .images import IGNORE, Header
from .walk import find_named, one_form


if TYPE_CHECKING:
    import datasets


FILE_NAMES = ("annotations.json", "_annotations.coco.json")
_FIELDS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}


class CocoReader:
    """Reads rows with the columns image (path), height, width and objects (JSON list: class, segmentation, crowd).

    Args:
        channels: of the images; None = RGB photographs.
    """

    checked_rows: int | None = None
    draws_ignored = True

    def __init__(self, channels: int | None = None) -> None:
        self.channels = channels

    def name(self, row: dict[str, Any]) -> str:
        return f"annotation of {row['image']}"

    def path(self, row: dict[str, Any]) -> str | None:
        return row["image"]

    def headers(self, row: dict[str, Any]) -> tuple[Header, Header]:
        return load_header(row["image"], self.channels), Header(row["height"], row["width"], lossy=False)

    def read_image(self, row: dict[str, Any]) -> np.ndarray:
        return load_image(row["image"], self.channels)

    def read_mask(self, row: dict[str, Any]) -> tuple[np.ndarray, bool]:
        """Later objects cover earlier ones; crowds are ignored pixels."""
        mask = np.zeros((row["height"], row["width"]), np.uint8)
        for item in json.loads(row["objects"]):
            value = IGNORE if item["crowd"] else item["class"]
            mask[draw_segmentation(item["segmentation"], row["height"], row["width"], self.name(row))] = value
        return mask, False

    def read_instances(self, row: dict[str, Any]) -> np.ndarray:
        """uint8 (H, W): the number of the object that covers a pixel, of at most 254, 0 = none or a crowd."""
        instances, number = np.zeros((row["height"], row["width"]), np.uint8), 0
        for item in json.loads(row["objects"]):
            number += not item["crowd"] and number < IGNORE
            value = 0 if item["crowd"] or number == IGNORE else number
            instances[draw_segmentation(item["segmentation"], row["height"], row["width"], self.name(row))] = value
        return instances


def draw_segmentation(segmentation: list | dict, height: int, width: int, name: str) -> np.ndarray:
    """Polygons [[x, y, x, y, …], …] or a run-length dictionary -> bool (height, width)."""
    mask = np.zeros((height, width), bool)
    try:
        if isinstance(segmentation, dict):
            return decode_runs(segmentation, height, width, name)
        for polygon in segmentation:
            mask |= fill_polygon(np.asarray(polygon, np.float64).reshape(-1, 2), height, width)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name}: a damaged segmentation ({first_line(error)}); mend the annotation") from error
    return mask


def fill_polygon(corners: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool (height, width): the pixels whose centres lie inside `corners` (n, 2), (x, y) from the image's corner."""
    x1, y1 = corners.T[:, :, None]  # (n, 1)
    x2, y2 = np.roll(corners, -1, axis=0).T[:, :, None]
    centres = np.arange(height) + 0.5
    edges, rows = np.nonzero((y1 <= centres) != (y2 <= centres))  # edges that cross a row of centres
    x1, y1, x2, y2 = x1[edges, 0], y1[edges, 0], x2[edges, 0], y2[edges, 0]
    crossings = x1 + (centres[rows] - y1) * (x2 - x1) / (y2 - y1)
    # Every crossing turns the rest of its row from outside to inside or back.
    turns = np.zeros((height, width + 1), np.int32)
    np.add.at(turns, (rows, np.ceil(crossings - 0.5).astype(int).clip(0, width)), 1)
    return turns.cumsum(axis=1)[:, :width] % 2 == 1


def decode_runs(runs: dict, height: int, width: int, name: str) -> np.ndarray:
    """COCO's run lengths (a list, or its compressed string) -> bool (height, width)."""
    counts = runs["counts"]
    if isinstance(counts, str):
        counts = _decompress(counts)
    if list(runs.get("size", (height, width))) != [height, width] or sum(counts) != height * width:
        raise UserError(f"{name}: run lengths of another size than the image ({width}x{height}); mend the annotation")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T  # columns first


def _decompress(text: str) -> list[int]:
    """COCO's string: 5 bits a character, low bits first, from the fourth number on the difference to two before."""
    counts: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = ord(text[position]) - 48
            value |= (bits & 0x1F) << shift
            more = bool(bits & 0x20)
            shift += 5
            position += 1
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def find_annotations(root: Path) -> dict[str, Path]:
    """Annotation file per split ("all" for one file at the top); empty if `root` is no COCO folder."""
    found = {}
    for split, folders in SPLIT_NAMES.items():
        names = [root / folder / name for folder in folders for name in FILE_NAMES]
        names += [
            path for folder in folders for path in sorted((root / "annotations").glob(f"instances_{folder}*.json"))
        ]
        path = next((path for path in names if path.is_file()), None)
        if path:
            found[split] = path
    if not found:
        path = next((root / name for name in FILE_NAMES if (root / name).is_file()), None)
        found = {"all": path} if path else {}
    return found


def coco_tables(
    root: Path, files: dict[str, Path]
) -> tuple[dict[str, datasets.Dataset], dict[int, str], Counter[str]]:
    """Tables for `CocoReader`; class to name: 0 is the background, categories follow by id; what is left out."""
    contents = {split: _load(path) for split, path in files.items()}
    categories = {item["id"]: item["name"] for content in contents.values() for item in content["categories"]}
    used = {item["category_id"] for content in contents.values() for item in content["annotations"]}
    if not used:
        raise UserError(f"{root}: the COCO files hold no annotations")
    unknown = used - set(categories)
    if unknown:
        raise UserError(f"{root}: category {min(unknown, key=str)} is annotated but not listed under categories")
    # Roboflow lists a super-category that nothing is annotated with.
    classes = {category: index for index, category in enumerate(sorted(used, key=_by_number), start=1)}
    id2label = {0: "background"} | {index: categories[category] for category, index in classes.items()}
    left_out: Counter[str] = sum((_left_out(files[split], content) for split, content in contents.items()), Counter())
    tables = {split: _table(root, files[split], split, content, classes) for split, content in contents.items()}
    return tables, id2label, left_out


def _by_number(key: int | str) -> tuple[bool, int | str]:
    return isinstance(key, str), key


def _left_out(file: Path, content: dict) -> Counter[str]:
    """What of the annotations is not drawn, and how often. Raises `UserError` where none of them is."""
    annotations, images = content["annotations"], {item["id"] for item in content["images"]}
    strays = [item["image_id"] for item in annotations if item["image_id"] not in images]
    if len(strays) == len(annotations):
        why = f"image_id {strays[0]!r}, for example, is no image's" if strays else "there are none"
        raise UserError(f"{file}: no annotation belongs to one of its {len(images)} images ({why}); mend the file")
    boxes = sum(not item.get("segmentation") for item in annotations)
    return Counter({"annotation that names no image": len(strays), "object with a box only": boxes})


def _load(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not a COCO file ({error}); it must be a JSON object") from error
    if missing:
        raise UserError(f"{path}: not a COCO file, the list {missing[0]!r} is missing")
    for part, fields in _FIELDS.items():
        for place, item in enumerate(content[part]):
            absent = [field for field in fields if not isinstance(item, dict) or field not in item]
            if absent:
                raise UserError(f"{path}: number {place + 1} of {part} has no {absent[0]!r}; mend the file")
            for field in ("id", "image_id", "category_id"):
                if field in fields:
                    item[field] = _same_id(item[field])
    for part, field in (("images", "id"), ("images", "file_name"), ("categories", "id")):
        for value, count in Counter(str(item[field]) for item in content[part]).most_common(1):
            if count > 1:
                raise UserError(f"{path}: the {field} {value} is there {count} times under {part}; each needs its own")
    return content


def _same_id(value: Any) -> int | str:
    """An id as it is compared: tools write 7, "7" and 7.0 for the same one."""
    try:
        return int(value) if isinstance(value, str) or float(value) == int(value) else str(value)
    except (TypeError, ValueError, OverflowError):
        return str(value)


def _table(root: Path, file: Path, split: str, content: dict, classes: dict[int, int]) -> datasets.Dataset:
    import datasets

    objects: dict[int, list] = {}
    for item in content["annotations"]:
        objects.setdefault(item["image_id"], []).append(
            {
                "class": classes[item["category_id"]],
                "segmentation": item.get("segmentation") or [],
                "crowd": bool(item.get("iscrowd")),
            }
        )
    folders = [file.parent, file.parent / "images", root / file.stem.removeprefix("instances_"), root / split]
    folders += [root / "images" / split, root / "images", root]
    images = sorted(content["images"], key=lambda item: item["file_name"])
    return datasets.Dataset.from_dict(
        {
            "id": [one_form(str(Path(item["file_name"]).with_suffix("")).replace("/", "_")) for item in images],
            "image": [_locate(item["file_name"], folders, file) for item in images],
            "height": [item["height"] for item in images],
            "width": [item["width"] for item in images],
            "objects": [json.dumps(objects.get(item["id"], [])) for item in images],
        }
    )


def _locate(name: str, folders: list[Path], file: Path) -> str:
    for folder in folders:
        found = find_named(folder, name)
        if found is not None:
            return str(found)
    raise UserError(f"{file}: the image {name} is not in {folders[0]} nor beside it; put the images there")
