"""Adapters of the methods on SAM-HQ, SAM 2 and SAM 3: other processes, precisions, sizes and channels; L2P."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel, get_peft_model
from sams import RANDOM_SAMS, perturb
from torch import nn

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, L2pConfig, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.families import encoder_shape, family_of
from hf_sam_adapt.tuners.l2p.layer import key_loss


ROOT = Path(__file__).parents[2]
FAMILIES = ["sam_hq", "sam2", "sam3_tracker"]
CONFIGS = {
    "sam_adapter": lambda **fields: SamAdapterConfig(scale_factor=4, **fields),
    "sam_adapter-features": lambda **fields: SamAdapterConfig(
        features=["low", "embedding", "high"], feature_weights=[2, 0.5, 1], decoder="frozen", **fields
    ),
    "sam_adapter-bias": lambda **fields: SamAdapterConfig(features=[], **fields),
    "conv_lora": lambda **fields: ConvLoraConfig(num_experts=2, **fields),
    "cwsam": lambda **fields: CwsamConfig(num_labels=3, **fields),
    "class_wise-queries": lambda **fields: SamDecoderConfig(
        decoder="class_wise", num_labels=3, num_mask_tokens=5, **fields
    ),
}


def pixels_of(sam: nn.Module, channels: int = 3) -> torch.Tensor:
    side = encoder_shape(sam).image_size
    return torch.randn(3, channels, side, side, generator=torch.Generator().manual_seed(3))


def adapted(model_type: str, name: str, **fields) -> nn.Module:
    torch.manual_seed(1)
    return perturb(get_peft_model(RANDOM_SAMS[model_type](), CONFIGS[name](**fields)), std=0.05).eval()


def masks(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.requires_grad_(False).eval()(pixel_values=pixels).pred_masks


FRESH = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import hf_sam_adapt
from peft import PeftModel
from sams import RANDOM_SAMS
from test_family_adapters import masks, pixels_of
for folder in sorted(Path(sys.argv[1]).iterdir()):
    base = RANDOM_SAMS[folder.name.partition("-")[0]]()
    model = PeftModel.from_pretrained(base, folder)
    assert torch.equal(masks(model, pixels_of(base)), torch.load(folder / "masks.pt")), folder
    print(folder.name)
"""


@pytest.mark.slow
def test_another_process_gives_the_same_bits(tmp_path):
    names = ["sam_adapter", "sam_adapter-bias", "conv_lora", "cwsam"]
    for model_type in FAMILIES:
        for name in names:
            model = adapted(model_type, name)
            folder = tmp_path / f"{model_type}-{name}"
            model.save_pretrained(folder)
            torch.save(masks(model, pixels_of(model)), folder / "masks.pt")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "tuners")))
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.split()) == len(FAMILIES) * len(names)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_trained_tensor_gets_a_gradient_and_nothing_else_moves(model_type, name, precision):
    model = adapted(model_type, name).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-3)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = model(pixel_values=pixels_of(model)).pred_masks.square().mean()
    loss.backward()
    assert [key for key, p in trained.items() if p.grad is None or not p.grad.any()] == []
    optimizer.step()
    after = model.state_dict()
    assert {key for key, value in before.items() if not torch.equal(after[key], value)} == set(trained)


@pytest.mark.parametrize("name", ["sam_adapter-features", "conv_lora", "cwsam"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_bf16_base_keeps_an_fp32_adapter(model_type, name):
    expected = masks(model := adapted(model_type, name), pixels_of(model))
    torch.manual_seed(1)
    half = perturb(get_peft_model(RANDOM_SAMS[model_type]().bfloat16(), CONFIGS[name]()), std=0.05)
    assert {p.dtype for p in half.parameters() if p.requires_grad} == {torch.float32}
    found = masks(half, pixels_of(half).bfloat16())
    assert found.dtype == torch.bfloat16
    # Rounding can turn the choice of an expert.
    assert (found.float() - expected).norm() / expected.norm() < (0.3 if name == "conv_lora" else 0.1)


@pytest.mark.parametrize("name", ["sam_adapter", "conv_lora", "cwsam"])
@pytest.mark.parametrize(("model_type", "size"), [("sam_hq", 96), ("sam2", 192), ("sam3_tracker", 140)])
def test_another_input_size_and_other_channels(model_type, size, name, tmp_path):
    model = adapted(model_type, name, image_size=size, in_channels=5, train_patch_embed=True)
    pixels = pixels_of(model, channels=5)
    assert pixels.shape[-1] == size
    model.train()(pixel_values=pixels).pred_masks.square().mean().backward()
    lost = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert lost == []
    model.save_pretrained(tmp_path)
    expected = masks(model, pixels)
    assert expected.shape[-1] == 4 * encoder_shape(model).grid
    again = PeftModel.from_pretrained(RANDOM_SAMS[model_type](), tmp_path)
    assert torch.equal(masks(again, pixels), expected)
    base = RANDOM_SAMS[model_type]()
    assert torch.equal(masks(model.unload(), pixels_of(base)), masks(base, pixels_of(base)))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_l2p_gives_each_image_the_prompts_of_the_nearest_keys(model_type):
    """As further tokens of the decoder, behind those of the prompt."""
    model = get_peft_model(RANDOM_SAMS[model_type](), L2pConfig(pool_size=6, prompt_length=2, top_k=3)).eval()
    sam = model.get_base_model()
    pixels, layer, seen = pixels_of(sam), sam.mask_decoder, []
    handle = layer.base_layer.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        found = model(pixel_values=pixels, multimask_output=False).pred_masks
        embedding = family_of(sam).encode(sam, pixels).maps
    handle.remove()
    sparse = seen[0]["sparse_prompt_embeddings"]
    for image in range(3):
        keys, query = layer.l2p_keys["default"], embedding[image].mean((1, 2))
        nearest = torch.stack([F.cosine_similarity(query, key, dim=0) for key in keys]).argsort(descending=True)[:3]
        wanted = layer.l2p_prompts["default"][nearest].flatten(0, 1)
        assert torch.allclose(sparse[image, 0, -6:], wanted)
    with model.disable_adapter():
        assert not torch.equal(masks(model, pixels)[:, :, :1], found)
    model = get_peft_model(RANDOM_SAMS[model_type](), L2pConfig(pool_size=6, top_k=3)).train()
    (model(pixel_values=pixels).pred_masks.square().mean() + key_loss(model)).backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("config", [SamAdapterConfig, ConvLoraConfig, CwsamConfig])
@pytest.mark.parametrize("model_type", ["sam2", "sam3_tracker"])
def test_an_encoder_alone_needs_no_targets_either(model_type, config):
    encoder = RANDOM_SAMS[model_type]().vision_encoder
    pixels = torch.randn(2, 3, *[encoder_shape(encoder).image_size] * 2)
    with torch.no_grad():
        plain = encoder(pixels).last_hidden_state
        model = get_peft_model(encoder, config())
        assert model.peft_config["default"].decoder == "frozen"
        assert torch.allclose(model(pixel_values=pixels).last_hidden_state, plain, rtol=1e-5, atol=1e-6)
        changed = perturb(model)(pixel_values=pixels).last_hidden_state
    assert (changed - plain).abs().max() > 1e-2 * plain.abs().max()


@pytest.mark.parametrize("model_type", ["sam2", "sam3_tracker"])
def test_l2p_on_an_encoder_alone_is_refused(model_type):
    encoder = RANDOM_SAMS[model_type]().vision_encoder
    with pytest.raises(UserError, match=r"L2pConfig: .* has no mask decoder"):
        get_peft_model(encoder, L2pConfig())


def test_faithful_sam_adapter_makes_the_finer_maps_of_sam2_with_weights_of_its_own(tmp_path):
    """As SAM2-Adapter's code does; all other adapters leave `conv_s0` and `conv_s1` to the base."""
    sam = RANDOM_SAMS["sam2"]()
    model = perturb(get_peft_model(sam, SamAdapterConfig(scale_factor=4, faithful=True)), std=0.05).train()
    pixels, before = (
        pixels_of(sam),
        {name: value.clone() for name, value in sam.mask_decoder.base_layer.state_dict().items()},
    )
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    model(pixel_values=pixels).pred_masks.square().mean().backward()
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    optimizer.step()
    own = [name for name in trained if "conv_s0" in name or "conv_s1" in name]
    assert len(own) == 4
    assert all(map(torch.equal, sam.mask_decoder.base_layer.state_dict().values(), before.values()))
    expected = masks(model, pixels)
    model.save_pretrained(tmp_path)
    assert torch.equal(masks(PeftModel.from_pretrained(RANDOM_SAMS["sam2"](), tmp_path), pixels), expected)
    with torch.no_grad():
        for name in own:
            model.get_parameter(name).copy_(before[name.rpartition("sam_adapter_weights.default.")[2]])
    assert (masks(model, pixels) - expected).abs().max() > 1e-3 * expected.abs().max()
