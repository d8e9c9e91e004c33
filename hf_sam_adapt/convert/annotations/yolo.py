"""YOLO's segmentation format: a text file of normalised polygons for each image, and a data.yaml or classes.txt."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...data.annotations import find_image, label_of, stem_of
from ...data.folder import IMAGE_SUFFIXES
from ...data.walk import files_below
from ...errors import UserError, one_line
from .regions import UNSPLIT, AnnotatedImage, Annotations, Polygon, Region, split_of


YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASSES = "classes.txt"  # what Label Studio and labelImg write in place of a data.yaml
NOTHING = ("", "null", "~", "None")


def read_yolo(source: Path, images: Path | None = None, encoding: str | None = None) -> Annotations:
    """The splits and class names that a data.yaml names, with the labels of each image.

    A line is `class x y x y …` in fractions of the image; of overlapping polygons the smaller one lies on top. An
    image without a label file has no objects; where no image of val or test has one, the split is left out. Lines of
    five numbers are boxes, and are left out.

    Args:
        source: the folder of the data.yaml (or of classes.txt), or the file itself.
        images: taken in place of the `path` in it.
        encoding: of texts that are not Unicode, None = guessed.

    Raises:
        UserError: no data.yaml, a missing folder, a damaged label file, or no label files of the training images.
    """
    candidates = [source] if source.is_file() else [source / name for name in (*YAML_NAMES, CLASSES)]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise UserError("no data.yaml in it, which names classes and folders", where=source, fix="write one")
    annotations = Annotations(encoding=encoding)
    content = _listed(file, images, annotations) if file.name == CLASSES else _load(file, annotations)
    names = _names(content["names"], file)
    annotations.classes = list(dict.fromkeys(names.values()))
    splits = {split_of(str(key)): value for key, value in content.items() if value and value not in NOTHING}
    splits.pop(UNSPLIT, None)
    base = images or _rooted(file.parent, str(content.get("path") or ""))
    owners: dict[Path, str] = {}
    for split in sorted(splits, key=("train", "val", "test").index):
        found = _split_images(split, splits[split], file, base, annotations)
        for image in [image for image, _ in found]:
            owners.setdefault(image.resolve(), split)
        own = [(image, stem) for image, stem in found if owners[image.resolve()] == split]
        annotations.left_out[f"image of {split} that is in another split, too"] += len(found) - len(own)
        _add_split(split if len(splits) > 1 else UNSPLIT, own, names, annotations, split == "train")
    annotations.left_out = +annotations.left_out
    if not annotations.images:
        raise UserError("it names no images under train, val or test", where=file, fix="add them")
    return annotations


def _add_split(
    home: str, images: list[tuple[Path, str]], names: dict[int, str], annotations: Annotations, needed: bool
) -> None:
    """Add images with their labels; a split that has none is left out, unless it is `needed`."""
    labels = [_label_file(image) for image, _ in images]
    missing = sum(not label.is_file() for label in labels)
    if images and missing == len(images):
        if needed or home == UNSPLIT:
            raise UserError(
                f"no image of {images[0][0].parent.name} has a label file",
                where=labels[0],
                fix="put them into labels/",
            )
        annotations.left_out[f"image of {home}, where none has a label file"] += missing
        return
    annotations.notes["image without a label file, taken as background"] += missing
    annotations.notes = +annotations.notes
    for (image, stem), label in zip(images, labels):
        regions = _regions(label, names, annotations)
        annotations.images.append(AnnotatedImage(home, stem, image, None, regions, str(label)))


def _load(file: Path, annotations: Annotations) -> dict[str, Any]:
    try:
        # All values as they are written: names may be `yes`, `on` or `1e3`.
        content = yaml.load(annotations.read_text(file), Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML ({one_line(error)})", where=file, fix="correct it") from error
    if not isinstance(content, dict) or not isinstance(content.get("names"), (list, dict)) or not content["names"]:
        raise UserError("no class names", where=file, fix="list them under names")
    if content.get("kpt_shape"):
        raise UserError("labels of key points (kpt_shape), which have no area", where=file, fix="export polygons")
    return content


def _listed(file: Path, images: Path | None, annotations: Annotations) -> dict[str, Any]:
    """What a data.yaml would say of a folder with classes.txt, images/ and labels/."""
    names = [line.strip() for line in annotations.read_text(file).splitlines() if line.strip()]
    root = images or _named(file.parent, "images") or file.parent
    parts = {split_of(path.name): str(path) for path in sorted(root.iterdir()) if path.is_dir()}
    parts.pop(UNSPLIT, None)
    return {"names": names, **(parts or {"train": str(root)})}


def _names(listed: list | dict, file: Path) -> dict[int, str]:
    """Class index -> name; classes of one name become one."""
    try:
        names = {
            int(key): label_of(name)
            for key, name in (listed.items() if isinstance(listed, dict) else enumerate(listed))
        }
    except (TypeError, ValueError) as error:
        raise UserError(f"names must map 0, 1, … to names ({error})", where=file, fix="correct it") from error
    nameless = [key for key, name in names.items() if name is None]
    if nameless:
        raise UserError(f"class {nameless[0]} has no name", where=file, fix="give it one under names")
    return {key: str(names[key]) for key in sorted(names)}


def _rooted(root: Path, place: str) -> Path:
    """A path as a data.yaml names it, perhaps on Windows, from the folder of the file."""
    return root / (place if (root / place).exists() else place.replace("\\", "/"))


def _split_images(
    split: str, value: str | list[str], file: Path, base: Path, annotations: Annotations
) -> list[tuple[Path, str]]:
    """The images of a split with their names, from folders or text files that list them."""
    existing: list[Path] = []
    for named in value if isinstance(value, list) else [value]:
        place = _place(str(named), file, base)
        if place is not None:
            existing.append(place)
        elif split == "test":
            # Roboflow names it also where there is none.
            annotations.notes[f"split test, whose folder {named} does not exist"] += 1
        else:
            hint = "correct path in it, or name the folder by --images"
            raise UserError(f"the folder {named} that it names does not exist", where=file, fix=hint)
    images: list[tuple[Path, str]] = []
    folders = [place.absolute() for place in existing if place.is_dir()]
    top = Path(os.path.commonpath(folders)) if folders else file.parent
    for place in existing:
        if place.is_file():
            lines = [line.strip() for line in annotations.read_text(place).splitlines() if line.strip()]
            listed = [find_image(line, [place.parent, base, file.parent], str(place)).path for line in lines]
            images += [(image, _stem(image, base if base.is_dir() else file.parent)) for image in listed]
        else:
            images += [(image, _stem(image, top)) for image in sorted(files_below(place, IMAGE_SUFFIXES))]
    return images


def _place(place: str, file: Path, base: Path) -> Path | None:
    """The folder or list that a data.yaml names, also where it was written on another machine."""
    text = place if (base / place).exists() else place.replace("\\", "/")
    # Roboflow writes `../train/images` for a folder beside the file.
    tails = [text, text.removeprefix("../")]
    if text.startswith("/") or re.match("[A-Za-z]:/", text):
        parts = [part for part in text.split("/")[1:] if part]
        tails += ["/".join(parts[start:]) for start in range(len(parts))]
    return next((root / tail for tail in tails for root in (base, file.parent) if (root / tail).exists()), None)


def _stem(image: Path, root: Path) -> str:
    """The image's name with those of its folders below `root`, of which `images` and splits say nothing."""
    path, root = image.absolute(), root.absolute()
    folders = path.relative_to(root).parts[:-1] if path.is_relative_to(root) else ()
    told = [part for part in folders if part.lower() != "images" and split_of(part) == UNSPLIT]
    return stem_of(Path(*told, image.name))


def _label_file(image: Path) -> Path:
    """`…/images/x.jpg` -> `…/labels/x.txt` for the last such folder that has labels, or beside the image."""
    parts = image.parts
    name = Path(os.path.splitext(image.name)[0] + ".txt")
    places = [image.parent / name]
    for place in range(len(parts) - 1):
        if parts[place].lower() == "images":
            folder = Path(*parts[:place]) if place else Path()
            places.append((_named(folder, "labels") or folder / "labels").joinpath(*parts[place + 1 : -1], name))
    places.reverse()
    return next((path for path in places if path.is_file()), places[0])


def _named(parent: Path, name: str) -> Path | None:
    """The folder of this name, in upper or lower case."""
    if (parent / name).is_dir():
        return parent / name
    return next((path for path in sorted(parent.iterdir()) if path.name.lower() == name and path.is_dir()), None)


def _regions(file: Path, names: dict[int, str], annotations: Annotations) -> list[Region]:
    if not file.is_file():
        return []
    regions = []  # (area, region)
    for number, line in enumerate(annotations.read_text(file).splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            label, values = float(words[0]), np.array([float(word) for word in words[1:]])
        except ValueError as error:
            raise UserError(f"line {number} is not `class x y x y …`", where=file, fix="correct it") from error
        if label not in names:
            listed = f"names lists {len(names)}"
            raise UserError(f"line {number} has class {words[0]}, but {listed}", where=file, fix="correct one of them")
        if len(values) == 4:
            annotations.left_out["box (a line of five numbers)"] += 1
            continue
        if len(values) < 6 or len(values) % 2 or not np.isfinite(values).all():
            raise UserError(
                f"line {number} is not `class x y x y …` with at least three points", where=file, fix="correct it"
            )
        if values.min() < -0.1 or values.max() > 1.1:
            raise UserError(
                f"line {number} has coordinates outside 0..1", where=file, fix="divide by width and height"
            )
        corners = values.reshape(-1, 2)
        x, y = corners.T
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        regions.append((area, Region(names[int(label)], Polygon(corners, relative=True))))
    return [region for _, region in sorted(regions, key=lambda pair: -pair[0])]
