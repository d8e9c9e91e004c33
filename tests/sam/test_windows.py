"""The encoder without attention windows: the official values, and the base as it came afterwards."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from sams import perturb, random_sam
from transformers import SamVisionConfig, SamVisionModel, ViTConfig, ViTModel

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, ModaConfig, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.image_size import resize_input
from hf_sam_adapt.sam.windows import remove_windows, restore_windows
from hf_sam_adapt.tuners.l2p import L2pConfig


def pixels(batch=2, size=64):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_the_values_of_the_official_encoder():
    """Of CoSAM's own module: the i-th parameter by name is a sine of phase i + 1, norms' weights are one more."""
    config = SamVisionConfig(
        hidden_size=8,
        output_channels=4,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        layer_norm_eps=1e-6,
        window_size=3,
        global_attn_indexes=[1],
        mlp_dim=32,
        num_pos_feats=2,
    )
    model = SamVisionModel(config).eval()
    named = sorted((name.removeprefix("vision_encoder."), value) for name, value in model.named_parameters())
    for place, (name, parameter) in enumerate(named):
        values = 0.3 * np.sin(0.7 * np.arange(parameter.numel()) + place + 1)
        values = torch.from_numpy(values).float().reshape(parameter.shape)
        parameter.copy_(values + float("norm" in name and name.endswith("weight")))
    image = torch.from_numpy(np.sin(0.05 * np.arange(3 * 32 * 32))).float().reshape(1, 3, 32, 32)

    def neck():
        return model(image).last_hidden_state

    windowed = torch.tensor([1.166394, 0.042224, -0.740662, -1.391156])
    torch.testing.assert_close(neck()[0, :, 0, 0], windowed, atol=3e-5, rtol=0)
    remove_windows(model)
    official = torch.tensor([1.166051, 0.043203, -0.739961, -1.392946])
    torch.testing.assert_close(neck()[0, :, 0, 0], official, atol=3e-5, rtol=0)
    assert neck().mean().item() == pytest.approx(-0.207176, abs=3e-5)
    restore_windows(model)
    torch.testing.assert_close(neck()[0, :, 0, 0], windowed, atol=3e-5, rtol=0)


def without_windows(sam):
    """A SAM whose blocks are told to have no windows: transformers stretches their tables itself."""
    sam = copy.deepcopy(sam)
    for layer in sam.vision_encoder.layers:
        layer.window_size = 0
    return sam


CONFIGS = {
    "sam_adapter": SamAdapterConfig(global_attention=True),
    "conv_lora": ConvLoraConfig(global_attention=True),
    "cwsam": CwsamConfig(global_attention=True, decoder="full"),
    "decoder": SamDecoderConfig(global_attention=True),
    "hq": SamDecoderConfig(decoder="hq", global_attention=True),
    "l2p": L2pConfig(pool_size=4, top_k=2, global_attention=True),
    "moda": ModaConfig(inner=SamDecoderConfig(decoder="hq", global_attention=True), domains=["one"]),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_every_method_takes_it(name, tmp_path):
    plain = random_sam()
    before = plain.state_dict()
    sam = random_sam()
    model = get_peft_model(sam, copy.deepcopy(CONFIGS[name])).eval()
    embedding = without_windows(plain).vision_encoder(pixels()).last_hidden_state
    assert (embedding - plain.vision_encoder(pixels()).last_hidden_state).abs().max() > 1e-2
    with model.disable_adapter():
        torch.testing.assert_close(sam.vision_encoder(pixels()).last_hidden_state, embedding, atol=1e-5, rtol=0)
    perturb(model)
    expected = model(pixels(), **({"domain": "one"} if name == "moda" else {})).pred_masks
    model.save_pretrained(tmp_path, save_embedding_layers=False)
    loaded = PeftModel.from_pretrained(random_sam(), tmp_path).eval()
    found = loaded(pixels(), **({"domain": "one"} if name == "moda" else {})).pred_masks
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    base = loaded.unload() if name != "moda" else loaded.base_model.unload()
    after = base.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
    assert [layer.window_size for layer in base.vision_encoder.layers] == [3, 0, 3]
    assert base.config.vision_config.global_attn_indexes == [1]


@torch.no_grad()
def test_at_another_input_size():
    sam = random_sam()
    model = get_peft_model(sam, SamDecoderConfig(global_attention=True, image_size=96))
    expected = random_sam()
    resize_input(expected, 96)
    expected = without_windows(expected)(pixels(size=96), multimask_output=False).pred_masks
    torch.testing.assert_close(model(pixels(size=96)).pred_masks, expected, atol=1e-5, rtol=1e-5)
    model.unload()
    assert sam.vision_encoder.layers[0].attn.rel_pos_h.shape == (5, 16)
    assert sam.vision_encoder.layers[1].attn.rel_pos_h.shape == (15, 16)


@torch.no_grad()
def test_a_merged_model_keeps_it_on_disk(tmp_path):
    model = get_peft_model(random_sam(), SamDecoderConfig(global_attention=True)).eval()
    perturb(model)
    expected = model(pixels()).pred_masks
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    again = type(merged).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(pixels(), multimask_output=False).pred_masks, expected, atol=1e-5, rtol=1e-5)


def test_a_second_adapter_has_to_agree():
    model = get_peft_model(random_sam(), SamDecoderConfig(global_attention=True))
    model.add_adapter("second", SamDecoderConfig(global_attention=True))
    with pytest.raises(UserError, match="'third' has global_attention=False, this model's adapters have True"):
        model.add_adapter("third", SamDecoderConfig())
    other = get_peft_model(random_sam(), SamDecoderConfig())
    with pytest.raises(UserError, match="has global_attention=True, this model's adapters have False"):
        other.add_adapter("second", SamDecoderConfig(global_attention=True))


def test_a_refused_adapter_leaves_the_windows():
    sam = random_sam()
    with pytest.raises(UserError, match="layers_to_transform"):
        get_peft_model(sam, SamAdapterConfig(global_attention=True, layers_to_transform=[7]))
    assert [layer.window_size for layer in sam.vision_encoder.layers] == [3, 0, 3]


def test_another_transformer_has_no_windows_to_remove():
    vit = ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16))
    with pytest.raises(UserError, match="has no SAM vision encoder"):
        get_peft_model(vit, ConvLoraConfig(global_attention=True))
