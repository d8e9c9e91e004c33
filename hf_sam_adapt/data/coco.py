"""COCO annotations: polygons and run lengths drawn into one class mask per image."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .annotations import (
    BACKGROUND_LABELS,
    IGNORE_LABELS,
    ONLY_CLASS,
    find_image,
    image_side,
    is_turned,
    label_of,
    read_text,
)
from .areas import (
    NO_PIXEL,
    OUTSIDE,
    Misplaced,
    check_turn,
    draw_segmentation,
    has_no_pixel,
    misplacement,
    segmentation_bounds,
)
from .channels import load_header, load_image
from .folder import SPLIT_NAMES, has_masks, split_folders
from .images import IGNORE, Header
from .notes import Note, public
from .walk import files_below


if TYPE_CHECKING:
    import datasets


MAX_FILES = 20  # JSON files of other names that are looked into
FILE_NAMES = ("annotations.json", "_annotations.coco.json")
_FIELDS = {
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
    "categories": ("id", "name"),
}
_SPECIAL = (*BACKGROUND_LABELS, *IGNORE_LABELS)


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
            object_ = bool(item["class"]) and not item["crowd"]
            number += object_ and number < IGNORE
            value = number if object_ and number < IGNORE else 0
            instances[draw_segmentation(item["segmentation"], row["height"], row["width"], self.name(row))] = value
        return instances


def find_annotations(root: Path) -> dict[str, Path]:
    """Annotation file per split ("all" for one file without a split); empty if `root` is no COCO folder."""
    files = {}
    named, parts = _json_files(root / "annotations"), split_folders(root)
    for split, folders in SPLIT_NAMES.items():
        names = [parts[split] / name for name in FILE_NAMES if split in parts]
        names += [path for folder in folders for path in named if path.name.lower().startswith(f"instances_{folder}")]
        path = next((path for path in names if path.is_file()), None)
        if path:
            files[split] = path
    if not files:
        usual = [root / name for name in FILE_NAMES if (root / name).is_file()]
        # CVAT writes annotations/instances_default.json, Label Studio result.json.
        others = [] if usual or has_masks(root) else [*_json_files(root), *named]
        # A folder of labelme has many.
        other = [path for path in others if len(others) <= MAX_FILES and _is_coco(path)]
        if usual or len(other) == 1:
            files = {"all": (*usual, *other)[0]}
    return files


def _json_files(folder: Path) -> list[Path]:
    return files_below(folder, {".json"}, deep=False) if folder.is_dir() else []


def _is_coco(path: Path) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return all(f'"{key}"'.encode() in content for key in ("images", *_FIELDS))


@dataclass
class CocoSource:
    """What COCO files hold.

    Attributes:
        tables: per split, for `CocoReader`.
        id2label: class to name: 0 is the background, categories follow by id.
        notes, left_out: what was taken otherwise than written, and what was not taken, and how often.
        misplaced: the areas that draw nothing, or not what was meant.
    """

    tables: dict[str, datasets.Dataset]
    id2label: dict[int, str]
    notes: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    misplaced: Misplaced = field(default_factory=Misplaced)

    def lines(self) -> list[str]:
        """The notes as sentences. Raises `UserError` where most of the areas are misplaced."""
        notes = self.notes + Counter(self.misplaced.notes())
        lines: list[str] = [Note(f"{n} x {what}", f"{n} x {public(what)}") for what, n in sorted(notes.items())]
        return lines + [f"left out: {count} x {what}" for what, count in sorted(self.left_out.items())]


def read_coco_source(
    root: Path, files: Mapping[str, Path], *, channels: int | None = None, encoding: str | None = None
) -> CocoSource:
    """Read the annotation file of each split.

    Categories of one name are one class, whatever their ids in each file.

    Args:
        root: where the folders of images lie.
        files: per split.
        channels: of the images; None = RGB photographs.
        encoding: of a file that is not Unicode, None = guessed.

    Raises:
        UserError: a damaged file, no annotations, a missing image, or one that is listed twice.
    """
    source = CocoSource({}, {0: "background"})
    contents = {split: _load(path, encoding, source.notes) for split, path in files.items()}
    if not any(content["annotations"] for content in contents.values()):
        raise UserError(
            "the COCO files hold no annotations", where=root, fix="annotate something, or name another file"
        )
    names = {split: _used_names(content, files[split]) for split, content in contents.items()}
    if not any(names.values()):
        names = {split: {None: ONLY_CLASS} for split in contents}
    classes = _classes(root, contents, names, source.notes)
    source.id2label |= {index: name for name, index in classes.items()}
    for split, content in contents.items():
        reading = _Split(root, files[split], split, names[split], classes, channels)
        source.tables[split] = reading.table(content, source)
    if not source.misplaced.total:
        raise UserError("all objects have a box only", where=root, fix="export polygons or run lengths")
    return source


def _classes(
    root: Path, contents: Mapping[str, dict], names: Mapping[str, Mapping[Any, str]], notes: Counter[str]
) -> dict[str, int]:
    """Class of each name that is one, in the order of their smallest ids."""
    places: dict[str, tuple[bool, Any]] = {}
    for one in names.values():
        for category, name in one.items():
            place = isinstance(category, str), category
            places[name] = min(places.get(name, place), place)
        for name, count in Counter(one.values()).items():
            if count > 1:
                notes[f"category that is called {name}, taken as one class"] += count
    keys = (_key(item["category_id"]) for content in contents.values() for item in content["annotations"])
    unnamed = sum(key is None for key in keys)
    if unnamed:
        all_ = any(None in one for one in names.values())
        taken = f"as all are, taken as {ONLY_CLASS}" if all_ else "ignored (255)"
        notes[f"object without a category, {taken}"] += unnamed
    ordered = [name for name in sorted(places, key=places.__getitem__) if name not in _SPECIAL]
    if not ordered:
        raise UserError(f"nothing is annotated but {', '.join(places)}", where=root, fix="check the categories")
    if len(ordered) >= IGNORE:
        raise UserError(
            f"{len(ordered)} categories are annotated, a mask has room for {IGNORE - 1} beside the background",
            where=root,
            fix="keep those that you need in the annotations' file",
        )
    return {name: index for index, name in enumerate(ordered, start=1)}


def _used_names(content: dict, file: Path) -> dict[Any, str]:
    """Category id -> name, of those that something is annotated with; Roboflow lists a super-category besides."""
    listed = {_key(item["id"]): label_of(item["name"]) for item in content["categories"]}
    _check_ids(content["categories"], "categories", file)
    used = {_key(item["category_id"]) for item in content["annotations"]} - {None}
    unknown = sorted(str(category) for category in used if listed.get(category) is None)
    if unknown:
        raise UserError(
            f"category {unknown[0]} is annotated but not listed under categories", where=file, fix="add its name"
        )
    return {category: str(listed[category]) for category in used}


def _key(value: Any) -> int | str | None:
    """An id as it is compared: `"3"` and `3.0` are 3."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value if value is None or isinstance(value, (int, str)) else str(value)


def _check_ids(items: list[dict], part: str, file: Path) -> None:
    """Refuse ids and file names that are there more than once."""
    for field_ in ("id", "file_name") if part == "images" else ("id",):
        values = (str(_key(item[field_]) if field_ == "id" else item[field_]) for item in items)
        for value, count in Counter(values).most_common(1):
            if count > 1:
                often = f"the {field_} {value} is there {count} times"
                raise UserError(f"{often} under {part}", where=file, fix="each needs its own")


def _flag(value: Any) -> bool:
    return value.strip().lower() in ("1", "true") if isinstance(value, str) else bool(value)


def _load(path: Path, encoding: str | None, notes: Counter[str]) -> dict:
    text, page = read_text(path, encoding)
    if page is not None:
        notes[f"file read as {page}, as it is not UTF-8; if names look wrong, save it as UTF-8"] += 1
    try:
        content = json.loads(text)
        missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    except (ValueError, AttributeError) as error:
        raise UserError(f"not a COCO file ({error})", where=path, fix="it must be a JSON object") from error
    if missing:
        raise UserError(f"not a COCO file, the list {missing[0]!r} is missing", where=path)
    for part, fields in _FIELDS.items():
        for place, item in enumerate(content[part]):
            # VIA writes the category null where its name is no number.
            absent = [
                key
                for key in fields
                if not isinstance(item, dict) or key not in item or (item[key] is None and key != "category_id")
            ]
            if absent:
                raise UserError(
                    f"number {place + 1} of {part} has no {absent[0]!r}", where=path, fix="correct the file"
                )
    return content


@dataclass
class _Split:
    """Makes the table of a split from its file."""

    root: Path
    file: Path
    split: str
    names: Mapping[Any, str]
    classes: Mapping[str, int]
    channels: int | None
    folders: list[Path] = field(init=False)

    def __post_init__(self) -> None:
        root, named = self.root, self.file.stem.removeprefix("instances_")
        self.folders = [self.file.parent, self.file.parent / "images", root / named, root / self.split]
        self.folders += [root / "images" / self.split, root / "images" / named, root / "images", root]

    def table(self, content: dict, source: CocoSource) -> datasets.Dataset:
        import datasets

        objects: dict[Any, list] = {_key(item["id"]): [] for item in content["images"]}
        _check_ids(content["images"], "images", self.file)
        strays: list[dict] = []
        for item in content["annotations"]:
            objects.get(_key(item["image_id"]), strays).append(self._object(item))
        if len(strays) == len(content["annotations"]):
            stray = content["annotations"][0]["image_id"] if strays else None
            why = "there are none" if stray is None else f"image_id {stray!r}, for example, is no image's"
            images = f"no annotation belongs to one of its {len(objects)} images"
            raise UserError(f"{images} ({why})", where=self.file, fix="correct the file")
        if strays:
            source.left_out["annotation that names no image"] += len(strays)
        columns: dict[str, list] = {name: [] for name in ("id", "image", "height", "width", "objects")}
        entries: dict[str, str] = {}
        for item in sorted(content["images"], key=lambda item: str(item["file_name"])):
            name = str(item["file_name"])
            path, stem = find_image(name, self.folders, str(self.file))
            other = entries.setdefault(str(path.resolve()), name)
            if len(entries) == len(columns["id"]):
                raise UserError(
                    f"{other} and {name} are one file, {path.name}", where=self.file, fix="give each entry its own"
                )
            height, width = self._size(item, path)
            areas = objects[_key(item["id"])]
            self._check(areas, height, width, path, source)
            for column, value in zip(columns.values(), (stem, str(path), height, width, json.dumps(areas))):
                column.append(value)
        return datasets.Dataset.from_dict(columns)

    def _object(self, item: dict) -> dict[str, Any]:
        name = self.names.get(_key(item["category_id"]))
        # Without a category it is of an unknown class.
        crowd = name is None or name in IGNORE_LABELS or _flag(item.get("iscrowd"))
        label = self.classes.get(name or "", 0)
        return {"class": label, "segmentation": item.get("segmentation") or [], "crowd": crowd}

    def _size(self, item: dict, path: Path) -> tuple[int, int]:
        """(height, width) as written, or where one is not said, those of the image."""
        name = f"{self.file}: {item['file_name']}"
        height, width = (image_side(item.get(key), f"{name}: {key}") for key in ("height", "width"))
        if height is not None and width is not None:
            return height, width
        header = load_header(str(path), self.channels)
        return header.height, header.width

    def _check(self, objects: list[dict], height: int, width: int, path: Path, source: CocoSource) -> None:
        """Count what draws nothing. Raises `UserError` for a photograph that is annotated as EXIF does not turn it."""
        drawn = [item["segmentation"] for item in objects if item["segmentation"]]
        if len(drawn) < len(objects):
            source.left_out["object with a box only"] += len(objects) - len(drawn)
        bounds = [segmentation_bounds(segmentation) for segmentation in drawn]
        faults = [None if one is None else misplacement(one, height, width) for one in bounds]
        for segmentation, fault in zip(drawn, faults):
            empty = isinstance(segmentation, dict) and has_no_pixel(segmentation.get("counts"))
            source.misplaced.add(NO_PIXEL if empty else fault, f"annotation of {path}")
        if OUTSIDE in faults and self.channels is None and is_turned(path):
            check_turn(bounds, (height, width), str(self.file), str(path))
