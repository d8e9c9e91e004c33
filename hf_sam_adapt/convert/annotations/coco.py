"""COCO: one JSON file for all images of a split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.annotations import IGNORE_LABELS
from ...data.areas import Bounds, draw_segmentation, segmentation_bounds
from ...data.coco import CocoReader, find_annotations, read_coco_source
from ...errors import UserError
from .regions import UNSPLIT, AnnotatedImage, Annotations, Region


def read_coco(source: Path, images: Path | None = None, encoding: str | None = None) -> Annotations:
    """A folder that `load_segmentation_dataset` takes, or one annotation file, whatever its name.

    Polygons and run lengths become regions, in the order of the file; crowds are ignored.

    Args:
        source: folder or JSON file.
        images: folder of the images, where they are in none of the usual places.
        encoding: of a file that is not Unicode, None = guessed.

    Raises:
        UserError: no annotation file, a damaged one, a missing image, or objects with boxes only.
    """
    files = {UNSPLIT: source} if source.is_file() else find_annotations(source)
    if not files:
        raise UserError(
            "no annotations.json or annotations/instances_*.json in it", where=source, fix="name the file itself"
        )
    root = images or (source.parent if source.is_file() else source)
    read = read_coco_source(root, files, encoding=encoding)
    annotations = Annotations(classes=[name for label, name in sorted(read.id2label.items()) if label])
    annotations.notes, annotations.left_out = read.notes, read.left_out
    namer = CocoReader()
    for split, table in read.tables.items():
        for row in table:
            regions, name = [], namer.name(row)
            for item in json.loads(row["objects"]):
                if item["segmentation"]:
                    label = IGNORE_LABELS[0] if item["crowd"] else read.id2label[item["class"]]
                    regions.append(Region(label, _Segmentation(item["segmentation"], name)))
            size = row["height"], row["width"]
            annotations.images.append(AnnotatedImage(split, row["id"], Path(row["image"]), size, regions, name))
    return annotations


@dataclass(frozen=True)
class _Segmentation:
    """Polygons or run lengths, and what messages call their annotation."""

    segmentation: list | dict
    name: str

    def draw(self, height: int, width: int) -> np.ndarray:
        return draw_segmentation(self.segmentation, height, width, self.name)

    def bounds(self, height: int, width: int) -> Bounds | None:
        if isinstance(self.segmentation, dict):
            return 0, 0, width, height
        return segmentation_bounds(self.segmentation)
