"""The example's Label Studio backend, on stand-ins for the two libraries that it is started by."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt import Prompt, SamAdaptPredictor
from hf_sam_adapt.data.synthetic import draw_sample


FOLDER = Path(__file__).parents[2] / "examples/label_studio"


class Backend:
    """What `LabelStudioMLBase` gives: the interface's names, files of tasks, values that are kept."""

    label_interface = SimpleNamespace(get_control=lambda name: SimpleNamespace(labels=["polyp"]))

    def __init__(self):
        self.kept = {}
        self.setup()

    def set(self, key, value):
        self.kept[key] = value

    def get_first_tag_occurence(self, control, image):
        assert (control, image) == ("BrushLabels", "Image")
        return "mask", "image", "image"

    def get_local_path(self, url, task_id=None):
        return url


@pytest.fixture(scope="module")
def model():
    """The example's module; masks stay arrays."""
    names = ("label_studio_ml", "label_studio_ml.model", "label_studio_ml.response", "label_studio_sdk")
    names += ("label_studio_sdk.converter", "label_studio_sdk.converter.brush")
    before = {name: sys.modules.get(name) for name in names}
    modules = {name: ModuleType(name) for name in names}
    modules["label_studio_ml.model"].LabelStudioMLBase = Backend
    modules["label_studio_ml.response"].ModelResponse = lambda predictions: predictions
    modules["label_studio_sdk.converter.brush"].mask2rle = lambda mask: mask
    sys.modules.update(modules)
    try:
        spec = importlib.util.spec_from_file_location("label_studio_example", FOLDER / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name, value in before.items():
            if value is None:
                del sys.modules[name]
            else:
                sys.modules[name] = value
    return module


@pytest.fixture
def task(tmp_path):
    Image.fromarray(draw_sample("polyp", "test", 5)[0]).resize((200, 120)).save(tmp_path / "image.png")
    return {"id": 1, "data": {"image": str(tmp_path / "image.png")}}


def drawn(kind, x, y, **more):
    value = {"x": x, "y": y, kind: ["polyp"], **{key: more.pop(key) for key in ("width", "height") if key in more}}
    return {"type": kind, "value": value, "original_width": 200, "original_height": 120, **more}


CLICK = drawn("keypointlabels", 50, 40, is_positive=True)
AWAY = drawn("keypointlabels", 100, 100, is_positive=False)
BOX = drawn("rectanglelabels", 10, 20, width=50, height=80)


@pytest.mark.parametrize(
    ("context", "prompt"),
    [
        ([CLICK], Prompt.clicks([(100, 48)])),
        ([CLICK, AWAY], Prompt.clicks([(100, 48), (199, 119)], [1, 0])),
        ([BOX], Prompt.box((20, 24, 119, 119))),
    ],
)
def test_clicks_and_boxes_give_the_masks_of_the_predictor(context, prompt, model, task):
    (found,) = model.SamAdaptBackend().predict([task], {"result": context})
    (result,) = found["result"]
    expected = SamAdaptPredictor.from_pretrained("tiny").predict(task["data"]["image"], prompt)[0].mask
    assert expected.any() and np.array_equal(result["value"]["rle"], 255 * expected.astype(np.uint8))
    assert (result["from_name"], result["to_name"], result["type"]) == ("mask", "image", "brushlabels")
    assert (result["original_width"], result["original_height"]) == (200, 120)
    assert result["value"]["brushlabels"] == ["polyp"]


def test_clicks_beside_a_box_correct_it(model):
    prompt, label = model.prompt_of([BOX, AWAY])
    assert label == "polyp" and prompt.kind == "box" and prompt.points.shape == (1, 1, 2)
    assert prompt.point_labels.tolist() == [[0]]


def test_without_a_click_what_the_model_finds_by_itself(model, task, monkeypatch):
    found = model.SamAdaptBackend().predict([task, task])
    expected = SamAdaptPredictor.from_pretrained("tiny").predict(task["data"]["image"])[0].mask
    assert len(found) == 2 and np.array_equal(found[1]["result"][0]["value"]["rle"] > 0, expected)
    monkeypatch.setattr(model, "PROMPTLESS", False)
    assert model.SamAdaptBackend().predict([task]) == []
