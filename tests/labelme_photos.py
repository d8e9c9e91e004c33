"""A folder of photographs as labelme leaves it."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from hf_sam_adapt.data.synthetic import draw_sample


def annotate(folder: Path, count: int) -> None:
    """Drawn scenes with a polygon about each object, as a person with labelme would leave them."""
    folder.mkdir(parents=True)
    for number in range(count):
        image, mask = draw_sample("polyp", "train", number)
        Image.fromarray(image).save(folder / f"scene{number}.jpg", quality=95)
        rows = np.flatnonzero((mask > 0).any(axis=1))
        sides = [np.flatnonzero(mask[row])[[0, -1]] for row in rows]
        points = [[float(left), float(row)] for row, (left, _) in zip(rows, sides)]
        points += [[float(right) + 1, float(row)] for row, (_, right) in zip(rows[::-1], sides[::-1])]
        outline = {"label": "polyp", "points": points, "group_id": None, "shape_type": "polygon", "flags": {}}
        content = {"version": "5.4.1", "flags": {}, "imagePath": f"scene{number}.jpg", "imageData": None}
        content |= {"imageHeight": mask.shape[0], "imageWidth": mask.shape[1], "shapes": [outline]}
        (folder / f"scene{number}.json").write_text(json.dumps(content))
