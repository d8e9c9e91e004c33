"""Polygons of the formats that annotation tools and viewers open: labelme, COCO, YOLO and GeoJSON."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import yaml

from ...data.annotations import CHECKED, CLASSES, SOURCE
from ...data.outlines import signed_area
from ...errors import UserError
from ...files import is_plain_name, whole_file, write_json
from ...inference.instances import coco_content
from .result import Area, ImageResult, Writer, copy_suffix


LABELME_VERSION = "5.5.0"  # of the fields that are written
_PLACED = re.compile(r"\d{4,}_(.+)")  # the stem of a ranked image


class LabelmeWriter(Writer):
    """`labelme/<name>.json` beside a copy of the image: a folder that labelme opens.

    Each file has the flag `checked`, not set. Of ranked images names begin with their places, in which labelme lists
    them.
    """

    key = "labelme"

    def files(self, name: str) -> list[str]:
        return [f"labelme/{name}.json"]

    def targets(self, path: Path | None, name: str) -> list[str]:
        return [*self.files(name), f"labelme/{name}{copy_suffix(path) or '.png'}"]

    def write(self, result: ImageResult) -> dict[str, Any]:
        (file,) = self.files(result.name)
        path = self.folder / file
        image = result.store_image(path.parent, result.name)
        height, width = result.size
        shapes = [
            {
                "label": self.options.labels[area.label],
                "points": outline.joined().tolist(),
                "group_id": number if len(area.outlines) > 1 else None,
                "description": f"score {area.score:.3f}",
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for number, area in enumerate(result.areas(self.options.simplify))
            for outline in area.outlines
        ]
        content = {
            "version": LABELME_VERSION,
            "flags": {CHECKED: False},
            "shapes": shapes,
            "imagePath": image.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
            SOURCE: {"file": result.path.as_posix(), "name": result.name},
            CLASSES: list(self.options.labels.values()),
        }
        write_json(path, content, indent=1, ensure_ascii=False)
        return {self.key: file}

    def is_done(self, record: Mapping[str, Any], name: str) -> bool:
        return self.key in record and (self.folder / record[self.key]).is_file()

    def drawn(self, files: Sequence[str], names: Collection[str], own: Collection[str]) -> list[str]:
        """The files of a person under the names of predictions: annotations that have lost or never had their source,
        and, of ranked images, what lies under a name that begins with a place.

        Args:
            files: that are to be written.
            names: of the images.
            own: files that predictions have written.
        """
        placed = sorted((self.folder / "labelme").iterdir()) if (self.folder / "labelme").is_dir() else []
        ranked = [
            path.relative_to(self.folder).as_posix()
            for path in placed
            if self.options.ranked and (match := _PLACED.fullmatch(path.stem)) and match[1] in names
        ]
        annotations = [file for file in (*files, *ranked) if PurePath(file).match("labelme/*.json")]
        found = [file for file in annotations if (self.folder / file).exists() and not self._has_source(file)]
        return found + [file for file in ranked if file not in own and not self._has_source(file)]

    def _has_source(self, file: str) -> bool:
        return SOURCE in read_annotation((self.folder / file).with_suffix(".json"))

    def finish(self, order: Sequence[dict[str, Any]]) -> None:
        self._remove_others({self.folder / record[self.key]: record["file"] for record in order})
        if not self.options.ranked:
            return
        digits = max(4, len(str(len(order))))
        for place, record in enumerate(order, start=1):
            path = self.folder / record[self.key]
            content = json.loads(path.read_text(encoding="utf-8"))
            if SOURCE not in content:  # drawn anew by a tool that does not keep it: a person's work under that name
                continue
            image = _image_beside(path, content)
            stem = f"{place:0{digits}d}_{content[SOURCE]['name']}"
            target = path.with_name(f"{stem}.json")
            if target == path:
                continue
            if image is not None:
                content["imagePath"] = stem + image.suffix
                os.replace(image, path.with_name(content["imagePath"]))
            write_json(target, content, indent=1, ensure_ascii=False)
            path.unlink()
            record[self.key] = target.relative_to(self.folder).as_posix()

    def _remove_others(self, kept: Mapping[Path, str]) -> None:
        """Earlier predictions of the same images under other names, which nobody has checked."""
        predicted = {Path(file).as_posix() for file in kept.values()}
        for path in sorted((self.folder / "labelme").glob("*.json")):
            content = read_annotation(path)
            source = content.get(SOURCE)
            same = isinstance(source, dict) and source.get("file") in predicted
            if path not in kept and same and not is_checked(content):
                path.unlink()
                if (image := _image_beside(path, content)) is not None:
                    image.unlink()


def checked_annotations(folder: Path) -> list[Path]:
    """The labelme files of an output folder that a person has marked as checked, and that no command may replace."""
    return [path for path in sorted((folder / "labelme").glob("*.json")) if is_checked(read_annotation(path))]


def read_annotation(path: Path) -> dict[str, Any]:
    """The content of a labelme file, empty where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _image_beside(path: Path, content: Mapping[str, Any]) -> Path | None:
    """The copy of the image in the folder of its annotation, None where it names another one."""
    name = content.get("imagePath")
    place = path.with_name(name) if isinstance(name, str) and is_plain_name(name) else None
    return place if place is not None and place.is_file() else None


def is_checked(content: Mapping[str, Any]) -> bool:
    """Whether the flag of a labelme file says that a person has looked at it."""
    return bool((content.get("flags") or {}).get(CHECKED))


class CocoWriter(Writer):
    """`coco.json` for all images: polygons, each with its `score`. `file_name` is the image's path as it was given."""

    key, file = "coco", "coco.json"
    common = (file,)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def files(self, name: str) -> list[str]:
        return []

    def is_done(self, record: Mapping[str, Any], name: str) -> bool:
        return self.key in record and (self.folder / self.file).is_file()

    def write(self, result: ImageResult) -> dict[str, Any]:
        self._add(result, [_coco_area(area) for area in result.areas(self.options.simplify)])
        return {self.key: self.file}

    def keep(self, records: Sequence[Mapping[str, Any]]) -> None:
        path = self.folder / self.file
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kept = {name for record in records for name in (record["file"], Path(record["file"]).name)}
            ids = {image["id"] for image in content["images"] if image["file_name"] in kept}
            self.images = [image for image in content["images"] if image["id"] in ids]
            self.annotations = [area for area in content["annotations"] if area["image_id"] in ids]
        except (OSError, ValueError, KeyError, TypeError) as error:
            fix = "leave skip_existing out"
            raise UserError(f"not the COCO file of an earlier prediction ({error})", where=path, fix=fix) from error

    def finish(self, order: Sequence[dict[str, Any]]) -> None:
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": [{"id": label, "name": name} for label, name in self.options.labels.items()],
        }
        write_json(self.folder / self.file, content, indent=1, ensure_ascii=False)

    def _add(self, result: ImageResult, areas: Sequence[dict[str, Any]]) -> None:
        """An image with its annotations, numbered from 1 on behind those that are there."""
        height, width = result.size
        number = max((image["id"] for image in self.images), default=0) + 1
        name = result.path.as_posix() if not result.is_slice else result.name
        self.images.append({"id": number, "file_name": name, "height": height, "width": width})
        first = max((area["id"] for area in self.annotations), default=0) + 1
        for place, area in enumerate(areas, start=first):
            self.annotations.append(area | {"id": place, "image_id": number, "iscrowd": 0})


class InstancesWriter(CocoWriter):
    """`instances.json`: the instances of all images in COCO's format, as compressed run lengths with their `score`.

    `file_name` is the image's name where no two are alike, else its path.
    """

    key, file = "instances_coco", "instances.json"
    common = (file,)

    def is_done(self, record: Mapping[str, Any], name: str) -> bool:
        return "instances" in record and (self.folder / self.file).is_file()

    def write(self, result: ImageResult) -> dict[str, Any]:
        self._add(
            result, coco_content([result.name], [result.prediction.instances or []], [result.size])["annotations"]
        )
        return {}

    def finish(self, order: Sequence[dict[str, Any]]) -> None:
        names = [Path(image["file_name"]).name for image in self.images]
        if len(set(names)) == len(names):
            self.images = [image | {"file_name": name} for image, name in zip(self.images, names)]
        super().finish(order)


class YoloWriter(Writer):
    """`yolo/labels/<name>.txt` beside copies in `yolo/images`, with a `data.yaml` that names classes and folders."""

    key = "yolo"
    common = ("yolo/data.yaml",)

    def files(self, name: str) -> list[str]:
        return [f"yolo/labels/{name}.txt"]

    def targets(self, path: Path | None, name: str) -> list[str]:
        return [*self.files(name), f"yolo/images/{name}{copy_suffix(path) or '.png'}"]

    def write(self, result: ImageResult) -> dict[str, Any]:
        (file,) = self.files(result.name)
        height, width = result.size
        result.store_image(self.folder / "yolo/images", result.name)
        lines = []
        for area in result.areas(self.options.simplify):
            for outline in area.outlines:
                places = (outline.joined() / (width, height)).ravel()
                lines.append(" ".join([str(area.label - 1), *(f"{place:.9g}" for place in places)]))
        with whole_file(self.folder / file) as part:
            part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return {self.key: file}

    def finish(self, order: Sequence[dict[str, Any]]) -> None:
        names = {label - 1: name for label, name in self.options.labels.items()}
        content = {"path": ".", "train": "images", "names": names}
        with whole_file(self.folder / "yolo/data.yaml") as part:
            part.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


class GeoJsonWriter(Writer):
    """`geojson/<name>.geojson`: polygons with holes, in pixels from the image's upper left corner, as in QuPath."""

    key = "geojson"

    def files(self, name: str) -> list[str]:
        return [f"geojson/{name}.geojson"]

    def write(self, result: ImageResult) -> dict[str, Any]:
        (file,) = self.files(result.name)
        height, width = result.size
        features = [
            {
                "type": "Feature",
                "geometry": {
                    "type": "MultiPolygon",
                    "coordinates": [[_closed(ring) for ring in outline.rings] for outline in area.outlines],
                },
                "properties": {
                    "objectType": "annotation",
                    "classification": {"name": self.options.labels[area.label]},
                    "score": area.score,
                },
            }
            for area in result.areas(self.options.simplify)
        ]
        image = {"file_name": result.name if result.is_slice else result.path.as_posix()}
        content = {
            "type": "FeatureCollection",
            "features": features,
            "image": image | {"height": height, "width": width},
            CLASSES: list(self.options.labels.values()),
        }
        write_json(self.folder / file, content, indent=1, ensure_ascii=False)
        return {self.key: file}


def _coco_area(area: Area) -> dict[str, Any]:
    """An annotation: a ring for each part, holes joined to it."""
    corners = np.concatenate([outline.exterior for outline in area.outlines])
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return {
        "category_id": area.label,
        "segmentation": [outline.joined().ravel().tolist() for outline in area.outlines],
        "bbox": [left, top, right - left, bottom - top],
        "area": sum(signed_area(ring) for outline in area.outlines for ring in outline.rings),
        "score": area.score,
    }


def _closed(ring: np.ndarray) -> list[list[int]]:
    """The corners of a ring, the first one again at its end."""
    return [*ring.tolist(), ring[0].tolist()]
