"""MoDA on SAM 2, SAM 3 and SAM-HQ: the router's tokens against a plain formula, and a pool's life."""

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from sams import RANDOM_SAMS, perturb, random_sam2
from torch import nn

from hf_sam_adapt import ConvLoraConfig, ModaConfig, ModaModel, SamAdapterConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.families import encoder_shape, family_of
from hf_sam_adapt.tuners.moda.tokens import TokenProbe, global_tokens, probed_blocks, token_width


DOMAINS = ("red", "green")
MIXED = ["green", "red", "base", "green"]


def make(kind: str, seed: int = 0) -> nn.Module:
    sam = RANDOM_SAMS[kind](seed)
    family_of(sam).mend(sam)
    return sam


@pytest.fixture(params=["sam_hq", "sam2", "sam3_tracker"])
def kind(request) -> str:
    return request.param


def images(sam: nn.Module, domain: str = "red", count: int = 3, seed: int = 0) -> torch.Tensor:
    """Noise with one bright channel, which tells the domains apart."""
    side, channel = encoder_shape(sam).image_size, DOMAINS.index(domain)
    generator = torch.Generator().manual_seed(seed + 100 * channel)
    pixels = torch.randn(count, 3, side, side, generator=generator) * 0.3
    pixels[:, channel] += 2
    return pixels


def plain_block(sam: nn.Module, block: nn.Module, tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """One image: tokens (L, C) after the block, patches (N, C); attention head by head."""
    attention, width = family_of(sam).attention_of(block), tokens.shape[1]
    normed = F.layer_norm(
        torch.cat([tokens, patches]), (width,), block.layer_norm1.weight, block.layer_norm1.bias, 1e-6
    )
    if hasattr(attention, "qkv"):
        query, key, value = attention.qkv(normed).split(width, -1)
    else:
        query, key, value = attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)
    size, parts = width // attention.num_attention_heads, []
    for head in range(attention.num_attention_heads):
        own = slice(head * size, (head + 1) * size)
        parts.append((query[: len(tokens), own] @ key[:, own].T / size**0.5).softmax(-1) @ value[:, own])
    tokens = tokens + family_of(sam).projection_of(block)(torch.cat(parts, -1))
    normed = F.layer_norm(tokens, (width,), block.layer_norm2.weight, block.layer_norm2.bias, 1e-6)
    return tokens + block.mlp(normed)


@torch.no_grad()
def test_probe_equals_the_plain_formula_and_leaves_the_image_path(kind):
    sam = make(kind)
    encoder, x, family = sam.vision_encoder, images(sam), family_of(sam)
    blocks = list(family.blocks_of(encoder))
    read = blocks[-1:] if kind == "sam2" else blocks
    assert probed_blocks(encoder) == read
    tokens, found = global_tokens(token_width(encoder), 4, seed=7), []
    handles = [block.register_forward_pre_hook(lambda _, args: found.append(args[0].flatten(1, 2))) for block in read]
    plain = family.encode(sam, x)
    for handle in handles:
        handle.remove()
    with TokenProbe(encoder, tokens) as probe:
        probed = family.encode(sam, x)
    assert torch.equal(probed.maps, plain.maps) and probe.tokens.shape == (3, 4, token_width(encoder))
    for image in range(3):
        state = tokens[0]
        for block, patches in zip(read, found, strict=True):
            state = plain_block(sam, block, state, patches[image])
        assert (probe.tokens[image] - state).abs().max() < 2e-5 * state.abs().max()
    # What the router's statistics are of: the map that the decoder takes, up to a constant of each channel.
    difference = plain.maps - probe.embedding
    assert (difference - difference.mean((0, 2, 3), keepdim=True)).abs().max() < 1e-5
    assert not any(module._forward_hooks for module in encoder.backbone.modules()) if kind == "sam2" else True


def pool_of(kind: str, inner=None) -> ModaModel:
    sam = make(kind)
    pool = ModaModel(sam, ModaConfig(inner=inner, reject=0.0))
    for seed, name in enumerate(DOMAINS):
        pool.add_domain(name)
        perturb(pool, seed=seed + 1)
        pool.observe(images(sam, name, 8))
        pool.finish_domain()
    return pool.eval()


INNER = {
    "default": lambda: None,
    "sam_adapter": lambda: SamAdapterConfig(scale_factor=8),
    "conv_lora_late": lambda: ConvLoraConfig(layers_to_transform=[3], num_experts=2),
}


@torch.no_grad()
@pytest.mark.parametrize("inner", INNER)
def test_a_pool(kind, inner, tmp_path):
    if kind == "sam_hq" and inner == "conv_lora_late":
        pytest.skip("an encoder of three blocks")
    pool = pool_of(kind, INNER[inner]())
    sam, expected = pool.model, {}
    config = pool.moda_config.inner
    assert config.decoder in (None, "full") and pool.inner.peft_config[pool.inner_name("red")].decoder == "full"
    x = torch.stack([images(sam, "red" if name == "base" else name, 4, seed=9)[i] for i, name in enumerate(MIXED)])
    mixed = pool(pixel_values=x, domain=MIXED)
    for index, name in enumerate(MIXED):
        alone = pool(pixel_values=x[index : index + 1], domain=name)
        expected[index] = alone.pred_masks[0]
        scale = alone.pred_masks.abs().max()
        assert (mixed.pred_masks[index] - alone.pred_masks[0]).abs().max() < 1e-4 * scale
        assert alone.pred_masks.shape[1:3] == (1, 1)
    other = pool(pixel_values=x[:1], domain="red").pred_masks
    assert (other - expected[0]).abs().max() > 1e-2 * other.abs().max()
    runs = []
    handle = sam.vision_encoder.register_forward_hook(lambda *_: runs.append(1))
    routed = pool(pixel_values=x[[0, 1, 3]], domain="auto")
    handle.remove()
    assert pool.route(x[[0, 1, 3]]).domains == ["green", "red", "green"]
    assert inner != "default" or len(runs) == 1, "one encoder pass for router and masks"
    assert (routed.pred_masks - mixed.pred_masks[[0, 1, 3]]).abs().max() < 1e-4 * mixed.pred_masks.abs().max()
    if kind != "sam_hq":
        assert len(mixed.image_embeddings) == 3 and len(mixed.image_embeddings[-1]) == 4
    pool.save_pretrained(tmp_path)
    again = ModaModel.from_pretrained(make(kind), tmp_path)
    assert torch.equal(again(pixel_values=x, domain=MIXED).pred_masks, mixed.pred_masks)
    unloaded = pool.unload().requires_grad_(False)
    base = make(kind).requires_grad_(False)
    assert torch.equal(unloaded(pixel_values=x).pred_masks, base(pixel_values=x).pred_masks)


@pytest.mark.parametrize("inner", ["default", "sam_adapter"])
def test_a_domain_trains_and_a_batch_is_its_images_in_bf16(kind, inner):
    pool = pool_of(kind, INNER[inner]())
    x = torch.cat([images(pool.model, name, 2, seed=9) for name in DOMAINS])[[2, 0, 3]]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        together = pool(pixel_values=x, domain="auto").pred_masks
        alone = torch.cat([pool(pixel_values=image[None], domain="auto").pred_masks for image in x])
    assert pool.route(x).domains == ["green", "red", "green"]
    assert (together - alone).abs().max() < 3e-2 * alone.abs().max()
    pool.add_domain("blue")
    trained = {name: p for name, p in perturb(pool, seed=5).train().named_parameters() if p.requires_grad}
    with torch.autocast("cpu", torch.bfloat16):
        loss = pool(pixel_values=x).pred_masks.square().mean()
    loss.backward()
    assert trained and [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []


def test_the_joint_router_is_sams():
    for kind in ("sam2", "sam3_tracker"):
        sam = make(kind)
        with pytest.raises(UserError, match=r"router=.joint. on SAM [23]"):
            get_peft_model(sam, ModaConfig(router="joint"))
    pool = ModaModel(make("sam_hq"), ModaConfig(router="joint", domains=["red"]))
    assert pool.router.mode == "joint"


def test_a_last_stage_with_nothing_to_read_is_refused():
    sam = random_sam2(blocks_per_stage=[1, 2, 2, 1])
    with pytest.raises(UserError, match="the last stage of this encoder has one block, which pools"):
        ModaModel(sam, ModaConfig())
    ModaModel(make("sam2"), ModaConfig(domains=["red"]))
