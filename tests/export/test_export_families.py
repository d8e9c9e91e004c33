"""SAM 2, SAM 3 and SAM-HQ: their ONNX files, run without torch, against PyTorch, and an annotator on SAM 2's."""

import numpy as np
import onnxruntime
import pytest
import torch
from exported_models import compare_with_pytorch, images_of, relative_error, save_adapter_of
from sams import RANDOM_SAMS
from test_parts import cases_of

from hf_sam_adapt import SamDecoderConfig
from hf_sam_adapt.convert.export import export
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.forward import segment
from hf_sam_adapt.inference.loading import load_adapted, load_base
from hf_sam_adapt.prompts import Prompt


@pytest.fixture(scope="session")
def base_of(tmp_path_factory):
    """Returns `base_of(kind) -> folder` of a small SAM with its processor."""
    folders = {}

    def make(kind):
        if kind not in folders:
            folders[kind] = str(tmp_path_factory.mktemp("bases") / kind)
            RANDOM_SAMS[kind]().save_pretrained(folders[kind])
            load_base(folders[kind])[1].save_pretrained(folders[kind])
        return folders[kind]

    return make


CASES = [
    *(("sam2", name) for name in cases_of("sam2")),
    *(
        (kind, name)
        for kind in ("sam_hq", "sam3_tracker")
        for name in ("sam_adapter", "conv_lora", "decoder, classes")
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_onnx_equals_pytorch(kind, name, base_of, tmp_path):
    adapter = save_adapter_of(base_of(kind), tmp_path / "adapter", cases_of(kind)[name]())
    export(str(adapter), tmp_path / "onnx", progress=False)
    assert compare_with_pytorch(load_adapted(str(adapter)), tmp_path / "onnx", tmp_path) >= 2


def test_a_merged_sam_2_returns_the_mask_that_was_trained(base_of, tmp_path):
    adapter = save_adapter_of(base_of("sam2"), tmp_path / "adapter", cases_of("sam2")["lora"]())
    done = export(str(adapter), tmp_path / "merged", format="transformers", progress=False)
    assert all(one.difference < 1e-4 for one in done.comparisons)


@pytest.mark.parametrize("kind", ["sam_hq", "sam3_tracker"])
def test_what_transformers_computes_otherwise_is_not_written_for_it(kind, base_of, tmp_path):
    message = r"max_difference: with prompt box a logit differs from .* use --format onnx or torch"
    with pytest.raises(UserError, match=message):
        export(base_of(kind), tmp_path / "out", format="transformers", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_annotator_for_sam_2_leaves_the_size_out(base_of, tmp_path):
    """X-AnyLabeling gives the decoder its inputs in their order, and brings the mask to the image's size itself."""
    adapter = save_adapter_of(base_of("sam2"), tmp_path / "adapter", SamDecoderConfig(init_weights=False))
    export(str(adapter), tmp_path / "onnx", progress=False)
    encoder, decoder = (
        onnxruntime.InferenceSession(tmp_path / f"onnx/{name}.onnx") for name in ("encoder", "decoder")
    )
    loaded = load_adapted(str(adapter))
    pixels, side = images_of(loaded.processor, 1), loaded.processor.image_size
    high_res_feats_0, high_res_feats_1, image_embed = encoder.run(None, {"image": pixels.numpy()})
    corners = [[20.0, 31.0], [77.0, 90.0]]
    mask, none = np.zeros((1, 1, side // 4, side // 4), np.float32), np.zeros(1, np.float32)
    points = np.float32([corners]), np.float32([[2, 3]])
    inputs = (image_embed, high_res_feats_0, high_res_feats_1, *points, mask, none)
    names = [one.name for one in decoder.get_inputs()]
    assert len(names) == len(inputs)
    masks, scores, low_res = decoder.run(None, dict(zip(names, inputs)))
    with torch.no_grad():
        prompt = Prompt("box", boxes=torch.tensor(corners).flatten()[None])
        expected = segment(loaded.model, pixels, [prompt])[0][None]  # (1, 1, 4g, 4g)
    assert relative_error(low_res, expected.numpy()) < 1e-4 and scores.shape == (1, 1)
    at_input = torch.nn.functional.interpolate(expected, (side, side), mode="bilinear")
    assert relative_error(masks, at_input.numpy()) < 1e-4
