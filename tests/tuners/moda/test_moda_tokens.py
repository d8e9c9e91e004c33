"""Global feature tokens against plain formulas and the numbers of the official modules."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from sams import perturb, random_sam, random_vision_sam
from transformers import SamVisionConfig, SamVisionModel

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, SamAdapterConfig
from hf_sam_adapt.tuners.moda.tokens import TokenProbe, global_tokens, joint_tokens


def images(count: int = 2, seed: int = 0, size: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def block_inputs(encoder, pixel_values):
    """The input (B, N, C) of every block."""
    found = []
    handles = [layer.register_forward_pre_hook(lambda _, args: found.append(args[0])) for layer in encoder.layers]
    encoder(pixel_values)
    for handle in handles:
        handle.remove()
    return [x.flatten(1, 2) for x in found]


def plain_block(block, tokens, patches, token_queries_only: bool):
    """One image: tokens (L, C), patches (N, C); attention head by head."""
    states = torch.cat([tokens, patches])
    width = states.shape[-1]
    normed = F.layer_norm(states, (width,), block.layer_norm1.weight, block.layer_norm1.bias, 1e-6)
    query, key, value = (normed @ block.attn.qkv.weight.T + block.attn.qkv.bias).split(width, -1)
    size = width // block.attn.num_attention_heads
    parts = []
    for head in range(block.attn.num_attention_heads):
        own = slice(head * size, (head + 1) * size)
        parts.append((query[:, own] @ key[:, own].T / size**0.5).softmax(-1) @ value[:, own])
    states = states + torch.cat(parts, -1) @ block.attn.proj.weight.T + block.attn.proj.bias
    normed = F.layer_norm(states, (width,), block.layer_norm2.weight, block.layer_norm2.bias, 1e-6)
    states = states + block.mlp(normed)
    return states[: len(tokens)] if token_queries_only else states


@torch.no_grad()
def plain_probe(encoder, pixel_values, tokens, until=None):
    inputs = block_inputs(encoder, pixel_values)
    results = []
    for image in range(len(pixel_values)):
        state = tokens[0]
        for block, patches in list(zip(encoder.layers, inputs))[:until]:
            state = plain_block(block, state, patches[image], token_queries_only=True)
        results.append(state)
    return torch.stack(results)


@torch.no_grad()
def plain_joint(encoder, pixel_values, tokens):
    results = []
    for patches in block_inputs(encoder, pixel_values)[0]:
        states = torch.cat([tokens[0], patches])
        for block in encoder.layers:
            states = plain_block(block, states[: tokens.shape[1]], states[tokens.shape[1] :], token_queries_only=False)
        results.append(states)
    return torch.stack(results)


def anchor_encoder(attention: str):
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
    config._attn_implementation = attention
    encoder = SamVisionModel(config).eval().vision_encoder
    with torch.no_grad():
        for index, (name, parameter) in enumerate(sorted(encoder.named_parameters())):
            values = 0.3 * torch.sin(0.7 * torch.arange(parameter.numel(), dtype=torch.float64) + index + 1)
            values = values + 1 if "norm" in name and name.endswith("weight") else values
            parameter.copy_(values.reshape(parameter.shape))
    return encoder


ANCHOR_IMAGE = torch.sin(0.05 * torch.arange(3 * 32 * 32, dtype=torch.float64)).float().reshape(1, 3, 32, 32)
ANCHOR_TOKENS = torch.cos(0.3 * torch.arange(24, dtype=torch.float64)).float().reshape(1, 3, 8)
PROBE = [-1.316888, 5.844622, -1.283179, -3.543479, 0.709603, -7.796943, 5.644331, -4.735265]
JOINT = [-1.311873, 5.718024, -1.208569, -3.503121, 0.792243, -7.680842, 5.595244, -4.686866]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_probe_gives_the_anchors_and_leaves_the_image_path(attention):
    encoder = anchor_encoder(attention)
    with torch.no_grad():
        plain = encoder(ANCHOR_IMAGE).last_hidden_state
        with TokenProbe(encoder, ANCHOR_TOKENS) as probe:
            probed = encoder(ANCHOR_IMAGE).last_hidden_state
    assert torch.equal(probed, plain) and torch.equal(probe.embedding, plain)
    assert plain[0, :, 0, 0].tolist() == pytest.approx([1.166394, 0.042224, -0.740662, -1.391156], abs=1e-5)
    assert probe.tokens[0, 0].tolist() == pytest.approx(PROBE, abs=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_joint_gives_the_official_numbers(attention):
    with torch.no_grad():
        tokens, neck = joint_tokens(anchor_encoder(attention), ANCHOR_IMAGE, ANCHOR_TOKENS)
    assert tokens[0, 0].tolist() == pytest.approx(JOINT, abs=1e-5)
    assert tokens[0, 1, :4].tolist() == pytest.approx([-0.865934, 0.463719, 2.953937, -5.024268], abs=1e-5)
    assert neck[0, :, 0, 0].tolist() == pytest.approx([-0.911752, -0.544012, -0.020366, 1.084619], abs=1e-5)


@pytest.mark.parametrize("until", [None, 2, 1])
@pytest.mark.parametrize("window", [3, 4])
def test_probe_equals_the_plain_formula(until, window):
    encoder = random_vision_sam(seed=window, window=window).vision_encoder
    tokens = global_tokens(32, 4, seed=7)
    with torch.no_grad(), TokenProbe(encoder, tokens, until) as probe:
        probed = encoder(images()).last_hidden_state
    with torch.no_grad():
        assert torch.equal(encoder(images()).last_hidden_state, probed)
    expected = plain_probe(encoder, images(), tokens, until)
    assert (probe.tokens - expected).abs().max() < 1e-5 * expected.abs().max()


def test_joint_equals_the_plain_formula():
    encoder = random_vision_sam(seed=2).vision_encoder
    tokens = global_tokens(32, 4, seed=3)
    with torch.no_grad():
        found, neck = joint_tokens(encoder, images(), tokens)
        expected = plain_joint(encoder, images(), tokens)
        expected_neck = encoder.neck(expected[:, 4:].reshape(2, 8, 8, 32))
    assert (found - expected[:, :4]).abs().max() < 1e-5 * expected.abs().max()
    assert (neck - expected_neck).abs().max() < 1e-5 * expected_neck.abs().max()


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(target_modules=["qkv", "proj", "lin1"], init_lora_weights=False),
        ConvLoraConfig(init_weights=False),
        SamAdapterConfig(scale_factor=4, init_weights=False),
        CwsamConfig(num_labels=3, scale_factor=4, init_weights=False),
    ],
    ids=lambda config: type(config).__name__,
)
@pytest.mark.parametrize("read", ["probe", "joint"])
def test_adapters_that_are_disabled_do_not_count(config, read):
    def run(model):
        if read == "joint":
            return joint_tokens(model.vision_encoder, images(), tokens)
        with TokenProbe(model.vision_encoder, tokens) as probe:
            model.vision_encoder(images())
        return probe.tokens, probe.embedding

    tokens = global_tokens(32, 3)
    model = perturb(get_peft_model(random_sam(), config)).eval()
    with torch.no_grad():
        expected = run(random_sam())
        with model.disable_adapter():
            found = run(model.get_base_model())
            plain = model.get_base_model().vision_encoder(images()).last_hidden_state
        assert not torch.equal(model.get_base_model().vision_encoder(images()).last_hidden_state, plain)
    assert all(torch.equal(value, reference) for value, reference in zip(found, expected))


def test_probe_starts_anew_in_each_run_and_leaves_no_hooks():
    encoder = random_vision_sam().vision_encoder
    tokens = global_tokens(32, 3)
    with torch.no_grad():
        with TokenProbe(encoder, tokens) as probe:
            encoder(images(3, seed=1))
            encoder(images(2, seed=0))
        expected = plain_probe(encoder, images(2, seed=0), tokens)
        assert (probe.tokens - expected).abs().max() < 1e-5 * expected.abs().max()
        kept = probe.tokens.clone()
        encoder(images(2, seed=1))
    assert torch.equal(probe.tokens, kept)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in encoder.modules())


@pytest.mark.parametrize("read", ["probe", "joint"])
def test_gradient_reaches_all_tokens_from_the_first(read):
    encoder = random_vision_sam().vision_encoder.requires_grad_(False)
    tokens = global_tokens(32, 5).requires_grad_()
    if read == "joint":
        first = joint_tokens(encoder, images(), tokens)[0][:, 0]
    else:
        with TokenProbe(encoder, tokens) as probe:
            encoder(images())
        first = probe.tokens[:, 0]
    first.square().sum().backward()
    assert (tokens.grad.abs().amax(-1) > 0).all()


def test_tokens_follow_the_encoder_in_bfloat16():
    encoder = random_vision_sam().vision_encoder
    tokens = global_tokens(32, 3)
    expected = plain_probe(encoder, images(), tokens)
    encoder = encoder.bfloat16()
    with torch.no_grad(), TokenProbe(encoder, tokens) as probe:
        encoder(images().bfloat16())
    assert probe.tokens.dtype == torch.bfloat16
    assert (probe.tokens - expected).abs().max() < 0.1 * expected.abs().max()


def test_tokens_are_drawn_by_seed():
    assert global_tokens(32).shape == (1, 10, 32)
    assert torch.equal(global_tokens(32, 4, seed=5), global_tokens(32, 4, seed=5))
    assert not torch.equal(global_tokens(32, 4, seed=5), global_tokens(32, 4, seed=6))
