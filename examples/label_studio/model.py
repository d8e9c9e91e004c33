"""A Label Studio ML backend: an adapter of this package draws masks by clicks and boxes, and before any.

Started by `label-studio-ml start`; the environment says what to load, see README.md.
"""

import os
from uuid import uuid4

import numpy as np
from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse
from label_studio_sdk.converter.brush import mask2rle

from hf_sam_adapt import Prompt, SamAdaptPredictor


ADAPTER = os.environ.get("ADAPTER", "tiny")
PROMPTLESS = os.environ.get("PROMPTLESS", "1") == "1"
PREDICTOR = SamAdaptPredictor.from_pretrained(ADAPTER)


class SamAdaptBackend(LabelStudioMLBase):
    """Masks of an adapted SAM as brush labels; smart key points and rectangles are its prompts."""

    def setup(self) -> None:
        self.set("model_version", ADAPTER)

    def predict(self, tasks: list[dict], context: dict | None = None, **kwargs: object) -> ModelResponse:
        """The mask of what was clicked, or without a click, of each task, what the adapter was trained to find."""
        from_name, to_name, key = self.get_first_tag_occurence("BrushLabels", "Image")
        names = {"from_name": from_name, "to_name": to_name}
        if context and context.get("result"):
            prompt, label = prompt_of(context["result"])
            found = [self._segmented(tasks[0], key, names, prompt, label)]
        elif PROMPTLESS:
            labels = self.label_interface.get_control(from_name).labels
            found = [self._segmented(task, key, names, None, next(iter(labels))) for task in tasks]
        else:
            found = []
        return ModelResponse(predictions=found)

    def _segmented(self, task: dict, key: str, names: dict, prompt: Prompt | None, label: str) -> dict:
        file = self.get_local_path(task["data"][key], task_id=task.get("id"))
        prediction = PREDICTOR.predict(file, prompt)[0]
        if prediction.classes is None:
            masks = {label: prediction.mask}
        else:  # each class but the background under its own name
            masks = {name: prediction.mask == place for place, name in enumerate(prediction.classes) if place}
        results = [brush(mask, name, prediction.score, names) for name, mask in masks.items() if mask.any()]
        return {"result": results, "model_version": ADAPTER, "score": prediction.score or 0.0}


def prompt_of(drawn: list[dict]) -> tuple[Prompt, str]:
    """What was clicked and drawn, in pixels, and its label; clicks beside a rectangle correct its mask."""
    points, labels, boxes, label = [], [], [], ""
    for one in drawn:
        value, size = one["value"], np.array([one["original_width"], one["original_height"]])
        label = value[one["type"]][0]
        corner = np.array([value["x"], value["y"]]) / 100 * size
        if one["type"] == "keypointlabels":
            points.append(np.minimum(corner, size - 1))
            labels.append(int(one.get("is_positive", 1)))
        else:
            far = corner + np.array([value["width"], value["height"]]) / 100 * size
            boxes.append(np.concatenate([corner, np.minimum(far, size) - 1]))
    prompt = Prompt.box(boxes[-1]) if boxes else Prompt.clicks(points, labels)
    if boxes and points:
        prompt.points = np.array([points], np.float32)
        prompt.point_labels = np.array([labels], np.int64)
    return prompt, label


def brush(mask: np.ndarray, label: str, score: float | None, names: dict) -> dict:
    """A mask, bool (H, W), as Label Studio stores what a brush has drawn."""
    height, width = mask.shape
    return names | {
        "id": uuid4().hex[:8],
        "type": "brushlabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": mask2rle(mask.astype(np.uint8) * 255), "brushlabels": [label]},
        "score": score or 0.0,
        "readonly": False,
    }
