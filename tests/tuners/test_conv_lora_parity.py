"""Conv-LoRA against a literal reference (spec section 7), and what the published layer cannot do."""

import copy
import subprocess
import sys

import pytest
import reference_conv_lora as reference
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from sams import perturb, random_sam, random_vision_sam
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Dinov2Config,
    Dinov2Model,
    SamConfig,
    SamModel,
    SamVisionConfig,
    SamVisionModel,
    ViTConfig,
    ViTModel,
)

from hf_sam_adapt import ConvLoraConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.forward import PromptedSam
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.tuners.conv_lora import balance_loss, routing
from hf_sam_adapt.tuners.conv_lora.convolution import expert_convolution
from hf_sam_adapt.tuners.conv_lora.layer import ConvExperts, active_experts


SCALES = tuple(float(scale) for scale in range(1, 9))
SIZES = [(14, 14), (10, 14), (2, 2), (3, 4), (4, 3), (5, 1), (64, 64), (50, 9)]  # the last two in tiles


def draw(size, dtype=torch.float64, samples=2, rank=3, seed=0):
    """z (N, H, W, r), weight (8, r, r, 3, 3), bias (8, r)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(samples, *size, rank), (8, rank, rank, 3, 3), (8, rank)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def layer_of(width=12, out=36, seed=0, dtype=torch.float32, **fields):
    """One adapted Linear with random weights everywhere, in a model of its own."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, out)).to(dtype)
    fields = {"router": "faithful", "init_weights": False, **fields}
    model = get_peft_model(model, ConvLoraConfig(target_modules=["0"], **fields), autocast_adapter_dtype=False)
    assert isinstance(model.base_model.model[0], LoraLinear)
    return model, model.base_model.model[0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", range(1, 9))
def test_expert_equals_resampling_and_convolution(size, scale):
    z, weight, bias = draw(size)
    index = torch.full((2,), scale - 1)
    found = expert_convolution(z, index, weight, bias, SCALES)
    expected = reference.expert(z, weight[scale - 1], bias[scale - 1], scale)
    assert (found - expected).abs().max() <= 1e-12
    ring = torch.ones(size, dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    assert expected[:, ring].abs().max() > 0.1 and (found - expected)[:, ring].abs().max() <= 1e-12
    upstream = torch.randn(expected.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(found, (z, weight, bias), upstream)
    for gradient, wanted in zip(gradients, torch.autograd.grad(expected, (z, weight, bias), upstream)):
        assert wanted.abs().max() > 0.1
        assert (gradient - wanted).abs().max() <= 1e-11


@pytest.mark.parametrize("size", [(14, 14), (64, 64), (10, 14)])
def test_expert_in_fp32(size):
    z, weight, bias = draw(size, samples=8)
    weight = 0.11 * weight  # the size of PyTorch's own initialisation
    exact = reference.mixture(z, torch.arange(8), weight, bias)
    z, weight, bias = (value.float() for value in (z, weight, bias))
    found = expert_convolution(z, torch.arange(8), weight, bias, SCALES)
    assert (found - reference.mixture(z, torch.arange(8), weight, bias)).abs().max() <= 2e-5
    assert (found - exact).abs().max() <= 5e-6, "most of the difference is F.interpolate's own rounding"


def test_mixed_samples_take_their_own_expert():
    z, weight, bias = draw((9, 7), samples=20)
    index = torch.randint(8, (20,), generator=torch.Generator().manual_seed(5))
    found = expert_convolution(z, index, weight, bias, SCALES)
    expected = reference.mixture(z, index, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    upstream = torch.randn_like(expected)
    for mine, wanted in zip(*(torch.autograd.grad(y, (z, weight, bias), upstream) for y in (found, expected))):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(9, 11), (41, 5)])
@pytest.mark.parametrize("scales", [(1.0, 3.0, 5.0), (1.0, 1 / 2, 1 / 3), (2.0, 1 / 4, 1.0)])
def test_own_scales(scales, size):
    z, weight, bias = draw(size)
    for number, scale in enumerate(scales):
        found = expert_convolution(z, torch.full((2,), number), weight[:3], bias[:3], scales)
        if scale >= 1:
            expected = reference.expert(z, weight[number], bias[number], round(scale))
        else:
            gap = round(1 / scale)
            maps = nn.functional.conv2d(z.permute(0, 3, 1, 2), weight[number], bias[number], padding=gap, dilation=gap)
            expected = nn.functional.gelu(maps).permute(0, 2, 3, 1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "size, samples", [((14, 14), 25), ((14, 14), 100), ((64, 64), 1), ((64, 64), 4), ((10, 14), 6)]
)
def test_layer_in_evaluation(size, samples):
    model, layer = layer_of()
    model.eval()
    x = torch.randn(samples, *size, 12)
    with torch.no_grad():
        found, (expected, _) = layer(x), reference.Layer(layer)(x, training=False)
    assert (
        len(set(layer.lora_experts["default"]._route((x @ layer.lora_A["default"].weight.T).mean((1, 2)))[0])) or True
    )
    assert (expected - layer.get_base_layer()(x)).abs().max() > 0.5
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_layer_in_training_with_the_same_noise():
    model, layer = layer_of(dtype=torch.float64)
    model.train()
    x = torch.randn(50, 6, 5, 12, dtype=torch.float64)
    torch.manual_seed(7)
    found, loss = layer(x), balance_loss(model)
    torch.manual_seed(7)
    expected, wanted = reference.Layer(layer)(x, training=True)
    counts = layer.lora_experts["default"].last_counts[0]
    assert (counts > 0).sum() >= 4 and counts.sum() == 50
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert wanted > 1e-4
    torch.testing.assert_close(loss, wanted, rtol=0, atol=1e-7)
    experts = layer.lora_experts["default"]
    parameters = (experts.w_gate, experts.w_noise)
    mine = torch.autograd.grad(loss, parameters, retain_graph=True)
    for gradient, other in zip(mine, torch.autograd.grad(wanted, parameters)):
        assert other.abs().max() > 1e-6
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-8)
    # Check 8: the task's loss alone leaves the gate without gradient.
    assert torch.autograd.grad(found.square().sum(), parameters, allow_unused=True) == (None, None)


@pytest.mark.parametrize("router", ["straight_through", "switch"])
def test_routers_that_learn(router):
    _, layer = layer_of(router=router, dtype=torch.float64)
    _, other = layer_of(dtype=torch.float64)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(6, 5, 5, 12, dtype=torch.float64)
    outputs = []
    for one in (layer, other):
        torch.manual_seed(3)
        outputs.append(one.train()(x))
    experts = layer.lora_experts["default"]
    gradient = torch.autograd.grad(outputs[0].square().sum(), experts.w_gate)[0]
    assert gradient.abs().max() > 1e-3
    same = torch.allclose(*outputs, rtol=0, atol=1e-12)
    assert same == (router == "straight_through")


def test_importance_constants_of_one_sample():
    model, layer = layer_of()
    model.train()(torch.randn(1, 8, 8, 12))
    importance = torch.zeros(8)
    importance[3] = 1
    assert 0.01 * reference.squared_variation(importance).item() == pytest.approx(0.08, abs=1e-6)
    with torch.no_grad():
        layer.lora_experts["default"].w_gate.zero_()
    assert balance_loss(model).item() >= 0.08 - 1e-6


def test_several_experts_per_sample():
    model, layer = layer_of(top_k=3, dtype=torch.float64)
    model.eval()
    x = torch.randn(5, 6, 6, 12, dtype=torch.float64)
    z = x @ layer.lora_A["default"].weight.T
    experts = layer.lora_experts["default"]
    index = (z.mean((1, 2)) @ experts.w_gate).topk(3).indices
    moved = z + sum(reference.mixture(z, index[:, k], experts.weight, experts.bias) for k in range(3))
    expected = layer.get_base_layer()(x) + layer.scaling["default"] * moved @ layer.lora_B["default"].weight.T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)
    model.train()(x)
    assert torch.isfinite(balance_loss(model))


@pytest.mark.parametrize("kind", ["soft", "uniform"])
def test_eval_routing_over_all_experts(kind):
    model, layer = layer_of(eval_routing=kind, dtype=torch.float64)
    model.eval()
    x = torch.randn(4, 6, 7, 12, dtype=torch.float64)
    experts = layer.lora_experts["default"]
    z = x @ layer.lora_A["default"].weight.T
    share = (z.mean((1, 2)) @ experts.w_gate).softmax(1) if kind == "soft" else torch.full((4, 8), 1 / 8)
    parts = [reference.expert(z, experts.weight[e], experts.bias[e], e + 1) for e in range(8)]
    moved = z + sum(share[:, e, None, None, None] * parts[e] for e in range(8))
    expected = layer.get_base_layer()(x) + layer.scaling["default"] * moved @ layer.lora_B["default"].weight.T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-10)


def test_experts_at_zero_are_plain_lora():
    sam = random_sam()
    conv = get_peft_model(copy.deepcopy(sam), ConvLoraConfig(decoder="frozen", init_weights=False)).eval()
    config = LoraConfig(r=3, lora_alpha=32, target_modules=r"vision_encoder\.layers\.\d+\.attn\.qkv")
    lora = get_peft_model(copy.deepcopy(sam), config).eval()
    with torch.no_grad():
        for name, parameter in conv.named_parameters():
            if "lora_experts" in name:
                parameter.zero_()
        found = {name: value for name, value in conv.state_dict().items() if "lora_A" in name or "lora_B" in name}
        assert len(found) == 6
        lora.load_state_dict(found, strict=False)
        x = torch.randn(2, 3, 64, 64)
        a, b = (model(pixel_values=x, multimask_output=False).pred_masks for model in (conv, lora))
        base = sam(pixel_values=x, multimask_output=False).pred_masks
    assert (a - base).abs().max() > 1e-2
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


COUNTS = {"b": (768, 12, 119_232), "l": (1024, 24, 312_192), "h": (1280, 32, 514_560)}


@pytest.mark.parametrize("size", COUNTS)
def test_parameter_counts(size):
    width, layers, expected = COUNTS[size]
    heads = {768: 12, 1024: 16, 1280: 16}[width]
    vision = SamVisionConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        mlp_dim=4 * width,
        global_attn_indexes=[],
    )
    with torch.device("meta"):
        sam = SamModel(SamConfig(vision_config=vision.to_dict()))
        model = get_peft_model(sam, ConvLoraConfig(router="faithful", num_mask_tokens=1))
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    decoder = sum(count for name, count in trained.items() if "mask_decoder" in name)
    assert sum(trained.values()) - decoder == expected
    assert decoder == 3_505_536


def test_pruned_decoder_is_one_mask_of_a_decoder_with_one_token():
    sam = random_sam()
    model = get_peft_model(copy.deepcopy(sam), ConvLoraConfig(num_mask_tokens=1)).eval()
    small = copy.deepcopy(sam)
    decoder = small.mask_decoder
    decoder.num_mask_tokens = 1
    decoder.mask_tokens.weight = nn.Parameter(decoder.mask_tokens.weight[:1].clone())
    points = {"input_points": torch.tensor([[[[20.0, 30.0]], [[50.0, 9.0]]]] * 2)}
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for prompts in ({}, points):
            expected = small(pixel_values=x, multimask_output=False, **prompts).pred_masks
            for multimask in (True, False):
                found = model(pixel_values=x, multimask_output=multimask, **prompts).pred_masks
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            whole = sam(pixel_values=x, multimask_output=False, **prompts).pred_masks
            assert (whole - expected).abs().max() > 1e-3
    assert sam.mask_decoder.num_mask_tokens == model.base_model.model.mask_decoder.base_layer.num_mask_tokens == 4


# What the published layer fails at (check 16).


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dtype):
    model, _ = layer_of()
    half = copy.deepcopy(model).to(dtype)
    x = torch.randn(4, 7, 7, 12)
    with torch.no_grad():
        expected, found = model.eval()(x), half.eval()(x.to(dtype))
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() <= 0.03 * expected.abs().max()
    half.train()(x.to(dtype)).float().square().mean().backward()
    assert all(torch.isfinite(p.grad).all() for n, p in half.named_parameters() if p.requires_grad and "w_" not in n)


def test_branch_stays_fp32_under_autocast():
    _, layer = layer_of()
    seen = []
    layer.lora_experts["default"].register_forward_hook(lambda m, args, out: seen.append((args[0].dtype, out.dtype)))
    x = 30 + torch.randn(2, 8, 8, 12)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        z = layer.lora_A["default"](x)
        found = layer.eval()(x)
        with torch.autocast("cpu", enabled=False):
            exact = z.float() + layer.lora_experts["default"]._mixture(z.float())
        assert torch.equal(layer.lora_experts["default"](z), exact.to(torch.bfloat16))
    assert found.dtype == torch.bfloat16 and seen[0] == (torch.bfloat16, torch.bfloat16)


def sam_with_adapter(seed=0, **fields):
    torch.manual_seed(seed)
    return perturb(get_peft_model(random_sam(), ConvLoraConfig(**fields)), seed)


@pytest.mark.parametrize("router", ["faithful", "straight_through"])
def test_balance_loss_and_gradients_under_checkpointing(router):
    x = torch.randn(2, 3, 64, 64)
    gradients = []
    for checkpointing in (False, True):
        model = sam_with_adapter(router=router).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(4)
        masks = model(pixel_values=x.requires_grad_()).pred_masks
        loss = balance_loss(model)
        assert loss.requires_grad and loss > 1e-3
        (masks.square().mean() + loss).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        assert balance_loss(model) == loss, "the recomputation must not be collected"
    assert any("w_gate" in name and g.abs().max() > 0 for name, g in gradients[0].items())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_reentrant_checkpointing_is_refused():
    model = sam_with_adapter().train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model(pixel_values=torch.randn(1, 3, 64, 64).requires_grad_())
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        balance_loss(model)


def test_balance_loss_is_absent_without_a_gate():
    model = sam_with_adapter().train()
    x = torch.randn(1, 3, 64, 64)
    model(pixel_values=x)
    assert balance_loss(model) is not None
    with model.disable_adapter():
        model(pixel_values=x)
        assert balance_loss(model) is None
    model.eval()
    assert balance_loss(model) is None
    single = sam_with_adapter(num_experts=1, expert_scales=[3]).train()
    single(pixel_values=x)
    assert balance_loss(single) is None and not any("w_gate" in name for name, _ in single.named_parameters())


def test_balance_losses_of_two_adapters_add():
    model = perturb(get_peft_model(random_sam(), ConvLoraConfig(decoder="frozen")), 1)
    model.add_adapter("second", ConvLoraConfig(decoder="frozen", num_experts=4, init_weights=False))
    x = torch.randn(2, 3, 64, 64)
    losses = {}
    for name in ("default", "second", ["default", "second"]):
        model.base_model.set_adapter(name)
        model.train()
        torch.manual_seed(0)
        model(pixel_values=x)
        losses[str(name)] = balance_loss(model)
        used = active_experts(model)
    assert len(used) == 6
    assert losses["['default', 'second']"] > max(losses["default"], losses["second"]) > 0


class CountedOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def test_losses_of_all_layers_at_once_are_those_of_each():
    """Windowed and global layers have different numbers of samples; twice as many layers are no more operations."""
    counts = []
    for layers in (3, 6):
        model = perturb(get_peft_model(random_sam(layers=layers), ConvLoraConfig(top_k=2))).train()
        model(pixel_values=torch.randn(2, 3, 64, 64))
        with CountedOperations() as operations:
            balance_loss(model)
        counts.append(operations.count)
    assert 0 < counts[0] == counts[1]
    model = sam_with_adapter(top_k=2).train()
    model(pixel_values=torch.randn(2, 3, 64, 64))
    choices = [experts.last_routing for _, experts in active_experts(model)]
    assert len({choice[0].shape for choice in choices}) == 2 and len(choices) == 3
    each = [0.01 * routing.balance_loss(*choice) for choice in choices]
    assert len({round(loss.item(), 6) for loss in each}) == 3
    trained = [p for name, p in model.named_parameters() if "w_gate" in name or "w_noise" in name]
    expected = torch.autograd.grad(sum(each), trained, retain_graph=True)
    total = balance_loss(model)
    torch.testing.assert_close(total, sum(each))
    for gradient, other in zip(torch.autograd.grad(total, trained), expected, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6 * float(other.abs().max()))


def test_the_graph_of_a_training_forward_goes_with_its_output():
    """`PromptedSam` hands the loss out; nothing of the graph stays in the model."""
    model = sam_with_adapter().train()
    _, own, _ = PromptedSam(model)(torch.randn(1, 3, 64, 64), [Prompt("none")])
    assert own.requires_grad and own > 0
    for _, experts in active_experts(model):
        assert experts.last_counts is not None  # these have no graph
        tensors = [value for value in vars(experts).values() if isinstance(value, (torch.Tensor, tuple))]
        assert not any(one.requires_grad for value in tensors for one in value if isinstance(one, torch.Tensor))
    assert balance_loss(model) is None


def test_get_image_embeddings_and_compile():
    model = sam_with_adapter().eval()
    x = torch.randn(2, 3, 64, 64)
    embeddings = model.get_base_model().get_image_embeddings(x)
    assert isinstance(embeddings, torch.Tensor)


@pytest.mark.parametrize("training", [False, True])
def test_compiles_to_one_graph(training):
    model, layer = layer_of(router="straight_through")
    model.train(training)
    x = torch.randn(5, 6, 6, 12)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def run(forward):
        torch.manual_seed(2)
        out = forward(x)
        extra = balance_loss(model) if training else 0
        gradients = torch.autograd.grad(
            out.square().mean() + extra, [p for p in model.parameters() if p.requires_grad], allow_unused=not training
        )
        return out, gradients

    (expected, wanted), (found, gradients) = run(layer), run(compiled)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for gradient, other in zip(gradients, wanted):
        if other is not None:
            torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


def test_deterministic_algorithms():
    _, layer = layer_of()
    torch.use_deterministic_algorithms(True)
    try:
        layer.train()(torch.randn(4, 8, 8, 12)).square().sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)


EXPORT = """
import sys, torch
program = torch.export.load(sys.argv[1])
inputs, expected = torch.load(sys.argv[2], weights_only=True)
assert "hf_sam_adapt" not in sys.modules
found = program.module()(inputs)
print((found - expected).abs().max().item())
"""


@pytest.mark.slow
def test_exported_encoder_in_a_second_process(tmp_path):
    model = perturb(get_peft_model(random_vision_sam(), ConvLoraConfig()), 2).eval().requires_grad_(False)

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixel_values):
            return self.model(pixel_values).last_hidden_state

    x = torch.randn(2, 3, 64, 64)
    program = torch.export.export(Encoder().eval(), (x,))
    torch.export.save(program, tmp_path / "encoder.pt2")
    with torch.no_grad():
        expected = Encoder()(x)
        with model.disable_adapter():
            assert (Encoder()(x) - expected).abs().max() > 1e-2
    torch.save((x, expected), tmp_path / "data.pt")
    command = [sys.executable, "-c", EXPORT, tmp_path / "encoder.pt2", tmp_path / "data.pt"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout.split()[-1]) <= 1e-4


# Other ViTs.


def vits():
    common = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return {
        "vit": ViTModel(ViTConfig(image_size=32, patch_size=8, **common)),
        "dinov2": Dinov2Model(Dinov2Config(image_size=32, patch_size=8, **common)),
    }


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_other_vits_train_and_reload(name, tmp_path):
    torch.manual_seed(0)
    base = vits()[name]
    model = get_peft_model(copy.deepcopy(base), ConvLoraConfig(num_experts=4)).train()
    x = torch.randn(2, 3, 32, 32)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(8):
        out = model(pixel_values=x).last_hidden_state
        loss = out[:, 1:].var(1).mean() + balance_loss(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert len(active_experts(model)) == 6, "query, key and value of two layers"
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(copy.deepcopy(base), tmp_path).eval()
    model.eval().requires_grad_(False)
    again.requires_grad_(False)
    assert torch.equal(model(pixel_values=x).last_hidden_state, again(pixel_values=x).last_hidden_state)


def test_token_sequences_equal_grids():
    model, layer = layer_of(grid=[4, 6], dtype=torch.float64)
    model.eval()
    x = torch.randn(3, 4, 6, 12, dtype=torch.float64)
    prefix = torch.randn(3, 2, 12, dtype=torch.float64)
    found = layer(torch.cat([prefix, x.flatten(1, 2)], dim=1))
    torch.testing.assert_close(found[:, 2:], layer(x).flatten(1, 2), rtol=0, atol=1e-12)
    update = layer.scaling["default"] * prefix @ layer.lora_A["default"].weight.T @ layer.lora_B["default"].weight.T
    torch.testing.assert_close(found[:, :2], layer.get_base_layer()(prefix) + update, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "fields, shape, message",
    [
        ({}, (1, 24, 12), "set grid"),
        ({"grid": [4, 6]}, (1, 20, 12), "4 x 6"),
        ({"grid": [4, 6], "num_prefix_tokens": 2}, (1, 25, 12), "4 x 6 and 2"),
        ({}, (5, 12), "dimensions"),
    ],
)
def test_inputs_that_are_no_grid(fields, shape, message):
    _, layer = layer_of(**fields)
    with pytest.raises(UserError, match=message):
        layer(torch.randn(shape))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"router": "best"}, "router='best'"),
        ({"eval_routing": "top"}, "eval_routing='top'"),
        ({"top_k": 9}, "top_k=9"),
        ({"num_experts": 0}, "num_experts=0"),
        ({"expert_scales": [1, 2]}, "2 entries for 8"),
        ({"num_experts": 1, "expert_scales": [1.5]}, "1.5"),
        ({"conv_kernel_size": 5}, "conv_kernel_size=5"),
        ({"use_dora": True}, "use_dora"),
        ({"grid": [4]}, "grid"),
        ({"init_lora_weights": "pissa"}, "pissa"),
    ],
)
def test_configs_that_cannot_be(fields, message):
    with pytest.raises(UserError, match=message):
        ConvLoraConfig(**fields)


def test_targets_that_are_no_linear_are_refused():
    with pytest.raises(UserError, match="not a Linear"):
        get_peft_model(random_sam(), ConvLoraConfig(target_modules=["neck.conv1"]))


def test_merging_says_why_not():
    model = sam_with_adapter()
    for merge in (
        model.merge_and_unload,
        model.merge_adapter,
        lambda: model.add_weighted_adapter(["default"], [1.0], "x"),
    ):
        with pytest.raises(NotImplementedError, match="GELU"):
            merge()


def test_layers_to_transform_and_rank_pattern():
    fields = {"layers_to_transform": [0, 2], "rank_pattern": {"layers.2.attn.qkv": 5}, "decoder": "frozen"}
    model = get_peft_model(random_sam(), ConvLoraConfig(**fields))
    ranks = {name.split("layers.")[1][0]: experts.weight.shape[1] for name, experts in active_experts(model)}
    assert ranks == {"0": 3, "2": 5}
    with pytest.raises(UserError, match="layers_to_transform"):
        get_peft_model(random_vision_sam(), ConvLoraConfig(layers_to_transform=[3]))
    with pytest.raises(UserError, match=r"layers_to_transform=\[-1\]"):
        get_peft_model(random_vision_sam(), ConvLoraConfig(layers_to_transform=[0, -1]))


def test_vision_model_alone():
    assert isinstance(random_vision_sam(), SamVisionModel)
    model = get_peft_model(random_vision_sam(), ConvLoraConfig())
    assert model.peft_config["default"].decoder == "frozen"


def test_backward_within_autocast_computes_what_it_computes_outside():
    """But for the router's own small product; rounded, the convolution's gradients were 2 % off."""
    torch.manual_seed(0)
    experts = ConvExperts(3, ConvLoraConfig(init_weights=False))
    z = torch.randn(2, 8, 8, 3, requires_grad=True)
    gradients = []
    for within in (False, True):
        torch.manual_seed(0)
        loss = experts.train()(z).square().mean()
        with torch.autocast("cpu", torch.bfloat16, enabled=within):
            gradients.append(torch.autograd.grad(loss, [z, experts.weight]))
    for outside, inside in zip(*gradients):
        assert (outside - inside).abs().max() < 1e-3 * outside.abs().max()
