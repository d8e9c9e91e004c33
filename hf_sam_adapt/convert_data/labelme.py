"""labelme: a JSON file beside each image."""

from __future__ import annotations

import base64
import binascii
import json
import math
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..data.folder import IMAGE_SUFFIXES
from ..data.images import read_mask
from ..data.walk import files_below
from ..errors import UserError
from .regions import (
    UNSPLIT,
    AnnotatedImage,
    Annotations,
    Region,
    ellipse,
    find_image,
    polygon,
    rectangle,
    split_of,
    stem_of,
    window,
)


def read_labelme(source: Path, images: Path | None = None) -> Annotations:
    """All `*.json` of labelme under `source`, also in sub-folders, of which train, val and test are splits.

    Polygons, rectangles, circles and masks become regions; points and lines have no area and are left out. Polygons of
    one group are one object, which a class mask does not tell. The image is the file that `imagePath` names or the
    embedded `imageData`.

    Args:
        source: folder.
        images: where else images may lie.

    Raises:
        UserError: no such files, or one that is damaged.
    """
    files = sorted(files_below(source, {".json"}))
    annotations, annotated = Annotations(), set()
    for file in files:
        content = _load(file)
        if content is None:
            annotations.left_out[f"JSON file that is not labelme's, such as {file.name}"] += 1
            continue
        relative = file.relative_to(source)
        split = split_of(relative.parts[0]) if len(relative.parts) > 1 else UNSPLIT
        stem = stem_of(relative if split == UNSPLIT else Path(*relative.parts[1:]))
        image, path = _image(content, file, images)
        annotated.add(path)
        height, width = content.get("imageHeight"), content.get("imageWidth")
        regions = []
        for number, shape in enumerate(content["shapes"]):
            try:
                draw = _shape(shape)
            except (KeyError, IndexError, TypeError, ValueError, OSError) as error:
                raise UserError(f"{file}: shape {number} is damaged ({error!r}); mend it in labelme") from error
            if draw is None:
                annotations.left_out[f"{shape.get('shape_type', 'polygon')} without an area"] += 1
            else:
                regions.append(Region(str(shape["label"]), draw))
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        annotations.images.append(AnnotatedImage(split, stem, image, size, regions, str(file)))
    if not annotations.images:
        raise UserError(f"{source}: no JSON file of labelme in it; name the folder that labelme saved to")
    alone = [path for path in files_below(source, IMAGE_SUFFIXES) if path not in annotated]
    if alone:
        annotations.left_out["image without a JSON file"] += len(alone)
    return annotations


def _load(file: Path) -> dict[str, Any] | None:
    """The content of a labelme file, None for another JSON file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a readable JSON file ({error}); mend or remove it") from error
    return content if isinstance(content, dict) and isinstance(content.get("shapes"), list) else None


def _image(content: dict[str, Any], file: Path, images: Path | None) -> tuple[Any, Path | None]:
    """What `AnnotatedImage.image` takes, and the file if it is one."""
    folders = [file.parent] + ([images] if images else [])
    data = content.get("imageData")
    try:
        path = find_image(str(content.get("imagePath") or file.with_suffix("").name), folders, str(file))
    except UserError:
        if not data:
            raise
        return lambda: _decode(data, file), None
    return path, path


def _decode(data: str, file: Path) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise UserError(f"{file}: its imageData is damaged ({error}); put the image beside it") from error


def _shape(shape: dict[str, Any]) -> Any:
    """How to draw a shape, None for one without an area."""
    kind = shape.get("shape_type") or "polygon"
    points = np.asarray(shape["points"], np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("a coordinate that is no number")
    if kind == "polygon":
        return polygon(points.tolist()) if len(points) >= 3 else None
    if kind == "rectangle":
        (x1, y1), (x2, y2) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
        return rectangle(x1, y1, x2, y2) if len(points) >= 2 else None
    if kind == "circle":
        (x, y), edge = points[0].tolist(), points[1].tolist()
        radius = math.dist((x, y), edge)
        return ellipse(x, y, radius, radius) if radius else None
    if kind == "mask":
        bitmap = read_mask(BytesIO(base64.b64decode(shape["mask"])), "mask") > 0
        left, top = points[0].round().astype(int).tolist()
        return window(bitmap, left, top)
    return None
