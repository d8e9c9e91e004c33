"""Every method runs under another default dtype and in another memory format, with the same result."""

import pytest
import torch
from peft import get_peft_model
from sams import random_sam

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, L2pConfig, ModaConfig, SamAdapterConfig, SamDecoderConfig


CONFIGS = {
    "sam_adapter": lambda **fields: SamAdapterConfig(scale_factor=4, **fields),
    "conv_lora": ConvLoraConfig,
    "conv_lora-1x1": lambda **fields: ConvLoraConfig(conv_kernel_size=1, top_k=2, router="switch", **fields),
    "conv_lora-queries": lambda **fields: ConvLoraConfig(
        decoder="class_wise", num_labels=3, num_mask_tokens=4, **fields
    ),
    "cwsam": lambda **fields: CwsamConfig(num_labels=3, scale_factor=4, **fields),
    "decoder": SamDecoderConfig,
    "decoder-hq": lambda **fields: SamDecoderConfig(decoder="hq", **fields),
    "patch_embed": lambda **fields: SamDecoderConfig(train_patch_embed=True, in_channels=3, **fields),
    "l2p": L2pConfig,
    "moda": lambda **fields: ModaConfig(domains=["polyp"], **fields),
}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def build(method: str, base=None, **fields):
    torch.manual_seed(0)
    return get_peft_model(random_sam() if base is None else base, CONFIGS[method](**fields))


def outcome(model, images) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    masks = model(pixel_values=images).pred_masks
    masks.float().square().mean().backward()
    return masks.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def default_dtype():
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_float64_default(method, default_dtype):
    base = random_sam()
    default_dtype(torch.float64)
    model = build(method, base)
    tensors = [*model.parameters()]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}
    masks, gradients = outcome(model.train(), IMAGES)
    assert masks.dtype == torch.float32 and all(torch.isfinite(one).all() for one in gradients.values())
    default_dtype(torch.float32)
    if method in ("decoder", "decoder-hq", "patch_embed"):  # the others draw numbers of another precision
        assert torch.allclose(outcome(build(method).train(), IMAGES)[0], masks, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("of_images", [False, True])
@pytest.mark.parametrize("method", CONFIGS)
def test_channels_last(method, of_images):
    random = {} if method in ("l2p",) else {"init_weights": False}
    plain, turned = build(method, **random), build(method, **random).to(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), turned.parameters(), strict=True))
    images = IMAGES.to(memory_format=torch.channels_last) if of_images else IMAGES
    for training in (False, True):
        expected, gradients = outcome(plain.train(training), IMAGES)
        masks, found = outcome(turned.train(training), images)
        assert torch.allclose(masks, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert found.keys() == gradients.keys()
        scale = max(float(one.abs().max()) for one in gradients.values())
        assert all(torch.allclose(found[name], gradients[name], rtol=1e-3, atol=1e-4 * scale) for name in gradients)
