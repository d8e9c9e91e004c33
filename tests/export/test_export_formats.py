"""Smaller ONNX files, the encoder that takes images, and `torch.export`: each is compared with PyTorch by `export`."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from exported_models import save_adapter_of

from hf_sam_adapt import ConvLoraConfig, SamAdapterConfig
from hf_sam_adapt.convert.export import export


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    return str(
        save_adapter_of("tiny", tmp_path_factory.mktemp("adapters") / "one", SamAdapterConfig(init_weights=False))
    )


@pytest.mark.parametrize(("precision", "least", "most"), [("fp16", 0.45, 0.6), ("int8", 0.2, 0.6)])
def test_smaller_files_cost_little(precision, least, most, adapter, tmp_path):
    whole = export(adapter, tmp_path / "whole", progress=False)
    small = export(adapter, tmp_path / "small", precision=precision, progress=False)
    for name in ("encoder.onnx", "promptless.onnx"):
        assert least < small.files[name] / whole.files[name] < most
    assert small.files["decoder.onnx"] == whole.files["decoder.onnx"]
    for before, after in zip(whole.comparisons, small.comparisons):
        assert before.difference < 1e-4 < after.difference < small.bound and after.pixels < 0.05


def test_an_encoder_that_takes_images(adapter, tmp_path):
    done = export(adapter, tmp_path / "onnx", encoder_input="image", progress=False)
    assert all(one.difference < 1e-4 for one in done.comparisons)
    import onnxruntime

    (given,) = onnxruntime.InferenceSession(tmp_path / "onnx/encoder.onnx").get_inputs()
    assert given.shape == ["image_height", "image_width", 3]
    inputs = {one.name: one for one in onnxruntime.InferenceSession(tmp_path / "onnx/decoder.onnx").get_inputs()}
    assert inputs["point_coords"].shape == ["batch", "points", 2]


@pytest.mark.parametrize("aot", [False, True])
def test_programs_run_without_the_package(aot, tmp_path):
    if aot and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    adapter = save_adapter_of("tiny", tmp_path / "adapter", ConvLoraConfig(init_weights=False))
    done = export(str(adapter), tmp_path / "programs", format="torch", aot=aot, progress=False)
    assert set(done.files) == {"config.json", "encoder.pt2", "decoder.pt2", "promptless.pt2"}
    assert all(one.difference < 1e-4 for one in done.comparisons)
    load = "torch._inductor.aoti_load_package(file)" if aot else "torch.export.load(file).module()"
    code = f"""
import sys
for name in ("hf_sam_adapt", "transformers", "peft"):
    sys.modules[name] = None
import torch
file, out = sys.argv[1:]
torch.save({load}(image=torch.ones(3, 3, 256, 256)), out)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "programs/promptless.pt2"), str(tmp_path / "out.pt")]
    subprocess.run(command, check=True)
    from hf_sam_adapt.inference.loading import load_adapted

    with torch.no_grad():
        expected = load_adapted(str(adapter)).model(pixel_values=torch.ones(3, 3, 256, 256)).pred_masks[:, 0]
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert np.abs(found - expected).max() < 1e-4 * expected.abs().max()
