"""Images of other than three channels: the inflated patch embedding, trained or frozen, and the way back."""

import copy

import pytest
import torch
from peft import AutoPeftModel, PeftModel, get_peft_model
from sams import perturb, random_sam

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.input_channels import inflate_channels, inflated, restore_channels


CONFIGS = {
    "sam_adapter": lambda **fields: SamAdapterConfig(scale_factor=4, **fields),
    "conv_lora": ConvLoraConfig,
    "cwsam": lambda **fields: CwsamConfig(decoder="full", scale_factor=4, **fields),
    "decoder": SamDecoderConfig,
}


def frozen(model):
    return model.requires_grad_(False).eval()


def images(channels, seed=0):
    return torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 13])
def test_inflation_embeds_equal_channels_as_a_grey_photograph(channels):
    sam = frozen(random_sam())
    grey = images(1)
    expected = sam.vision_encoder(grey.expand(-1, 3, -1, -1)).last_hidden_state
    before = {name: value.clone() for name, value in sam.state_dict().items()}
    inflate_channels(sam, channels)
    found = sam.vision_encoder(grey.expand(-1, channels, -1, -1)).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    restore_channels(sam)
    after = sam.state_dict()
    assert sam.config.vision_config.num_channels == 3
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_more_channels_take_red_green_and_blue_in_turn():
    weight = torch.randn(5, 3, 2, 2)
    found = inflated(weight, 7)
    torch.testing.assert_close(found[:, 1], weight[:, 1] / 2)
    torch.testing.assert_close(found[:, 6], weight[:, 0] / 3)
    torch.testing.assert_close(found.sum(1), weight.sum(1))


@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize(("channels", "trained"), [(1, True), (5, True), (5, False), (3, True)])
def test_saved_loaded_disabled_and_unloaded(method, channels, trained, tmp_path):
    base = random_sam()
    base.save_pretrained(tmp_path / "base")
    sam = type(base).from_pretrained(tmp_path / "base")
    torch.manual_seed(1)
    model = perturb(get_peft_model(sam, CONFIGS[method](in_channels=channels, train_patch_embed=trained)))
    projections = [name for name, p in model.named_parameters() if "projection" in name and p.requires_grad]
    assert len(projections) == (2 if trained else 0)
    x = images(channels)
    model.train()(pixel_values=x).pred_masks.square().mean().backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in projections)
    expected = frozen(model)(pixel_values=x).pred_masks
    model.save_pretrained(tmp_path / "adapter")
    for loaded in (
        PeftModel.from_pretrained(random_sam(), tmp_path / "adapter"),
        AutoPeftModel.from_pretrained(tmp_path / "adapter"),
    ):
        assert torch.equal(frozen(loaded)(pixel_values=x).pred_masks, expected)
    plain = random_sam()
    plain.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(frozen(plain)(pixel_values=x).pred_masks, expected)
    assert torch.equal(frozen(copy.deepcopy(model))(pixel_values=x).pred_masks, expected)
    photograph = images(3, seed=4)
    unloaded = frozen(model.unload())
    want = frozen(random_sam())(pixel_values=photograph, multimask_output=False).pred_masks
    assert torch.equal(unloaded(pixel_values=photograph, multimask_output=False).pred_masks, want)


def test_disabled_adapter_leaves_the_inflated_base():
    model = perturb(
        get_peft_model(random_sam(), SamAdapterConfig(in_channels=2, train_patch_embed=True, scale_factor=4))
    )
    sam = random_sam()
    inflate_channels(sam, 2)
    x = images(2)
    with model.disable_adapter():
        found = frozen(model)(pixel_values=x, multimask_output=False).pred_masks
    assert torch.equal(found, frozen(sam)(pixel_values=x, multimask_output=False).pred_masks)


def test_a_second_adapter_of_other_channels_is_refused():
    model = get_peft_model(random_sam(), SamDecoderConfig(in_channels=2))
    with pytest.raises(UserError, match="3 input channels, but this model's adapters take 2"):
        model.add_adapter("second", SamDecoderConfig())
    with pytest.raises(UserError, match="in_channels=0"):
        SamDecoderConfig(in_channels=0)


def test_a_failed_injection_restores_the_base():
    sam = random_sam()
    with pytest.raises(UserError):
        get_peft_model(sam, SamAdapterConfig(in_channels=4, features=["no such feature"]))
    assert sam.config.vision_config.num_channels == 3
    frozen(sam)(pixel_values=images(3))


def test_the_kept_kernels_are_no_parameter():
    """They would be trained, reduced between processes, and saved."""
    sam = random_sam()
    names = [name for name, _ in sam.named_parameters()]
    inflate_channels(sam, 5)
    assert [name for name, _ in sam.named_parameters()] == names
    assert sam.state_dict().keys() == random_sam().state_dict().keys()
    copied = copy.deepcopy(sam)
    restore_channels(copied)
    kernels = [one.vision_encoder.patch_embed.projection.weight for one in (copied, random_sam())]
    assert torch.equal(*kernels)
