"""COCO: one JSON file for all images of a split."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np

from ..data.coco import CocoReader, coco_tables, draw_segmentation, find_annotations
from ..errors import UserError
from .regions import IGNORE_LABELS, UNSPLIT, AnnotatedImage, Annotations, Region


def read_coco(source: Path, images: Path | None = None) -> Annotations:
    """A folder that `load_segmentation_dataset` takes, or one annotation file, whatever its name.

    Polygons and run lengths become regions, in the order of the file; crowds are ignored.

    Args:
        source: folder or JSON file.
        images: folder of the images, where they are in none of the usual places.

    Raises:
        UserError: no annotation file, a damaged one, a missing image, or objects with boxes only.
    """
    files = {UNSPLIT: source} if source.is_file() else find_annotations(source)
    if not files:
        raise UserError(f"{source}: no annotations.json or annotations/instances_*.json in it; name the file itself")
    tables, id2label, left_out = coco_tables(images or (source.parent if source.is_file() else source), files)
    annotations = Annotations(classes=[name for label, name in sorted(id2label.items()) if label], left_out=left_out)
    namer = CocoReader()
    for split, table in tables.items():
        for row in table:
            regions, name = [], namer.name(row)
            for item in json.loads(row["objects"]):
                if not item["segmentation"]:
                    continue
                label = IGNORE_LABELS[0] if item["crowd"] else id2label[item["class"]]
                regions.append(Region(label, partial(_draw, item["segmentation"], name)))
            size = row["height"], row["width"]
            annotations.images.append(AnnotatedImage(split, row["id"], Path(row["image"]), size, regions, name))
    return annotations


def _draw(segmentation: list | dict, name: str, height: int, width: int) -> np.ndarray:
    return draw_segmentation(segmentation, height, width, name)
