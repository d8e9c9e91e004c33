"""Models on other devices than the one that new tensors are made on, and replicas of `nn.DataParallel`."""

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import get_peft_model
from sams import random_sam, random_sam2
from test_threads import CONFIGS
from torch import nn

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.attention import use_fast_attention


METHODS = [method for method in CONFIGS if method not in ("lora", "moda")]


class OnAnotherDevice:
    """Stands for a scalar tensor of a GPU: no tensor of the CPU is multiplied by it."""

    def __init__(self) -> None:
        self.moved_to: list[torch.device] = []

    def to(self, device: torch.device) -> torch.Tensor:
        self.moved_to.append(device)
        return torch.tensor(0.5)


def test_an_hq_head_is_made_where_its_model_does_not_lie(monkeypatch):
    size = OnAnotherDevice()
    monkeypatch.setattr("hf_sam_adapt.tuners.common.hq._typical_size", lambda decoder: size)
    get_peft_model(random_sam(), SamDecoderConfig(decoder="hq"))
    assert size.moved_to == [torch.device("cpu")]


def test_an_hq_head_for_a_model_without_values():
    model = get_peft_model(random_sam().to("meta"), SamDecoderConfig(decoder="hq"))
    assert model.peft_config["default"].base_fingerprint["pos_embed"] is None


@pytest.mark.parametrize("method", METHODS)
def test_hooks_that_move_inputs_run_the_adapters_weights(method):
    """`device_map` puts such hooks of Accelerate in the place of the forwards of a model's parts."""
    expected = None
    for hooked in (False, True):
        sam = random_sam()
        if hooked:
            for module in sam.modules():
                if module is not sam:
                    add_hook_to_module(module, AlignDevicesHook(execution_device="cpu", io_same_device=False))
        torch.manual_seed(0)
        model = get_peft_model(sam, CONFIGS[method]()).eval()
        with torch.no_grad():
            masks = model(pixel_values=torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)).pred_masks
        expected = masks if expected is None else expected
    assert torch.equal(masks, expected)


def replica(model: nn.Module) -> nn.Module:
    """What `torch.nn.parallel.replicate` makes of a model for one device, here of copies on the CPU."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    weights = {parameter: parameter.clone() for parameter in model.parameters()}
    for module, copied in copies.items():
        for name, child in module._modules.items():
            if child is not None:
                setattr(copied, name, copies[child])
            else:
                copied._modules[name] = None
        copied._former_parameters = {}
        for name, parameter in module._parameters.items():
            if parameter is None:
                copied._parameters[name] = None
            else:
                setattr(copied, name, weights[parameter])
                copied._former_parameters[name] = weights[parameter]
    return copies[model]


@pytest.mark.parametrize("method", METHODS)
def test_a_replica_runs_its_own_weights(method):
    sam = random_sam()
    use_fast_attention(sam, "folded")
    model = get_peft_model(sam, CONFIGS[method]()).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(pixel_values=images).pred_masks
    other = replica(model)
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)  # whatever reads the original's weights
    masks = other(pixel_values=images).pred_masks
    assert torch.allclose(masks, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    masks.square().mean().backward()
    trained = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
    assert any(gradient is not None and gradient.abs().max() > 0 for gradient in trained)
    assert all(torch.isfinite(gradient).all() for gradient in trained if gradient is not None)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), kept):
            parameter.copy_(value)


def test_a_replica_of_a_pool_is_refused():
    model = get_peft_model(random_sam(), CONFIGS["moda"]()).eval()
    with pytest.raises(UserError, match="DataParallel"):
        replica(model)(pixel_values=torch.randn(1, 3, 64, 64), domain="polyp")


class Packed(torch.nn.Linear):
    """As bitsandbytes leaves a Linear: integers in place of its weights."""

    def __init__(self, linear: nn.Linear):
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight = nn.Parameter(torch.zeros(linear.weight.shape, dtype=torch.int8), requires_grad=False)
        self.bias = linear.bias

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(inputs, self.weight.to(inputs.dtype), self.bias)


def quantised(sam: nn.Module, but: str) -> nn.Module:
    for name, module in list(sam.named_modules()):
        if isinstance(module, nn.Linear) and not name.startswith(but):
            sam.set_submodule(name, Packed(module))
    return sam


@pytest.mark.parametrize("config", [SamAdapterConfig, CwsamConfig, SamDecoderConfig, ConvLoraConfig])
def test_a_quantised_decoder_is_refused_by_name(config):
    fields = {"num_labels": 3} if config is CwsamConfig else {}
    with pytest.raises(UserError, match="llm_int8_skip_modules") as refused:
        get_peft_model(quantised(random_sam(), "vision_encoder"), config(**fields))
    assert "quantised" in str(refused.value) and "mask_decoder" in str(refused.value)


@pytest.mark.parametrize("family", [random_sam, random_sam2])
def test_a_quantised_encoder_is_adapted(family):
    model = get_peft_model(quantised(family(), "mask_decoder"), SamAdapterConfig(scale_factor=4))
    side = 64 if family is random_sam else 128
    model.train()(pixel_values=torch.randn(1, 3, side, side)).pred_masks.mean().backward()
    overlay = model.get_base_model().mask_decoder
    assert all(parameter.grad is not None for parameter in overlay.overlays["default"].parameters())
