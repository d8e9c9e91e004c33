"""CWSAM's encoder and class-wise decoder against plain references, and the publication's counts (spec section 8)."""

import copy

import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from reference_sam import adapter_prompts, encoder
from sams import perturb, random_sam, random_vision_sam
from torch import nn
from transformers import SamConfig, SamModel, SamVisionConfig

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.tuners.common.class_wise import ClassHead, QueryHead
from hf_sam_adapt.tuners.common.overlay import current_parameters


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def adapted(config, base=None, seed=0):
    base = random_sam(seed) if base is None else base
    torch.manual_seed(seed)
    return perturb(get_peft_model(base, config), seed + 1).eval()


def images(count=2, size=64, seed=3):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def bottleneck(module, x):
    hidden = F.gelu(x @ module.down.weight.T + module.down.bias)
    return hidden @ module.up.weight.T + module.up.bias


@pytest.mark.parametrize(("faithful", "lowpass_abs"), [(False, False), (False, True), (True, False)])
def test_encoder_equals_reference(faithful, lowpass_abs):
    config = CwsamConfig(scale_factor=4, faithful=faithful, lowpass_abs=lowpass_abs, num_labels=4)
    model = adapted(config)
    vision = model.get_base_model().vision_encoder
    blocks, patch, x = list(vision.layers), vision.patch_embed, images()
    with torch.no_grad():
        modules = {"up": patch.sam_adapter_up["default"], **patch.sam_adapter_feature["default"]}
        modules |= {f"tune.{i}": block.sam_adapter_tune["default"] for i, block in enumerate(blocks)}
        weights = {name: (module.weight, module.bias) for name, module in modules.items()}
        tokens = F.conv2d(x, patch.projection.weight, patch.projection.bias, stride=8).permute(0, 2, 3, 1)
        absolute = faithful or lowpass_abs
        prompts = adapter_prompts(weights, tokens, x, len(blocks), faithful, keep="low", absolute=absolute)
        space = [block.sam_adapter_space["default"] for block in blocks]
        beside = [block.sam_adapter_mlp["default"] for block in blocks]
        plain = random_sam().vision_encoder
        expected = encoder(
            plain,
            x,
            prompts,
            after_attention=lambda i, y: y + bottleneck(space[i], y),
            beside_mlp=lambda i, z: 0.5 * bottleneck(beside[i], z),
        )
        found = vision(x).last_hidden_state
        assert relative_error(found, expected) < 1e-5
        assert relative_error(encoder(plain, x, prompts), expected) > 1e-2
        signed = adapter_prompts(weights, tokens, x, len(blocks), faithful, keep="low", absolute=not absolute)
        assert relative_error(signed[0], prompts[0]) > 1e-3


def plain_with_adapter_weights(model):
    """A stock SamModel that holds the adapter's decoder weights."""
    plain = random_sam()
    overlay = model.get_base_model().mask_decoder
    own = current_parameters(overlay.overlays["default"])
    with torch.no_grad():
        for name, parameter in plain.mask_decoder.named_parameters():
            if name in own and own[name].shape == parameter.shape:
                parameter.copy_(own[name])
    return plain, overlay.heads["default"]


def intermediate(sam, embedding, **prompts):
    """What the stock decoder computes on its way: hyper-vectors of all tokens and the upscaled map."""
    found = {}
    hooks = [
        mlp.register_forward_hook(lambda m, a, out, i=i: found.update({f"hyper{i}": out, f"token{i}": a[0]}))
        for i, mlp in enumerate(sam.mask_decoder.output_hypernetworks_mlps)
    ]
    hooks.append(sam.mask_decoder.upscale_conv2.register_forward_hook(lambda m, a, out: found.update(up=F.gelu(out))))
    sam(image_embeddings=embedding, multimask_output=False, **prompts)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("with_points", [False, True])
def test_class_head_equals_reference(with_points):
    classes = 5
    model = adapted(SamDecoderConfig(decoder="class_wise", num_labels=classes))
    plain, head = plain_with_adapter_weights(model)
    prompts = {"input_points": torch.tensor([[[[20.0, 30.0]], [[50.0, 9.0]]]] * 2)} if with_points else {}
    with torch.no_grad():
        embedding = plain.vision_encoder(images()).last_hidden_state
        found = model(image_embeddings=embedding, **prompts).pred_masks
        seen = intermediate(plain, embedding, **prompts)
        decoder, count = plain.mask_decoder, 2 if with_points else 1
        assert found.shape == (2, count, classes, 32, 32)
        dense = plain.prompt_encoder.no_mask_embed.weight[0][:, None, None]
        source = (embedding + dense).repeat_interleave(count, 0)
        first = F.gelu(decoder.upscale_conv2(F.gelu(decoder.upscale_layer_norm(decoder.upscale_conv1(source)))))
        x = F.conv_transpose2d(torch.cat([seen["up"], first], 1), head.up.weight, head.up.bias, stride=2)
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
        x = F.gelu(x * head.norm.weight[:, None, None] + head.norm.bias[:, None, None])
        x = F.gelu(F.conv2d(x, head.conv.weight, head.conv.bias, stride=2, padding=3))
        hyper = seen["hyper0"].flatten(0, 1)
        features = x.shape[1] // classes
        expected, wrong = torch.zeros(2, 2 * count, classes, 32, 32)
        for k in range(classes):
            for c in range(features):
                expected[:, k] += hyper[:, c, None, None] * x[:, c * classes + k]
                wrong[:, k] += hyper[:, c, None, None] * x[:, k * features + c]
    assert relative_error(found.flatten(0, 1), expected) < 1e-5
    assert relative_error(wrong, expected) > 1e-2, "a class-major order of the channels must fail"


def test_query_head_equals_reference():
    classes, queries = 3, 6
    config = SamDecoderConfig(decoder="class_wise", num_labels=classes, num_mask_tokens=queries)
    model = adapted(config)
    plain, head = plain_with_adapter_weights(model)
    decoder = plain.mask_decoder
    overlay = model.get_base_model().mask_decoder.overlays["default"]
    with torch.no_grad():
        decoder.mask_tokens.weight = nn.Parameter(overlay.mask_tokens.weight.clone())
        first = decoder.output_hypernetworks_mlps[0]
        decoder.output_hypernetworks_mlps = nn.ModuleList(copy.deepcopy(first) for _ in range(queries))
        decoder.num_mask_tokens = queries
        embedding = plain.vision_encoder(images()).last_hidden_state
        found = model(image_embeddings=embedding).pred_masks
        seen = intermediate(plain, embedding)
        score = torch.zeros(2, classes, 32, 32)
        for q in range(queries):
            mask = torch.einsum("bc,bchw->bhw", seen[f"hyper{q}"][:, 0], seen["up"]).sigmoid()
            votes = F.linear(seen[f"token{q}"][:, 0], head.classifier.weight, head.classifier.bias).softmax(-1)
            score += votes[:, :classes, None, None] * mask[:, None]
    assert isinstance(head, QueryHead) and found.shape == (2, 1, classes, 32, 32)
    torch.testing.assert_close(found[:, 0].exp(), score, rtol=1e-4, atol=1e-6)


def test_batch_of_two_equals_two_of_one():
    model = adapted(CwsamConfig(num_labels=4, scale_factor=4))
    x = images()
    with torch.no_grad():
        together = model(pixel_values=x).pred_masks
        alone = torch.cat([model(pixel_values=one[None]).pred_masks for one in x])
    assert relative_error(together, alone) < 1e-5


COUNTS = {
    "b": (768, 12, 7_100_928 + 63_312),
    "l": (1024, 24, 25_227_264 + 116_544),
    "h": (1280, 32, 52_531_200 + 186_960),
}


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts(size):
    width, layers, expected = COUNTS[size]
    vision = SamVisionConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=16, mlp_dim=4 * width)
    head = {5: 518_496, 10: 1_020_416}
    for classes, count in head.items():
        with torch.device("meta"):
            sam = SamModel(SamConfig(vision_config=vision.to_dict()))
            model = get_peft_model(sam, CwsamConfig(num_labels=classes))
        trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
        decoder = {name: n for name, n in trained.items() if "mask_decoder" in name}
        assert sum(trained.values()) - sum(decoder.values()) == expected
        assert sum(n for name, n in decoder.items() if "class_head" in name) == count
        assert sum(decoder.values()) - count == 3_506_304


def test_official_totals_with_faithful():
    with torch.device("meta"):
        model = get_peft_model(SamModel(SamConfig()), CwsamConfig(num_labels=5, faithful=True))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 11_741_332


def test_two_adapters_and_unload_leave_no_hook():
    base = random_sam().requires_grad_(False)  # as unloaded: torch rounds the products of trainable weights otherwise
    model = get_peft_model(random_sam(), CwsamConfig(decoder="frozen", scale_factor=4, init_weights=False))
    model.add_adapter(
        "second", CwsamConfig(decoder="frozen", use_prompts=False, adapter_act="relu", init_weights=False)
    )
    x, outputs = images(), {}
    with torch.no_grad():
        for names in ("default", "second", ["default", "second"]):
            model.base_model.set_adapter(names)
            outputs[str(names)] = model.eval()(pixel_values=x).pred_masks
        plain = base(pixel_values=x, multimask_output=False).pred_masks
        assert len({round(float(out.sum()), 3) for out in [*outputs.values(), plain]}) == 4
        model.delete_adapter("second")
        model.base_model.set_adapter("default")
        assert torch.equal(model(pixel_values=x).pred_masks, outputs["default"])
        sam = model.unload()
        assert not any(module._forward_hooks for module in sam.modules())
        assert torch.equal(sam(pixel_values=x, multimask_output=False).pred_masks, plain)


def test_two_active_class_decoders_are_refused():
    model = get_peft_model(random_sam(), SamDecoderConfig(decoder="class_wise", num_labels=3))
    model.add_adapter("second", SamDecoderConfig(decoder="class_wise", num_labels=4))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UserError, match="class_wise"):
        model(pixel_values=images())


@pytest.mark.parametrize("config_cls", [SamAdapterConfig, ConvLoraConfig, SamDecoderConfig, CwsamConfig])
def test_every_method_takes_the_class_wise_decoder(config_cls):
    model = adapted(config_cls(decoder="class_wise", num_labels=3, id2label={0: "a", 1: "b", 2: "c"}))
    out = model.train()(pixel_values=images(), multimask_output=True).pred_masks
    assert out.shape == (2, 1, 3, 32, 32)
    out.square().mean().backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert isinstance(model.get_base_model().mask_decoder.heads["default"], ClassHead)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lambda: CwsamConfig(), "num_labels=None"),
        (lambda: SamAdapterConfig(num_labels=3), "num_labels=3"),
        (lambda: CwsamConfig(num_labels=1), "num_labels=1"),
        (lambda: SamDecoderConfig(num_mask_tokens=4), "num_mask_tokens=4"),
        (lambda: CwsamConfig(num_labels=3, use_prompts=False, block_adapters=False), "SamDecoderConfig"),
        (lambda: CwsamConfig(adapter_act="tanh"), "tanh"),
        (lambda: CwsamConfig(adapter_ratio=0), "adapter_ratio"),
    ],
)
def test_configs_that_cannot_be(config, message):
    with pytest.raises(UserError, match=message):
        get_peft_model(random_sam(), config())


def test_cwsam_beside_sam_adapter_on_one_model_says_what_to_do():
    sam = random_sam()
    sam.add_adapter(SamAdapterConfig(decoder="frozen"), "first")
    with pytest.raises(UserError, match="add the CWSAM adapter first"):
        sam.add_adapter(CwsamConfig(decoder="frozen"), "second")


def test_vision_model_alone():
    model = get_peft_model(random_vision_sam(), CwsamConfig())
    assert model.peft_config["default"].decoder == "frozen"
