"""The encoders of SAM-HQ, SAM 2 and SAM 3: other input sizes and channels, checkpointing, precision, attention."""

import copy

import pytest
import torch
from peft import get_peft_model
from sams import RANDOM_SAMS, perturb
from torch import nn

from hf_sam_adapt import SamDecoderConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.forward import encode, segment
from hf_sam_adapt.inference.loading import build_model
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.sam.attention import attention_kind, restore_attention, use_fast_attention
from hf_sam_adapt.sam.families import encoder_shape, family_of, find_vision_encoder
from hf_sam_adapt.sam.gradient_checkpointing import enable_checkpointing
from hf_sam_adapt.sam.image_size import resize_input, restore_input
from hf_sam_adapt.sam.input_channels import inflate_channels, restore_channels
from hf_sam_adapt.training.frozen_weights import cast_frozen_matrices


FAMILIES = ["sam_hq", "sam2", "sam3_tracker"]
# A size that the family takes, one that it does not, what it names then, and the step.
SIZES = {"sam_hq": (96, 100, 104, 8), "sam2": (192, 150, 160, 32), "sam3_tracker": (154, 160, 154, 14)}


def masks_of(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.stack(segment(model, pixels, [Prompt("none")] * len(pixels)))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_another_input_size_is_that_of_a_model_built_for_it(model_type):
    model, size = RANDOM_SAMS[model_type]().requires_grad_(False), SIZES[model_type][0]
    native = encoder_shape(model).image_size
    small, large = torch.randn(2, 3, native, native), torch.randn(2, 3, size, size)
    before = masks_of(model, small)
    resize_input(model, size)
    shape = encoder_shape(model)
    resized = masks_of(model, large)
    assert shape.image_size == size and resized.shape[-1] == 4 * shape.grid
    built = RANDOM_SAMS[model_type](image_size=size)
    # The tables of SAM-HQ have another size there, and are those that were interpolated.
    built.load_state_dict(model.state_dict())
    assert built.config.to_dict() == model.config.to_dict()
    assert torch.equal(masks_of(built.requires_grad_(False), large), resized)
    box = Prompt("box", boxes=torch.tensor([[8.0, 9.0, size - 10.0, size - 20.0]]))
    with torch.no_grad():
        assert torch.equal(segment(built, large[:1], [box])[0], segment(model, large[:1], [box])[0])
    restore_input(model)
    assert torch.equal(masks_of(model, small), before)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_size_that_a_family_cannot_take_names_the_nearest(model_type):
    good, bad, nearest, step = SIZES[model_type]
    model = RANDOM_SAMS[model_type]()
    title = family_of(model).title
    wanted = f"image_size: {bad} is not a multiple of {step}, which {title} needs; the nearest is {nearest}"
    with pytest.raises(UserError, match=wanted):
        get_peft_model(model, SamDecoderConfig(image_size=bad))
    native = encoder_shape(model).image_size
    adapted = perturb(get_peft_model(model, SamDecoderConfig(image_size=good))).requires_grad_(False).eval()
    masks_of(adapted, torch.randn(1, 3, good, good))
    assert encoder_shape(adapted.unload()).image_size == native


@pytest.mark.parametrize("model_type", FAMILIES)
def test_other_channels(model_type):
    model = RANDOM_SAMS[model_type]().requires_grad_(False)
    side = encoder_shape(model).image_size
    grey = torch.randn(2, 1, side, side)
    before = masks_of(model, grey.expand(-1, 3, -1, -1))
    inflate_channels(model, 5)
    assert model.config.vision_config is find_vision_encoder(model).config  # so that both say so
    torch.testing.assert_close(masks_of(model, grey.expand(-1, 5, -1, -1)), before, rtol=1e-3, atol=1e-3)
    restore_channels(model)
    assert torch.equal(masks_of(model, grey.expand(-1, 3, -1, -1)), before)
    trained = get_peft_model(model, SamDecoderConfig(in_channels=4, train_patch_embed=True)).train()
    sum(m.square().mean() for m in segment(trained, torch.randn(1, 4, side, side), [Prompt("none")])).backward()
    patches = {name: p for name, p in trained.named_parameters() if p.requires_grad and "projection" in name}
    assert patches and all(p.grad.any() for p in patches.values())


@pytest.mark.parametrize(
    ("method", "kind"),
    [("lora", True), ("lora", "selective"), ("decoder", True), ("sam_adapter", True), ("cwsam", "selective")],
)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_checkpointing_leaves_the_gradients(model_type, method, kind):
    """Those of the decoder's own weights, too, which are in their places during the forward alone."""
    args = {"scale_factor": 4, "decoder": "full"} if method in ("sam_adapter", "cwsam") else {}
    model = perturb(build_model(method, args, RANDOM_SAMS[model_type]())).train()
    side = encoder_shape(model).image_size
    pixels = torch.randn(2, 3, side, side)
    prompts = [Prompt("none"), Prompt("box", boxes=torch.tensor([[3.0, 4.0, 40.0, 30.0]]))]

    def gradients(sam: nn.Module) -> dict[str, torch.Tensor]:
        sum(masks.square().mean() for masks in segment(sam, pixels, prompts)).backward()
        return {name: p.grad for name, p in sam.named_parameters() if p.requires_grad}

    checkpointed = copy.deepcopy(model)
    wanted = gradients(model)
    calls = []
    blocks = family_of(model).blocks_of(find_vision_encoder(checkpointed))
    blocks[0].layer_norm1.register_forward_hook(lambda *_: calls.append(0))
    enable_checkpointing(checkpointed, kind)
    found = gradients(checkpointed)
    assert len(calls) == (1 if method == "decoder" else 2)  # forward, and again in backward where that comes so far
    assert all(torch.equal(found[name], wanted[name]) for name in wanted) and found.keys() == wanted.keys()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_frozen_weights_stored_in_bf16_are_those_of_autocast(model_type):
    model = build_model("decoder", {}, RANDOM_SAMS[model_type]())
    side = encoder_shape(model).image_size
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        wanted = encode(model, pixels)
        cast_frozen_matrices(find_vision_encoder(model), torch.bfloat16)
        found = encode(model, pixels)
    dtypes = {module.weight.dtype for module in find_vision_encoder(model).modules() if isinstance(module, nn.Linear)}
    assert dtypes == {torch.bfloat16}
    for name, value in wanted.named.items():
        assert torch.equal(found.named[name], value), name


@pytest.mark.parametrize("model_type", ["sam2", "sam3_tracker"])
def test_attention_without_relative_positions_is_left_to_transformers(model_type):
    model = RANDOM_SAMS[model_type]().requires_grad_(False)
    side = encoder_shape(model).image_size
    pixels = torch.randn(2, 3, side, side)
    before = masks_of(model, pixels)
    use_fast_attention(model)
    assert attention_kind(model) == "sdpa" and torch.equal(masks_of(model, pixels), before)
    use_fast_attention(model, "eager")
    assert attention_kind(model) == "eager"
    torch.testing.assert_close(masks_of(model, pixels), before, rtol=1e-4, atol=1e-4)
    restore_attention(model)
    assert attention_kind(model) == "sdpa" and torch.equal(masks_of(model, pixels), before)
    with pytest.raises(UserError, match=r"folded cannot be used, for SAM . has no relative positions; use auto"):
        use_fast_attention(model, "folded")


def test_sam_hq_has_sams_fast_attention():
    model = RANDOM_SAMS["sam_hq"]().requires_grad_(False)
    pixels = torch.randn(2, 3, 64, 64)
    before = masks_of(model, pixels)
    use_fast_attention(model, "folded")
    assert attention_kind(model) == "folded"
    torch.testing.assert_close(masks_of(model, pixels), before, rtol=1e-4, atol=1e-4)
    for kind in ("sdpa", "eager"):
        use_fast_attention(model, kind)
        torch.testing.assert_close(masks_of(model, pixels), before, rtol=1e-4, atol=1e-4)
    restore_attention(model)
    assert torch.equal(masks_of(model, pixels), before)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "sam_adapter", "conv_lora"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_compiled_encoder_gives_the_same_maps(model_type, method):
    model = perturb(build_model(method, {}, RANDOM_SAMS[model_type]())).requires_grad_(False).eval()
    side = encoder_shape(model).image_size
    pixels = torch.randn(2, 3, side, side)
    with torch.no_grad():
        wanted = encode(model, pixels)
        find_vision_encoder(model).compile()
        found = encode(model, pixels)
    for name, value in wanted.named.items():
        torch.testing.assert_close(found.named[name], value, rtol=1e-3, atol=1e-3)
