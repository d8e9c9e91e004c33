"""GeoJSON in pixels of an image, as QuPath and `predict` write it: a file of polygons for each image."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...data.annotations import CLASSES, find_image, image_side, label_of, stem_of
from ...data.areas import Bounds, check_places, corner_bounds, fill_polygon
from ...data.folder import IMAGE_SUFFIXES
from ...data.walk import files_below
from ...errors import UserError
from .regions import UNSPLIT, AnnotatedImage, Annotations, Region, split_of


SUFFIXES = {".geojson", ".json"}


def read_geojson(source: Path, images: Path | None = None, encoding: str | None = None) -> Annotations:
    """All GeoJSON files under `source`, also in sub-folders, of which train, val and test are splits.

    Polygons, also with holes, become regions; points and lines have no area and are left out. The label is
    `classification.name` of a feature (QuPath), or its `label`, `class` or `name`. The image is the one that the file
    names under `image`, or of the file's own stem. Of files that `predict` wrote the classes keep their order.

    Args:
        source: folder, or one such file.
        images: where else images may lie.
        encoding: of files that are not Unicode, None = guessed.

    Raises:
        UserError: no such files, a damaged one, coordinates of a map, or a missing image.
    """
    files = [source] if source.is_file() else files_below(source, SUFFIXES)
    annotations = Annotations(encoding=encoding)
    lists = []
    for file in files:
        features, content = _load(file, annotations)
        if features is None:
            annotations.left_out[f"JSON file that is not GeoJSON, such as {file.name}"] += 1
            continue
        relative = file.relative_to(source) if file != source else Path(file.name)
        split = split_of(relative.parts[0]) if len(relative.parts) > 1 else UNSPLIT
        stem = stem_of(relative if split == UNSPLIT else Path(*relative.parts[1:]))
        said: Any = content.get("image")
        said = said if isinstance(said, dict) else {}
        if said and CLASSES in content:
            lists.append(content[CLASSES])
        height, width = (image_side(said.get(key), f"{file}: {key}") for key in ("height", "width"))
        size = (height, width) if height is not None and width is not None else None
        regions = [region for feature in features for region in _regions(feature, file, annotations)]
        image = _image(said.get("file_name"), file, images)
        annotations.images.append(AnnotatedImage(split, stem, image, size, regions, str(file)))
    if not annotations.images:
        raise UserError("no GeoJSON file in it", where=source, fix="name the folder of the .geojson files")
    annotations.take_order(lists)
    return annotations


@dataclass(frozen=True)
class Rings:
    """A polygon with holes.

    Attributes:
        rings: (n, 2) each, (x, y) in pixels from the image's corner.
    """

    rings: list[np.ndarray]

    def draw(self, height: int, width: int) -> np.ndarray:
        mask = np.zeros((height, width), bool)
        for ring in self.rings:
            mask ^= fill_polygon(ring, height, width)
        return mask

    def bounds(self, height: int, width: int) -> Bounds:
        return corner_bounds(self.rings[0])


def _load(file: Path, annotations: Annotations) -> tuple[list[dict[str, Any]] | None, dict[str, Any]]:
    """The features of a file, None for another JSON file, and what else it says."""
    try:
        content = json.loads(annotations.read_text(file))
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"not a readable JSON file ({error})", where=file, fix="correct or remove it") from error
    if isinstance(content, list):  # QuPath writes the features alone where it is told so
        content = {"type": "FeatureCollection", "features": content}
    if not isinstance(content, dict) or content.get("type") not in ("FeatureCollection", "Feature"):
        return None, {}
    if content.get("crs"):
        raise UserError(
            "coordinates of a map", where=file, fix="export the polygons in pixels of the image, without a crs"
        )
    features = content.get("features") if content["type"] == "FeatureCollection" else [content]
    if not isinstance(features, list) or not all(isinstance(feature, dict) for feature in features):
        raise UserError("its features are damaged", where=file, fix="export it again")
    return features, content


def _regions(feature: dict[str, Any], file: Path, annotations: Annotations) -> list[Region]:
    """One for each polygon of a feature."""
    geometry, properties = feature.get("geometry") or {}, feature.get("properties") or {}
    if not isinstance(geometry, dict):
        raise UserError(f"a damaged geometry ({str(geometry)[:40]!r})", where=file, fix="export it again")
    kind = geometry.get("type")
    if kind not in ("Polygon", "MultiPolygon"):
        annotations.left_out[f"{kind or 'feature'} without an area"] += 1
        return []
    try:
        named = properties.get("classification") or {}
        names = (named.get("name"), *(properties.get(key) for key in ("label", "class", "name")))
        label = label_of(next((name for name in names if name is not None), None))
        polygons = [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]
        areas = [Rings([_ring(ring) for ring in polygon]) for polygon in polygons]
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"a damaged {kind} ({error!r})", where=file, fix="export it again") from error
    return [Region(label, area) for area in areas if area.rings]


def _ring(corners: list[Any]) -> np.ndarray:
    """(n, 2) without the corner that closes it; a height above the ground is left out."""
    ring = np.asarray([corner[:2] for corner in corners], np.float64).reshape(-1, 2)
    check_places(ring)
    return ring[:-1] if len(ring) > 1 and (ring[0] == ring[-1]).all() else ring


def _image(name: Any, file: Path, images: Path | None) -> Path:
    """The image that a file names, or the one of its own stem."""
    folders = [file.parent, file.parent.parent / "images"] + ([images] if images else [])
    if name is not None:
        return find_image(str(name), folders, str(file)).path
    for folder in folders:
        for suffix in sorted(IMAGE_SUFFIXES):
            if (folder / f"{file.stem}{suffix}").is_file():
                return folder / f"{file.stem}{suffix}"
    hint = "put it there, or name its folder by --images of convert"
    raise UserError(f"no image {file.stem} beside it", where=file, fix=hint)
