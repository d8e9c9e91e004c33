"""labelme: a JSON file beside each image; also as X-AnyLabeling and other tools of its kind write it."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ...data.annotations import CHECKED, CLASSES, SOURCE, find_image, image_side, label_of, stem_of
from ...data.folder import IMAGE_SUFFIXES
from ...data.images import read_mask
from ...data.walk import files_below
from ...errors import UserError
from .regions import UNSPLIT, AnnotatedImage, Annotations, Bitmap, Region, Shape, ellipse, polygon, rectangle, split_of


UNCHECKED = f"prediction that nobody has looked at (its flag {CHECKED} is not set)"
CORNERS = {"polygon", "oriented_rectangle", "rotation", "quadrilateral"}  # kinds of shapes given by their corners


def read_labelme(source: Path, images: Path | None = None, encoding: str | None = None) -> Annotations:
    """All `*.json` of labelme under `source`, also in sub-folders, of which train, val and test are splits.

    Polygons, rectangles (also turned ones), circles and masks become regions; other shapes, such as points and lines,
    have no area and are left out. Polygons of one group are one object, which a class mask does not tell. The image
    is the file that `imagePath` names or the embedded `imageData`. What `predict` wrote counts only with the flag
    `checked`, so that no prediction becomes a truth unseen; its classes keep their order.

    Args:
        source: folder.
        images: where else images may lie.
        encoding: of files that are not Unicode, None = guessed.

    Raises:
        UserError: no such files, or one that is damaged.
    """
    files = sorted(files_below(source, {".json"}))
    annotations = Annotations(encoding=encoding)
    annotated: set[Path | None] = set()
    named: set[tuple[str, str]] = set()
    lists = []
    for file in files:
        content = _load(file, annotations)
        if content is None:
            annotations.left_out[f"JSON file that is not labelme's, such as {file.name}"] += 1
            continue
        if SOURCE in content and not (content.get("flags") or {}).get(CHECKED):
            annotations.left_out[UNCHECKED] += 1
            if path := _image(content, file, images)[1]:
                annotated.add(path)
            continue
        if SOURCE in content and CLASSES in content:
            lists.append(content[CLASSES])
        relative = file.relative_to(source)
        split = split_of(relative.parts[0]) if len(relative.parts) > 1 else UNSPLIT
        below = relative if split == UNSPLIT else Path(*relative.parts[1:])
        stem = stem_of(_without_rank(below, content))
        if (split, stem) in named:  # of two predictions
            stem = stem_of(below)
        named.add((split, stem))
        image, path = _image(content, file, images)
        annotated.add(path)
        height, width = (image_side(content.get(key), f"{file}: {key}") for key in ("imageHeight", "imageWidth"))
        regions = []
        for number, shape in enumerate(content["shapes"]):
            try:
                kind, area = shape.get("shape_type") or "polygon", _shape(shape)
            except (AttributeError, KeyError, IndexError, TypeError, ValueError, OSError) as error:
                raise UserError(
                    f"shape {number} is damaged ({error!r})", where=file, fix="correct it in labelme"
                ) from error
            if area is None:
                annotations.left_out[f"{kind} without an area"] += 1
            else:
                regions.append(Region(label_of(shape.get("label")), area))
        size = (height, width) if height is not None and width is not None else None
        annotations.images.append(AnnotatedImage(split, stem, image, size, regions, str(file)))
    if not annotations.images and (count := annotations.left_out[UNCHECKED]):
        problem = f"none of the {count} predictions in it is checked"
        raise UserError(problem, where=source, fix=f"correct them in labelme and set the flag {CHECKED}")
    if not annotations.images:
        raise UserError("no JSON file of labelme in it", where=source, fix="name the folder that labelme saved to")
    annotations.take_order(lists)
    alone = [path for path in files_below(source, IMAGE_SUFFIXES) if path.resolve() not in annotated]
    if alone:
        annotations.left_out["image without a JSON file"] += len(alone)
    return annotations


def _without_rank(file: Path, content: Mapping[str, Any]) -> Path:
    """The file by the name of its image, where `predict --rank` has put its place before that, else as it is."""
    source = content.get(SOURCE)
    name = source.get("name") if isinstance(source, dict) else None
    ranked = isinstance(name, str) and re.fullmatch(rf"\d{{4,}}_{re.escape(name)}", file.stem)
    return file.with_name(f"{name}{file.suffix}") if ranked else file


def _load(file: Path, annotations: Annotations) -> dict[str, Any] | None:
    """The content of a labelme file, None for another JSON file."""
    try:
        content = json.loads(annotations.read_text(file))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"not a readable JSON file ({error})", where=file, fix="correct or remove it") from error
    return content if isinstance(content, dict) and isinstance(content.get("shapes"), list) else None


def _image(content: dict[str, Any], file: Path, images: Path | None) -> tuple[Any, Path | None]:
    """What `AnnotatedImage.image` takes, and the resolved path if it is a file."""
    folders = [file.parent] + ([images] if images else [])
    data = content.get("imageData")
    try:
        path = find_image(str(content.get("imagePath") or file.with_suffix("").name), folders, str(file)).path
    except UserError:
        if not data:
            raise
        return lambda: _decode(data, file), None
    return path, path.resolve()


def _decode(data: str, file: Path) -> bytes:
    try:
        return _base64(data)
    except (AttributeError, binascii.Error, ValueError, TypeError) as error:
        raise UserError(f"its imageData is damaged ({error})", where=file, fix="put the image beside it") from error


def _base64(data: str) -> bytes:
    """Also of a data address, `data:image/png;base64,…`."""
    return base64.b64decode(data.rpartition(",")[2], validate=True)


def _shape(shape: dict[str, Any]) -> Shape | None:
    """The area of a shape, None for one without."""
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"] or np.empty((0, 2)), np.float64)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError("points that are not all x and y")
    if not np.isfinite(points).all():
        raise ValueError("a coordinate that is not a number")
    if kind == "mask":
        return _mask(shape["mask"], points)
    if kind in CORNERS:
        return polygon(points.tolist()) if len(points) >= 3 else None
    if len(points) < 2:
        return None
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return rectangle(x1, y1, x2, y2)
    if kind == "circle":
        (x, y), edge = points[0].tolist(), points[1].tolist()
        radius = math.dist((x, y), edge)
        return ellipse(x, y, radius, radius) if radius else None
    return None


def _mask(data: str, points: np.ndarray) -> Bitmap:
    values = read_mask(BytesIO(_base64(data)), "mask")
    left, top = points[0].round().astype(int).tolist()
    return Bitmap(values > 0, left, top)
