"""An HQ decoder from the command line: trained with and without kept embeddings, evaluated, predicted with."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from hf_sam_adapt.cli import main
from hf_sam_adapt.inference.loading import load_adapted


@pytest.mark.parametrize("cached", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_train_evaluate_and_predict_with_tiny(cached, disc_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_SAM_ADAPT_CACHE", str(tmp_path / "cache"))
    run, out = tmp_path / "run", tmp_path / "out"

    def call(*argv):
        assert main([str(word) for word in argv]) == 0

    flags = ("--model", "tiny", "--method", "decoder", "--method_args.decoder", "hq", "--dataset", disc_folder)
    flags = (*flags, "--max_steps", 2, "--prompts", "none", "box", "--augment", "none", "--cache_embeddings", cached)
    call("train", *flags, "--output_dir", run)
    config = json.loads((run / "adapter_config.json").read_text())
    assert config["decoder"] == "hq" and config["early_layer"] is None
    prefix = "base_model.model.mask_decoder.sam_decoder_hq_head."
    assert all(key.startswith(prefix) for key in load_file(run / "adapter_model.safetensors"))
    assert any((tmp_path / "cache").rglob("*_block2")) == (cached == "true")

    call("evaluate", "--adapter", run, "--dataset", disc_folder, "--prompts", "none", "box", "--output_dir", out)
    trained, measured = (json.loads((folder / "metrics.json").read_text())["test"] for folder in (run, out))
    for kind in ("none", "box"):
        for name in ("adapted", "zero_shot"):
            assert measured[kind][name]["iou"] == pytest.approx(trained[kind][name]["iou"], abs=1e-3)

    (image, *_) = sorted((disc_folder / "test" / "images").iterdir())
    call("predict", image, "--adapter", run, "--output_dir", tmp_path / "masks")
    loaded = load_adapted(str(run))
    inputs = loaded.processor([Image.open(image)])
    with torch.no_grad():
        low = loaded.model(pixel_values=inputs["pixel_values"]).pred_masks[0, 0]  # (1, h, w)
    sizes = [inputs["original_sizes"][0].tolist()], [inputs["reshaped_input_sizes"][0].tolist()]
    (logits,) = loaded.processor.post_process_masks([low], *sizes)
    (mask,) = (tmp_path / "masks").glob("*_mask.png")
    assert np.array_equal(np.asarray(Image.open(mask)) > 0, logits[0].numpy() > 0)
