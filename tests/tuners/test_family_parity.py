"""The methods on SAM 2's Hiera and SAM 3's ViT against plain references, with three different images."""

import pytest
import reference_conv_lora
import torch
import torch.nn.functional as F
from peft import get_peft_model
from reference_families import HieraPrompts, Plain, base, hiera_maps, sam3_maps
from reference_sam import adapter_prompts
from sams import perturb, random_sam2, random_sam3_tracker
from torch import nn

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.families import encoder_shape, family_of
from hf_sam_adapt.tuners.sam_adapter.staged import block_groups


MAKE = {"sam2": random_sam2, "sam3_tracker": random_sam3_tracker}
MAPS = {"sam2": hiera_maps, "sam3_tracker": sam3_maps}


@pytest.fixture(params=MAKE)
def kind(request) -> str:
    return request.param


def images(kind: str) -> torch.Tensor:
    side = encoder_shape(MAKE[kind]()).image_size
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(3))


def adapted(kind: str, config) -> nn.Module:
    """A SAM with an adapter that acts."""
    return perturb(get_peft_model(MAKE[kind](), config)).eval().get_base_model()


def levels(sam: nn.Module, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    return list(sam.vision_encoder(pixel_values).fpn_hidden_states)[:3]


def assert_maps(found: list[torch.Tensor], expected: list[torch.Tensor], unadapted: list[torch.Tensor]) -> None:
    """Equal to rounding, and not because nothing happened."""
    for mine, wanted, plain_map in zip(found, expected, unadapted, strict=True):
        largest = wanted.abs().max()
        assert (mine - wanted).abs().max() < 1e-5 * largest
        assert (plain_map - wanted).abs().max() > 1e-3 * largest


@torch.no_grad()
def test_the_references_are_the_models(kind):
    sam, x = MAKE[kind](), images(kind)
    for mine, wanted in zip(levels(sam, x), MAPS[kind](sam.vision_encoder, x), strict=True):
        assert (mine - wanted).abs().max() < 1e-5 * wanted.abs().max()


def prompts_of(kind: str, encoder: nn.Module, keep: str, absolute: bool):
    """The prompts of an image as callbacks."""
    if kind == "sam2":
        return lambda image: HieraPrompts(encoder.backbone, image, keep, absolute)
    patch = encoder.backbone.embeddings.patch_embeddings
    modules = {"up": patch.sam_adapter_up["default"], **patch.sam_adapter_feature["default"]}
    modules |= {f"tune.{i}": layer.sam_adapter_tune["default"] for i, layer in enumerate(encoder.backbone.layers)}
    weights = {name: (module.weight, module.bias) for name, module in modules.items()}

    def method(image: torch.Tensor) -> Plain:
        projection = base(patch).projection
        tokens = F.conv2d(image[None], projection.weight, stride=projection.stride).permute(0, 2, 3, 1)
        depth = len(encoder.backbone.layers)
        prompts = adapter_prompts(weights, tokens, image[None], depth, False, keep=keep, absolute=absolute)
        callbacks = Plain()
        callbacks.before = lambda block, x: x + prompts[block][0]
        return callbacks

    return method


@torch.no_grad()
def test_sam_adapter(kind):
    sam = adapted(kind, SamAdapterConfig(decoder="frozen", scale_factor=4))
    x = images(kind)
    expected = MAPS[kind](sam.vision_encoder, x, prompts_of(kind, sam.vision_encoder, "high", True))
    assert_maps(levels(sam, x), expected, levels(MAKE[kind](), x))


def test_the_groups_of_hiera_are_those_of_the_published_large_model():
    """SAM2-Adapter's stages [2, 6, 36, 4]: blocks 0-2, 3-8, 9-44 and 45-47."""
    blocks = []
    for stage, (width, count) in enumerate(zip((144, 288, 576, 1152), (2, 6, 36, 4))):
        for index in range(count):
            block = nn.Module()
            pools = stage > 0 and index == 0
            block.layer_norm1 = nn.LayerNorm(width // 2 if pools else width)
            block.query_stride = (2, 2) if pools else None
            blocks.append(block)
    groups = block_groups(nn.ModuleList(blocks))
    assert [(group.first, group.last) for group in groups] == [(0, 2), (3, 8), (9, 44), (45, 47)]
    assert [(group.width, group.stride) for group in groups] == [(144, 1), (288, 2), (576, 2), (1152, 2)]


def test_a_group_without_an_adapted_block_has_no_weights_that_nothing_trains():
    sam = random_sam2()
    groups = block_groups(sam.vision_encoder.backbone.blocks)
    chosen = [groups[1].last, groups[2].first]
    model = get_peft_model(sam, SamAdapterConfig(scale_factor=4, layers_to_transform=chosen, decoder="frozen"))
    patch = sam.vision_encoder.backbone.patch_embed
    assert (
        list(patch.sam_adapter_up["default"]) == list(patch.sam_adapter_feature["default"]["embedding"]) == ["1", "2"]
    )
    assert len(patch.sam_adapter_feature["default"]["high"]) == 3
    perturb(model).train()(pixel_values=images("sam2")).pred_masks.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())] == []


@torch.no_grad()
def test_cwsam(kind):
    sam = adapted(kind, CwsamConfig(decoder="frozen", scale_factor=4))
    encoder, x = sam.vision_encoder, images(kind)
    prompts = prompts_of(kind, encoder, "low", False)
    blocks = family_of(sam).blocks_of(encoder)

    def bottleneck(module, value: torch.Tensor) -> torch.Tensor:
        return F.linear(
            F.gelu(F.linear(value, module.down.weight, module.down.bias)), module.up.weight, module.up.bias
        )

    def method(image: torch.Tensor) -> Plain:
        callbacks = prompts(image)
        callbacks.after_attention = lambda block, y: y + bottleneck(blocks[block].sam_adapter_space["default"], y)
        callbacks.beside_mlp = lambda block, z: 0.5 * bottleneck(blocks[block].sam_adapter_mlp["default"], z)
        return callbacks

    expected = MAPS[kind](encoder, x, method)
    found = levels(sam, x)
    assert_maps(found, expected, levels(MAKE[kind](), x))
    assert_maps(found, expected, MAPS[kind](encoder, x, prompts))
    shape = encoder_shape(sam)
    outputs = [*shape.widths[1:], blocks[-1].layer_norm2.normalized_shape[0]]
    assert [block.sam_adapter_mlp["default"].down.out_features for block in blocks] == [w // 4 for w in outputs]


@torch.no_grad()
def test_conv_lora(kind):
    """In windows and in global blocks; an expert for each window. fp64: rounding can turn a gate's choice."""
    config = ConvLoraConfig(decoder="frozen", num_experts=3, lora_alpha=3, init_weights=False)
    sam = adapted(kind, config)
    sam.double()
    x = images(kind).double()

    class Convolutions(Plain):
        def linear(self, block: int, name: str, module: nn.Module, value: torch.Tensor) -> torch.Tensor:
            if not hasattr(module, "lora_experts"):
                return super().linear(block, name, module, value)
            return reference_conv_lora.Layer(module)(value[None], training=False)[0][0]

    expected = MAPS[kind](sam.vision_encoder, x, lambda image: Convolutions())
    assert_maps(levels(sam, x), expected, levels(MAKE[kind]().double(), x))
    names = {name.rpartition(".")[2] for name, module in sam.named_modules() if hasattr(module, "lora_experts")}
    assert names == ({"qkv"} if kind == "sam2" else {"q_proj", "v_proj"})


@torch.no_grad()
@pytest.mark.parametrize("objects", [1, 2])
def test_class_wise_decoder(kind, objects):
    """With the finer maps of the encoder on both of the head's ways."""
    classes = 3
    sam = adapted(kind, SamDecoderConfig(decoder="class_wise", num_labels=classes))
    x, reference = images(kind), MAKE[kind]()
    family = family_of(sam)
    family.mend(reference)
    points = torch.rand(3, objects, 2, 2, generator=torch.Generator().manual_seed(1)) * x.shape[-1]
    found = sam(pixel_values=x, input_points=points, multimask_output=True)

    overlay = sam.mask_decoder
    decoder, head = reference.mask_decoder, overlay.heads["default"]
    for name, value in overlay.overlays["default"].named_parameters():
        decoder.get_parameter(name).copy_(value)
    embeddings = family.encode(reference, x)
    position = reference.get_image_wide_positional_embeddings()
    labels = torch.ones(objects, 2, dtype=torch.int64)
    expected = torch.zeros(3, objects, classes, *embeddings.skips[0].shape[2:])
    for image in range(3):
        sparse, dense = reference.prompt_encoder(points[image][None], labels[None], None, None)
        for row in range(objects):
            tokens = torch.cat([decoder.obj_score_token.weight, decoder.iou_token.weight, decoder.mask_tokens.weight])
            tokens = torch.cat([tokens, sparse[0, row]])[None, None]
            source = embeddings.maps[image][None] + dense
            tokens, mixed = decoder.transformer(tokens, source, position, None)
            mixed = mixed[0, 0].T.reshape(source.shape)
            ways = []
            for maps in (mixed, source):
                maps = decoder.upscale_conv1(maps) + embeddings.skips[1][image]
                maps = decoder.upscale_conv2(F.gelu(decoder.upscale_layer_norm(maps))) + embeddings.skips[0][image]
                ways.append(F.gelu(maps))
            maps = F.conv_transpose2d(torch.cat(ways, 1), head.up.weight, head.up.bias, stride=2)
            maps = F.gelu(
                F.layer_norm(maps.permute(0, 2, 3, 1), maps.shape[1:2], head.norm.weight, head.norm.bias, 1e-6)
            )
            maps = F.gelu(F.conv2d(maps.permute(0, 3, 1, 2), head.conv.weight, head.conv.bias, stride=2, padding=3))[0]
            hyper = decoder.output_hypernetworks_mlps[0](tokens[0, 0, 2])
            for label in range(classes):
                expected[image, row, label] = torch.einsum("c,chw->hw", hyper, maps[label::classes])
    assert found.pred_masks.shape == expected.shape and found.iou_scores.shape == (3, objects, 1)
    assert (found.pred_masks - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SamAdapterConfig(embedding_layout="legacy"), "the scrambled order is that of SAM-Adapter's code for SAM"),
        (CwsamConfig(num_labels=3, faithful=True), "official code, whose computation it reproduces, was not written"),
        (ConvLoraConfig(faithful=True), "faithful=True on SAM"),
        (SamDecoderConfig(decoder="hq"), "decoder='hq' on SAM"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_what_a_family_cannot_have_is_refused_and_the_base_left_as_it_was(kind, config, message):
    sam = MAKE[kind]()
    before = {name: (id(module), dict(module._forward_hooks)) for name, module in sam.named_modules()}
    with pytest.raises(UserError, match=message):
        get_peft_model(sam, config)
    assert {name: (id(module), dict(module._forward_hooks)) for name, module in sam.named_modules()} == before


def test_a_narrow_stage_keeps_enough_channels_for_their_norm():
    """Over one channel a LayerNorm gives its bias, over two their order alone."""
    sam = get_peft_model(random_sam2(), SamAdapterConfig(decoder="frozen")).get_base_model()
    patch = sam.vision_encoder.backbone.patch_embed
    chain = patch.sam_adapter_feature["default"]["high"]
    assert [embed.proj.out_channels for embed in chain] == [3] * 4  # of widths 8 to 64, by 32
    assert sam.vision_encoder.backbone.blocks[0].sam_adapter_tune["default"].in_features == 3
