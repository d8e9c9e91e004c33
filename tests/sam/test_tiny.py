"""The embedded SAM: what it weighs, that it sees the image, and what it reaches on drawn scenes it has not seen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from evaluate_tiny import DrawnScenes, embedding_deviation
from peft import AutoPeftModel, LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file
from sams import perturb
from transformers import SamModel

from hf_sam_adapt import (
    ConvLoraConfig,
    CwsamConfig,
    L2pConfig,
    ModaConfig,
    ModaModel,
    SamAdapterConfig,
    SamDecoderConfig,
    load_tiny_sam,
)
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.evaluation import evaluate
from hf_sam_adapt.sam.tiny import export_tiny, tiny_folder


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def tiny():
    return load_tiny_sam()


@pytest.fixture(scope="module")
def scenes():
    return DrawnScenes(seed=2, count=40)


def test_size_and_kind(tiny):
    model, processor = tiny
    assert type(model) is SamModel and model.dtype == torch.float32 and model.name_or_path == "tiny"
    assert sum(parameter.numel() for parameter in model.parameters()) <= 6_000_000
    assert (tiny_folder() / "model.safetensors").stat().st_size <= 12_000_000
    weights = load_file(tiny_folder() / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert (processor.image_size, processor.patch_size, processor.resize) == (256, 16, "pad")
    assert {path.suffix for path in tiny_folder().iterdir()} == {".safetensors", ".json", ".md"}


def test_encoder_is_not_blind(tiny, scenes):
    """Trained on prompts alone, the embedding stops depending on the image: deviation 0.0035 over images."""
    assert embedding_deviation(*tiny, scenes) > 0.35


def test_masks_of_scenes_it_has_not_seen(tiny, scenes):
    model, processor = tiny
    found = evaluate(
        model, processor, scenes, ["box", "point"], adapted=False, zero_shot_model=model, progress=False
    ).test
    assert found["box"]["zero_shot"]["iou"] > 0.52
    assert found["point"]["zero_shot"]["iou"] > 0.45


def test_export_is_an_ordinary_model_folder(tiny, tmp_path):
    export_tiny(tmp_path / "sam")
    model = SamModel.from_pretrained(tmp_path / "sam").eval()
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        assert torch.equal(model(pixel_values=images).pred_masks, tiny[0](pixel_values=images).pred_masks)
    with pytest.raises(UserError, match="not an empty folder"):
        export_tiny(tmp_path / "sam")


METHODS = {
    "decoder": SamDecoderConfig,
    "sam_adapter": SamAdapterConfig,
    "conv_lora": ConvLoraConfig,
    "cwsam": lambda: CwsamConfig(num_labels=2),
    "l2p": L2pConfig,
    "moda": lambda: ModaConfig(domains=["polyp"]),
}


def texts_of(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir() if path.suffix in (".md", ".json")}


@pytest.mark.parametrize("method", METHODS)
def test_an_adapter_finds_tiny_without_the_network(method, tmp_path, recwarn):
    model = perturb(get_peft_model(load_tiny_sam()[0], METHODS[method]()), std=0.01).eval()
    model.save_pretrained(tmp_path / "first")
    asked = [str(warning.message) for warning in recwarn if "config" in str(warning.message).lower()]
    assert [text for text in asked if "gradient" not in text] == []
    texts = texts_of(tmp_path / "first")
    assert json.loads(texts["adapter_config.json"])["base_model_name_or_path"] == "tiny"
    assert "base_model: tiny" in texts["README.md"] and str(tiny_folder().parent) not in "".join(texts.values())
    loaded = AutoPeftModel.from_pretrained(tmp_path / "first")
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        expected = model(pixel_values=images).pred_masks
        assert torch.equal(loaded.eval()(pixel_values=images).pred_masks, expected)
    loaded.save_pretrained(tmp_path / "second")
    assert texts_of(tmp_path / "second") == texts
    assert PeftConfig.from_pretrained(tmp_path / "second").to_dict()["base_model_name_or_path"] == "tiny"


@pytest.mark.parametrize("inner", [SamDecoderConfig(), LoraConfig(target_modules=["qkv"])], ids=["decoder", "lora"])
def test_a_pool_of_tiny_names_no_folder_of_this_machine(inner, tmp_path):
    pool = ModaModel(load_tiny_sam()[0], ModaConfig(inner=inner))
    pool.add_domain("polyp")
    pool.observe(torch.randn(4, 3, 256, 256))
    pool.finish_domain()
    pool.save_pretrained(tmp_path / "first")
    again = ModaModel.from_pretrained(load_tiny_sam()[0], tmp_path / "first")
    again.save_pretrained(tmp_path / "second")
    for file in tmp_path.rglob("adapter_config.json"):
        assert json.loads(file.read_text())["base_model_name_or_path"] == "tiny"
        assert str(tiny_folder().parent) not in file.read_text()


@pytest.mark.slow
def test_pretraining_resumes_bit_for_bit(tmp_path):
    def pretrain(folder: str, steps: int) -> None:
        command = [sys.executable, str(RECIPES / "pretrain_tiny.py"), "--output_dir", str(tmp_path / folder)]
        command += ["--pool", str(tmp_path / "pool"), "--shards", "1", "--workers", "1", "--max_steps", "6"]
        command += ["--stop_at", str(steps), "--dense_steps", "2", "--batch_size", "2", "--save_every", "2"]
        subprocess.run(command, check=True, capture_output=True)

    pretrain("straight", 6)
    pretrain("resumed", 4)
    assert json.loads((tmp_path / "resumed" / "progress.json").read_text())["step"] == 4
    pretrain("resumed", 6)
    straight, resumed = (load_file(tmp_path / name / "step_6.safetensors") for name in ("straight", "resumed"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
