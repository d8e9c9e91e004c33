"""One export by the command: what it writes, prints and refuses, and annotators on its files."""

import contextlib
import io
import json
import re

import numpy as np
import pytest
import torch
import yaml
from exported_models import compare_with_pytorch
from PIL import Image
from sams import perturb

from hf_sam_adapt import errors
from hf_sam_adapt.cli import main
from hf_sam_adapt.convert.export import export
from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import build_model, load_adapted, load_base, save_adapter
from hf_sam_adapt.inference.predictor import SamAdaptPredictor
from hf_sam_adapt.prompts import Prompt


pytestmark = pytest.mark.xdist_group("export")  # one worker writes what all of them read


@pytest.fixture(scope="session")
def make_run(sam_folder, tmp_path_factory):
    """Returns `make(method, fields, **recipe) -> folder`: a run on drawn images, with random weights."""

    def make(method, fields=None, **recipe):
        base, processor = load_base(sam_folder)
        folder = tmp_path_factory.mktemp("runs") / method
        save_adapter(perturb(build_model(method, fields or {}, base)), folder)
        processor.save_pretrained(folder)
        keys = {"model": sam_folder, "method": method, "dataset": "synthetic:polyp", **recipe}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(keys))
        return folder

    return make


@pytest.fixture(scope="session")
def run_folder(make_run):
    return make_run("sam_adapter", {"features": ["embedding", "high", "low"]}, prompts=["none", "box"])


@pytest.fixture(scope="session")
def onnx_folder(run_folder, tmp_path_factory):
    """The run's export by the command, and what that printed."""
    folder = tmp_path_factory.mktemp("exports") / "onnx"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["export", str(run_folder), "--output_dir", str(folder), "--limit", "2"]) == 0
    return folder, printed.getvalue()


@pytest.fixture(scope="session")
def lora_run(make_run):
    return make_run("lora", {"r": 4})


def test_the_command_says_what_it_wrote_and_how_it_compares(onnx_folder):
    folder, printed = onnx_folder
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        *(f"{name}.onnx" for name in ("encoder", "decoder", "promptless")),
    }
    assert "Beside PyTorch on 2 of 60 test images of synthetic:polyp:" in printed
    config = json.loads((folder / "config.json").read_text())
    assert config["slices"] is None and config["tiling"] is None
    for one in config["compared_with_pytorch"]:
        assert 0 <= one["difference"] < 1e-4 and one["pixels"] <= 1e-4 and 0 <= one["iou"] <= 1
        assert re.search(rf"^  {one['kind']} +IoU {one['iou']:.4f} in PyTorch, ", printed, re.MULTILINE)
    assert [one["kind"] for one in config["compared_with_pytorch"]] == ["none", "box"]
    assert config["method"] == "sam_adapter" and config["files"]["decoder"] == "decoder.onnx"
    assert (config["image_size"], config["mask_size"], config["resize"]) == (64, 32, "pad")
    for name in config["files"].values():  # the exporter's records of the code that it traced, and of where that lies
        assert b"hf_sam_adapt" not in (folder / name).read_bytes()
    assert (config["labels"], config["domains"], config["estimates_iou"]) == (None, None, False)


def test_files_equal_pytorch_in_a_process_without_torch(onnx_folder, run_folder, tmp_path):
    assert compare_with_pytorch(load_adapted(str(run_folder)), onnx_folder[0], tmp_path, size=(70, 99)) == 4


class Annotator:
    """What segment-anything's notebook and the annotators do with the two files, written down literally."""

    def __init__(self, folder):
        import onnxruntime

        self.config = json.loads((folder / "config.json").read_text())
        files = [str(folder / self.config["files"][name]) for name in ("encoder", "decoder")]
        self.encoder, self.decoder = map(onnxruntime.InferenceSession, files)

    def set_image(self, file):
        image = Image.open(file).convert("RGB")
        side, (width, height) = self.config["image_size"], image.size
        scale = side * 1.0 / max(height, width)
        new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
        values = np.asarray(image.resize((new_width, new_height), Image.Resampling.BILINEAR)).astype(np.float32) / 255
        values = (values - np.float32(self.config["image_mean"])) / np.float32(self.config["image_std"])
        padded = np.zeros((1, 3, side, side), np.float32)
        padded[0, :, :new_height, :new_width] = values.transpose(2, 0, 1)
        self.size, self.factors = (height, width), (new_width / width, new_height / height)
        self.embeddings = self.encoder.run(None, {self.encoder.get_inputs()[0].name: padded})[0]

    def logits(self, points, labels):
        side = self.config["mask_size"]
        inputs = {
            "image_embeddings": self.embeddings,
            "point_coords": (np.array([points]) * self.factors).astype(np.float32),
            "point_labels": np.array([labels], np.float32),
            "mask_input": np.zeros((1, 1, side, side), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(self.size, np.float32),
        }
        masks, _, _ = self.decoder.run(None, inputs)
        return masks[0, 0]


@pytest.mark.parametrize("size", [(60, 91), (150, 80), (64, 64)])
def test_an_annotator_draws_the_masks_of_predict(size, onnx_folder, run_folder, tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(draw_sample("polyp", "test", 0)[0]).resize(size[::-1]).save(file)
    annotator, predictor = Annotator(onnx_folder[0]), SamAdaptPredictor.from_pretrained(run_folder)
    annotator.set_image(file)
    box, clicks = (8, 10, 41, 37), [(20, 30), (50, 12), (30, 22)]
    for prompt, points, labels in (
        (Prompt.box(box), [box[:2], box[2:]], [2, 3]),
        (Prompt.clicks(clicks, [1, 0, 1]), [*clicks, (0, 0)], [1, 0, 1, -1]),
    ):
        found, expected = annotator.logits(points, labels), predictor.predict(file, prompt)[0]
        assert found.shape == size and ((found > 0) != expected.mask).mean() <= 1e-4
        middle = np.median(expected.logits)  # random weights may find nothing: where half the pixels are above
        assert ((found > middle) != (expected.logits > middle)).mean() <= 1e-4


def test_a_lora_is_merged_for_transformers(lora_run, tmp_path):
    from transformers import SamModel

    done = export(str(lora_run), tmp_path / "merged", format="transformers", limit=2, progress=False)
    assert "model.safetensors" in done.files and done.comparisons[0].difference < 1e-4
    sam, images = SamModel.from_pretrained(tmp_path / "merged").eval(), torch.randn(2, 3, 64, 64)
    adapted = load_adapted(str(lora_run)).model
    with torch.no_grad():
        expected = adapted(pixel_values=images, multimask_output=False).pred_masks
        found = sam(pixel_values=images, multimask_output=False).pred_masks
        with adapted.disable_adapter():
            plain = adapted(pixel_values=images, multimask_output=False).pred_masks
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max() < (plain - expected).abs().max()


def test_drawn_noise_where_no_data_set_is_known(lora_run, tmp_path):
    (bare := tmp_path / "adapter").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"):
        (bare / name).write_bytes((lora_run / name).read_bytes())
    done = export(str(bare), tmp_path / "merged", format="transformers", progress=False)
    assert done.tested == "drawn noise" and [one.iou for one in done.comparisons] == [None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 17}, "opset: 17 is too old; choose 18 to "),
        ({"opset": 1000}, "opset: 1000 is newer than the installed onnx"),
        ({"format": "tflite"}, "format: 'tflite' is unknown; use one of onnx"),
        ({"precision": "int4"}, "precision: 'int4' is unknown"),
        ({"precision": "fp16", "format": "torch"}, "precision: only --format onnx takes it, not torch"),
        ({"opset": 3, "format": "torch"}, "opset: only --format onnx takes it, not torch"),
        ({"encoder_input": "image", "format": "sam-pth"}, "encoder_input: only --format onnx or torch takes it"),
        ({"aot": True}, "aot: only --format torch takes it, not onnx"),
        ({"limit": -1}, "limit: -1 is below 0"),
        ({"max_difference": 0.0}, "max_difference: 0.0 is not above 0"),
        ({"format": "transformers", "max_difference": 1e-12}, "max_difference: with prompt none a logit differs from"),
        ({"format": "transformers", "dataset": "nowhere"}, "nowhere"),
    ],
    ids=str,
)
def test_bad_options_leave_nothing(options, message, lora_run, tmp_path):
    with pytest.raises(UserError, match=re.escape(message)):
        export(str(lora_run), tmp_path / "out", progress=False, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["sam-pth", "transformers"])
def test_what_does_not_merge_names_the_formats_that_take_it(format, run_folder, tmp_path):
    with pytest.raises(UserError, match=rf"sam_adapter cannot be written as {format}: .* use --format onnx or torch"):
        export(str(run_folder), tmp_path / "out", format=format, limit=1, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_in_use(lora_run, tmp_path):
    (tmp_path / "kept.txt").write_text("mine")
    with pytest.raises(UserError, match=r"^output_dir: .* already exists and is not an empty folder"):
        export(str(lora_run), tmp_path, format="transformers", progress=False)
    assert (tmp_path / "kept.txt").read_text() == "mine"


def test_a_data_set_that_has_gone(make_run, tmp_path):
    run = make_run("lora", {"r": 2}, dataset=str(tmp_path / "gone"))
    with pytest.raises(UserError, match=r"dataset: .* was trained on .*, which is not there; name its data set"):
        export(str(run), tmp_path / "out", format="transformers", progress=False)


def test_a_missing_extra_is_named(lora_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "onnxruntime" else object())
    assert main(["export", str(lora_run), "--output_dir", str(tmp_path / "out")]) == 2
    said = "error: export --format onnx needs onnxruntime, which is not installed; run pip install "
    assert capsys.readouterr().err == f"{said}'hf-sam-adapt[export]'\n"


@pytest.mark.parametrize("argv", [[], ["tiny"]])
def test_what_is_not_given(argv, capsys):
    assert main(["export", *argv]) == 2
    assert capsys.readouterr().err.count("\n") == 1
