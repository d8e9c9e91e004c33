"""Six float channels and one of 16 bits, from the recipe to a fresh process that loads the adapter: equal outputs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from launching import ROOT, environment
from PIL import Image

from hf_sam_adapt.cli import main
from hf_sam_adapt.cli.predict import predict
from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.training import train


# What a user would write who has only the base model and the run folder.
FRESH = """
import sys
import torch
import hf_sam_adapt
from peft import PeftModel
from transformers import SamModel
from hf_sam_adapt.cli import main

torch.set_num_threads(1)
base, run, pixels, out = sys.argv[1:]
model = PeftModel.from_pretrained(SamModel.from_pretrained(base), run).eval()
with torch.no_grad():
    torch.save(model(pixel_values=torch.load(pixels)).pred_masks, f"{out}/logits.pt")
config = model.peft_config["default"]
assert (config.in_channels, config.train_patch_embed) == (torch.load(pixels).shape[1], True)
assert main(["evaluate", "--adapter", run, "--output_dir", f"{out}/scores"]) == 0
"""


def six_floats(rng, mask, path):
    image = rng.normal(5, 1, (*mask.shape, 6)).astype(np.float32)
    image[..., 4] += 4 * mask
    np.save(path.with_suffix(".npy"), image)
    return image


def sixteen_bits(rng, mask, path):
    image = (rng.integers(200, 3000, mask.shape) + 12_000 * mask.astype(int)).astype(np.uint16)
    Image.fromarray(image).save(path.with_suffix(".png"))
    return image[..., None].astype(np.float32)


KINDS = {
    "six floats": (six_floats, 6, {"method": "sam_adapter", "normalization": "zscore"}),
    "one of 16 bits": (sixteen_bits, 1, {"method": "cwsam", "num_labels": 3, "normalization": "db"}),
}


@pytest.mark.parametrize("kind", ["six floats", pytest.param("one of 16 bits", marks=pytest.mark.slow)])
def test_trains_evaluates_predicts_and_comes_back_in_a_fresh_process(kind, sam_folder, tmp_path):
    write, channels, keys = KINDS[kind]
    rng, data, images = np.random.default_rng(0), tmp_path / "data", []
    for split, count in (("train", 6), ("test", 3)):
        for part in ("images", "masks"):
            (data / split / part).mkdir(parents=True)
        for index in range(count):
            mask = np.zeros((40, 50), np.uint8)
            mask[10:30, 5 + index : 25 + index] = 1
            mask[32:, :20] = 2 if "num_labels" in keys else 0
            images.append(write(rng, mask, data / split / "images" / str(index)))
            Image.fromarray(mask).save(data / split / "masks" / f"{index}.png")
    argv = ["--model", sam_folder, "--dataset", str(data), "--channels", str(channels), "--max_steps", "3"]
    for key, value in keys.items():
        argv += [f"--{key}", str(value)]
    run = train(parse_recipe([*argv, "--augment", "flip", "--output_dir", str(tmp_path / "run")]))
    trained = json.loads((run / "metrics.json").read_text())["test"]

    loaded = load_adapted(str(run))
    pixels = loaded.processor(images[-2:])["pixel_values"]  # (2, C, 64, 64)
    assert pixels.shape == (2, channels, 64, 64)
    with torch.no_grad():
        expected = loaded.model.eval()(pixel_values=pixels).pred_masks
    torch.save(pixels, tmp_path / "pixels.pt")
    command = [sys.executable, "-c", FRESH, sam_folder, str(run), str(tmp_path / "pixels.pt"), str(tmp_path)]
    found = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr[-2000:]
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected) and expected.std() > 0
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["test"] == trained

    source = str(data / "test" / "images")
    assert main(["predict", source, "--adapter", str(run), "--output_dir", str(tmp_path / "maps")]) == 0
    records = predict([source], str(run), output_dir=tmp_path / "again", progress=False)
    assert len(records) == 3
    for record in records:
        masks = [np.asarray(Image.open(tmp_path / folder / record["mask"])) for folder in ("maps", "again")]
        assert masks[0].shape == (40, 50) and np.array_equal(*masks)


def test_a_method_without_a_patch_embedding_of_its_own_refuses_channels(sam_folder, tmp_path):
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for index in range(4):
        six_floats(np.random.default_rng(index), np.eye(32, dtype=np.uint8), tmp_path / "data" / "images" / str(index))
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / "data" / "masks" / f"{index}.png")
    argv = ["--model", sam_folder, "--dataset", str(tmp_path / "data"), "--channels", "6", "--method", "lora"]
    with pytest.raises(UserError, match="lora"):
        train(parse_recipe([*argv, "--output_dir", str(tmp_path / "run")]))
