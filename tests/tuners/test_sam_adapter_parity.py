"""SAM-Adapter against a plain reference, and the numbers of the publication."""

import pytest
import torch
from peft import get_peft_model
from reference_sam import adapter_prompts, complex_frequency_component, encoder, promptless_mask
from sams import perturb, random_sam
from transformers import SamConfig, SamModel

from hf_sam_adapt import SamAdapterConfig
from hf_sam_adapt.sam.families import SAM
from hf_sam_adapt.tuners.sam_adapter.features import frequency_component
from hf_sam_adapt.tuners.sam_adapter.layer import legacy_order


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def adapted(seed: int = 0, **fields):
    model = get_peft_model(random_sam(seed), SamAdapterConfig(scale_factor=4, **fields))
    return perturb(model, seed + 1).eval()


def reference_weights(model) -> dict:
    vision = model.get_base_model().vision_encoder
    patch = vision.patch_embed
    modules = {"up": patch.sam_adapter_up["default"], **patch.sam_adapter_feature["default"]}
    modules |= {f"tune.{i}": layer.sam_adapter_tune["default"] for i, layer in enumerate(vision.layers)}
    return {name: (module.weight, module.bias) for name, module in modules.items()}


@pytest.mark.parametrize("size", [(128, 128), (250, 250), (480, 640), (96, 130), (65, 33)])
@pytest.mark.parametrize("keep", ["high", "low"])
@pytest.mark.parametrize("rate", [0.25, 0.07])
def test_frequency_component_equals_complex_transform(size, keep, rate):
    image = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(size[0]))
    expected = complex_frequency_component(image, rate, keep)
    assert (frequency_component(image, rate, keep) - expected).abs().max() < 5e-6


def test_frequency_component_is_fp32_without_gradient_under_autocast():
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        component = frequency_component(image.bfloat16())
    assert component.dtype == torch.float32 and not component.requires_grad
    mean_free = frequency_component(image.detach() + 5.0)
    assert relative_error(mean_free, frequency_component(image.detach())) < 1e-4  # the DC term is removed


@pytest.mark.parametrize(("width", "channels_per_token"), [(768, 3), (1024, 1), (1280, 5)])
def test_legacy_order_scrambles_as_published(width, channels_per_token):
    count = 4096
    tokens = torch.arange(count * width, dtype=torch.float64).reshape(1, 64, 64, width)  # value = p * D + channel
    scrambled = legacy_order(tokens)[0].long()
    n, c = torch.meshgrid(torch.arange(count), torch.arange(width), indexing="ij")
    assert torch.equal(scrambled // width, (c * count + n) // width)
    assert torch.equal(scrambled % width, (c * count + n) % width)
    assert len(set((scrambled[17] % width).tolist())) == channels_per_token
    assert len(set((scrambled[17] // width).tolist())) == width


@pytest.mark.parametrize("layout", ["token", "legacy"])
def test_prompts_equal_reference(layout):
    model = adapted(embedding_layout=layout)
    vision = model.get_base_model().vision_encoder
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = vision.patch_embed(images)
        state = vision.patch_embed.sam_adapter_state
        prompts = [state.prompt("default", layer.sam_adapter_tune["default"]) for layer in vision.layers]
        expected = adapter_prompts(reference_weights(model), tokens, images, 3, legacy=layout == "legacy")
        other = adapter_prompts(reference_weights(model), tokens, images, 3, legacy=layout != "legacy")
    for prompt, reference, wrong in zip(prompts, expected, other):
        assert relative_error(prompt, reference) < 1e-5
        assert relative_error(prompt, wrong) > 1e-2


def test_prompts_on_a_map_that_is_not_square():
    model = adapted()
    patch = model.get_base_model().vision_encoder.patch_embed
    images, tokens = torch.randn(2, 3, 40, 72), torch.randn(2, 5, 9, 32)
    with torch.no_grad():
        patch.guide(images, tokens)
        layer = model.get_base_model().vision_encoder.layers[0]
        prompt = patch.sam_adapter_state.prompt("default", layer.sam_adapter_tune["default"])
        expected = adapter_prompts(reference_weights(model), tokens, images, 1, legacy=False)[0]
    assert prompt.shape == (2, 5, 9, 32)
    assert relative_error(prompt, expected) < 1e-5


def test_encoder_and_decoder_equal_reference():
    model = adapted()
    sam, base = model.get_base_model(), random_sam()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        prompts = adapter_prompts(
            reference_weights(model), base.vision_encoder.patch_embed(images), images, 3, legacy=False
        )
        embedding = sam.vision_encoder(images).last_hidden_state
        assert relative_error(embedding, encoder(base.vision_encoder, images, prompts)) < 2e-5
        assert relative_error(embedding, encoder(base.vision_encoder, images)) > 1e-2
        plain = base(pixel_values=images, multimask_output=False).pred_masks[:, 0, 0]
        expected = promptless_mask(base, base.vision_encoder(images).last_hidden_state)
        assert relative_error(plain, expected) < 1e-3  # transformers' eps 1e-6 in the two-way blocks
        for layer in base.mask_decoder.transformer.layers:
            for index in range(1, 5):
                getattr(layer, f"layer_norm{index}").eps = 1e-5
        original_eps = base(pixel_values=images, multimask_output=False).pred_masks[:, 0, 0]
        assert relative_error(original_eps, expected) < 2e-5


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads", "adapter", "trainable"),
    [
        ("B", 768, 12, 12, 63_312, 4_121_908),
        ("L", 1024, 24, 16, 116_544, 4_175_140),
        ("H", 1280, 32, 16, 186_960, 4_245_556),
    ],
)
def test_parameter_counts_of_the_publication(name, width, depth, heads, adapter, trainable):
    vision = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "mlp_dim": 4 * width}

    def build(**fields):
        with torch.device("meta"):
            return get_peft_model(SamModel(SamConfig(vision_config=vision)), SamAdapterConfig(**fields))

    model = build()
    parameters = {n: p.numel() for n, p in model.named_parameters() if p.requires_grad}
    outside = sum(count for n, count in parameters.items() if "mask_decoder" not in n)
    assert (outside, sum(parameters.values()) - outside) == (adapter, 3_506_304)
    faithful = build(faithful=True)
    assert sum(p.numel() for p in faithful.parameters() if p.requires_grad) == trainable
    assert model.peft_config["default"].base_fingerprint["pos_embed"] is None


def test_trained_set_is_what_a_loss_on_token_0_reaches():
    """Every trainable parameter gets a gradient; the frozen ones are bit-identical after three steps."""
    model = adapted(init_weights="paper").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(".sam_adapter_" in name for name in trainable)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(step))
        loss = model(pixel_values=images).pred_masks.square().mean()
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
            assert [n for n, g in gradients.items() if g is None or not g.any()] == []
        optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == trainable


def test_reached_parameters_by_gradient():
    sam = random_sam()
    sam(pixel_values=torch.randn(1, 3, 64, 64), multimask_output=False).pred_masks.square().mean().backward()
    parameters = sam.mask_decoder.named_parameters()
    reached = {name for name, p in parameters if p.grad is not None and p.grad.any()}
    assert reached == set(SAM.reached_parameters(sam.mask_decoder))


def test_faithful_trains_the_whole_decoder_and_no_mask_embed():
    model = adapted(faithful=True)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    decoder = {n for n, _ in random_sam().mask_decoder.named_parameters()}
    prefix = "base_model.model.mask_decoder.sam_adapter_weights.default."
    assert {n.removeprefix(prefix) for n in trainable if n.startswith(prefix)} == decoder
    assert "base_model.model.prompt_encoder.sam_adapter_weights.default.no_mask_embed.weight" in trainable
    assert model.peft_config["default"].embedding_layout == "legacy"
