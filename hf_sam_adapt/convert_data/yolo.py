"""YOLO's segmentation format: a text file of normalised polygons for each image, and a data.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..data.coco import fill_polygon
from ..data.folder import IMAGE_SUFFIXES
from ..data.walk import files_below
from ..errors import UserError
from .regions import UNSPLIT, AnnotatedImage, Annotations, Region


YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


def read_yolo(source: Path, images: Path | None = None) -> Annotations:
    """The splits and class names that a data.yaml names, with the labels of each image.

    A line is `class x y x y …` in fractions of the image; of overlapping polygons the smaller one lies on top. An
    image without a label file has no objects. Lines of five numbers are boxes, and are left out.

    Args:
        source: the folder of the data.yaml, or the file itself.
        images: taken in place of the `path` in it.

    Raises:
        UserError: no data.yaml, a missing folder, a damaged label file.
    """
    file = (
        source if source.is_file() else next((source / name for name in YAML_NAMES if (source / name).is_file()), None)
    )
    if file is None:
        raise UserError(f"{source}: no data.yaml in it, which names classes and folders; write one")
    content = _load(file)
    names = content["names"]
    classes = [str(names[key]) for key in sorted(names)] if isinstance(names, dict) else [str(name) for name in names]
    if len(set(classes)) < len(classes):
        raise UserError(f"{file}: a class name is there twice under names; give each class its own")
    annotations = Annotations(classes=classes)
    splits = [split for split in ("train", "val", "test") if content.get(split)]
    for split in splits:
        folders = content[split] if isinstance(content[split], list) else [content[split]]
        for image in [image for place in folders for image in _images(str(place), file, content, images)]:
            labels = _label_file(image)
            regions = _regions(labels, classes, annotations)
            home = split if len(splits) > 1 else UNSPLIT
            annotations.images.append(AnnotatedImage(home, image.stem, image, None, regions, str(labels)))
    if not annotations.images:
        raise UserError(f"{file}: it names no images under train, val or test")
    return annotations


def _load(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{file}: not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or not isinstance(content.get("names"), (list, dict)) or not content["names"]:
        raise UserError(f"{file}: no class names; list them under names")
    return content


def _images(place: str, file: Path, content: dict[str, Any], images: Path | None) -> list[Path]:
    """The images of a folder, or those that a text file lists."""
    base = images or file.parent / str(content.get("path") or "")
    # Roboflow writes `../train/images` for a folder beside the file.
    tails = (place, place.removeprefix("../"))
    candidates = [root / tail for root in (base, file.parent) for tail in tails]
    found = next((path for path in candidates if path.exists()), None)
    if found is None:
        raise UserError(f"{file}: {place} does not exist in {base}; mend path in it, or name the folder by --images")
    if found.is_file():
        listed = [
            found.parent / line.strip() for line in found.read_text(encoding="utf-8").splitlines() if line.strip()
        ]
        missing = next((path for path in listed if not path.is_file()), None)
        if missing is not None:
            raise UserError(f"{found}: the image {missing} is missing; mend the list")
        return listed
    return sorted(files_below(found, IMAGE_SUFFIXES))


def _label_file(image: Path) -> Path:
    """`…/images/x.jpg` -> `…/labels/x.txt`, by the last folder of that name; beside the image without one."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[:-1][::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _regions(file: Path, classes: list[str], annotations: Annotations) -> list[Region]:
    if not file.is_file():
        return []
    found = []  # (area, region)
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            label, values = int(words[0]), np.array([float(word) for word in words[1:]])
        except ValueError as error:
            raise UserError(f"{file}: line {number} is not `class x y x y …`; mend it") from error
        if not 0 <= label < len(classes):
            raise UserError(
                f"{file}: line {number} has class {label}, but names lists {len(classes)}; mend one of them"
            )
        if len(values) == 4:
            annotations.left_out["box (a line of five numbers)"] += 1
            continue
        if len(values) < 6 or len(values) % 2 or not np.isfinite(values).all():
            raise UserError(f"{file}: line {number} is not `class x y x y …` with at least three points; mend it")
        if values.min() < -0.1 or values.max() > 1.1:
            raise UserError(f"{file}: line {number} has coordinates outside 0..1; divide by width and height")
        corners = values.reshape(-1, 2)
        x, y = corners.T
        area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
        found.append((area, Region(classes[label], _scaled(corners))))
    return [region for _, region in sorted(found, key=lambda pair: -pair[0])]


def _scaled(corners: np.ndarray) -> Any:
    return lambda height, width: fill_polygon(corners * (width, height), height, width)
