import copy
import json

import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModel, PeftModel, get_peft_model
from sams import perturb, random_sam
from transformers import SamModel, ViTConfig, ViTModel

from hf_sam_adapt import SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.image_size import resize_input, restore_input


def run(model, size: int, **kwargs) -> torch.Tensor:
    model = copy.deepcopy(model).requires_grad_(False).eval()
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        return model(pixel_values=images, multimask_output=False, **kwargs).pred_masks


@pytest.mark.parametrize("size", [48, 64, 104])
def test_resize_interpolates_the_tables_and_restores_them(size):
    sam, original = random_sam(), random_sam()
    resize_input(sam, size)
    grid = size // 8
    expected = F.interpolate(original.vision_encoder.pos_embed.permute(0, 3, 1, 2), size=(grid, grid), mode="bicubic")
    assert torch.allclose(sam.vision_encoder.pos_embed, expected.permute(0, 2, 3, 1), atol=1e-6)
    assert sam.vision_encoder.layers[1].attn.rel_pos_h.shape == (2 * grid - 1, 16)
    assert sam.vision_encoder.layers[0].attn.rel_pos_h.shape == (5, 16)  # windowed: as it was
    boxes = torch.tensor([[[4.0, 5.0, 30.0, 40.0]], [[1.0, 1.0, 20.0, 9.0]]])
    assert run(sam, size, input_boxes=boxes).shape[-1] == 4 * grid
    restore_input(sam)
    assert torch.equal(run(sam, 64), run(original, 64))
    for key, value in original.state_dict().items():
        assert torch.equal(sam.state_dict()[key], value)
    assert sam.config.to_dict() == original.config.to_dict()


def test_relative_positions_equal_those_that_transformers_interpolates_itself():
    sam, own = random_sam(), random_sam()
    resize_input(own, 96)
    attention = sam.vision_encoder.layers[1].attn
    expected = attention.get_rel_pos(12, 12, attention.rel_pos_h)
    resized = own.vision_encoder.layers[1].attn
    assert torch.allclose(resized.get_rel_pos(12, 12, resized.rel_pos_h), expected, atol=1e-6)


@pytest.mark.parametrize("config_cls", [SamAdapterConfig, SamDecoderConfig])
def test_adapter_at_another_size(config_cls, tmp_path):
    random_sam().save_pretrained(tmp_path / "base")
    base = SamModel.from_pretrained(tmp_path / "base")
    model = perturb(get_peft_model(base, config_cls(image_size=96)))
    expected = run(model, 96)
    resized = random_sam()
    resize_input(resized, 96)
    assert not torch.equal(expected, run(resized, 96))
    with model.disable_adapter():
        assert torch.equal(run(model, 96), run(resized, 96))
    model.save_pretrained(tmp_path / "adapter")
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert stored["image_size"] == 96 and stored["base_fingerprint"]["image_size"] == 64
    assert torch.equal(run(PeftModel.from_pretrained(random_sam(), tmp_path / "adapter"), 96), expected)
    assert torch.equal(run(AutoPeftModel.from_pretrained(tmp_path / "adapter"), 96), expected)
    sam = random_sam()
    sam.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(run(sam, 96), expected)
    model.load_adapter(tmp_path / "adapter", adapter_name="second")
    model.set_adapter("second")
    assert torch.equal(run(model, 96), expected)
    assert torch.equal(run(model.unload(), 64), run(random_sam(), 64))


def test_second_adapter_of_another_size_is_refused():
    model = get_peft_model(random_sam(), SamAdapterConfig(scale_factor=4, image_size=96))
    for size in (None, 64, 128):
        with pytest.raises(UserError, match="run at 96"):
            model.add_adapter("second", SamAdapterConfig(scale_factor=4, image_size=size))
    model.add_adapter("second", SamAdapterConfig(scale_factor=4, image_size=96))
    plain = get_peft_model(random_sam(), SamAdapterConfig(scale_factor=4))
    with pytest.raises(UserError, match="run at 64"):
        plain.add_adapter("second", SamAdapterConfig(scale_factor=4, image_size=96))


@pytest.mark.parametrize("size", [60, 4])
def test_size_that_is_no_multiple_of_the_patch_is_refused(size):
    sam = random_sam()
    with pytest.raises(UserError, match="is not a multiple of 8, which SAM needs; the nearest is"):
        get_peft_model(sam, SamAdapterConfig(image_size=size))
    assert torch.equal(run(sam, 64), run(random_sam(), 64))


def test_failed_injection_leaves_the_base_at_its_size():
    sam = random_sam()
    with pytest.raises(ValueError, match="not found in the base model"):
        get_peft_model(sam, SamAdapterConfig(image_size=96, decoder="frozen", target_modules=["nothing"]))
    assert torch.equal(run(sam, 64), run(random_sam(), 64))


def test_model_without_a_sam_encoder_is_refused():
    vit = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, patch_size=8))
    with pytest.raises(UserError, match="no SAM vision encoder"):
        resize_input(vit, 64)
