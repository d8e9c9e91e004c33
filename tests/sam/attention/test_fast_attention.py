"""Every kind of attention against transformers' eager one, on random SAMs whose relative positions matter."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from sams import perturb, random_sam, random_vision_sam, randomise, sam_config
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SamVisionModel

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, SamAdapterConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.attention import attention_kind, fast, restore_attention, use_fast_attention
from hf_sam_adapt.sam.attention.fast import attention_modules
from hf_sam_adapt.sam.attention.folded import flash_takes, folded_attention
from hf_sam_adapt.sam.attention.positions import position_tables
from hf_sam_adapt.sam.attention.tiles import tiled_attention
from hf_sam_adapt.sam.constants import forget_constants


def pixels(batch: int = 2, size: int = 64, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(batch, 3, size, size).to(dtype)


def built_with(kind: str, **config) -> SamVisionModel:
    """A random SAM whose own attention is of `kind`."""
    return randomise(SamVisionModel._from_config(sam_config(**config).vision_config, attn_implementation=kind))


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the largest value."""
    return ((a.double() - b.double()).abs().max() / b.double().abs().max()).item()


def step(model: torch.nn.Module, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Output and gradients of every parameter that requires one, and of the images."""
    images = images.clone().requires_grad_()
    model.zero_grad()
    output = model(images).last_hidden_state
    output.pow(2).mean().backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return output.detach(), grads | {"images": images.grad}


def assert_equal_steps(model, other, images, forward=1e-13, backward=1e-11) -> None:
    (output, grads), (wanted, wanted_grads) = step(model, images), step(other, images)
    assert difference(output, wanted) <= forward
    assert grads.keys() == wanted_grads.keys()
    for name, value in grads.items():
        assert difference(value, wanted_grads[name]) <= backward, name


@pytest.mark.parametrize("kind", ["auto", "folded"])
def test_equals_sdpa_in_fp64(kind):
    plain = random_vision_sam().double()
    fast = copy.deepcopy(plain)
    use_fast_attention(fast, kind)
    assert_equal_steps(fast, plain, pixels(dtype=torch.float64))


@pytest.mark.parametrize("kind", ["auto", "folded", "sdpa", "eager"])
def test_equals_eager(kind):
    plain = built_with("eager")
    assert attention_kind(plain) == "eager"
    fast = copy.deepcopy(plain)
    use_fast_attention(fast, kind)
    assert_equal_steps(fast, plain, pixels(), forward=1e-5, backward=1e-4)


@pytest.mark.parametrize("function", [tiled_attention, folded_attention])
@pytest.mark.parametrize(
    ("height", "width", "batch", "heads", "size"), [(7, 5, 3, 2, 8), (40, 33, 1, 2, 20), (2, 9, 2, 1, 4)]
)
def test_functions_on_maps_of_any_shape(function, height, width, batch, heads, size):
    def reference(qkv, table_h, table_w, scale):
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        maps = q.unflatten(2, (height, width))
        rel_h = torch.einsum("bnhwc,hkc->bnhwk", maps, table_h)[..., :, None]
        rel_w = torch.einsum("bnhwc,wkc->bnhwk", maps, table_w)[..., None, :]
        scores = scale * q @ k.mT + (rel_h + rel_w).reshape(batch, heads, height * width, height * width)
        return (scores.softmax(-1) @ v).transpose(1, 2)

    shapes = ((batch, height * width, 3, heads, size), (height, height, size), (width, width, size))
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    upstream = torch.randn(batch, height * width, heads, size, dtype=torch.float64)
    results = []
    for compute in (function, reference):
        output = compute(*inputs, 0.3)
        results.append((output, *torch.autograd.grad(output, inputs, upstream)))
    for value, wanted, limit in zip(*results, (1e-13, 1e-11, 1e-11, 1e-11)):
        assert value.shape == wanted.shape
        assert difference(value, wanted) <= limit


def test_16_bit_numbers_are_no_worse_than_sdpa():
    """In the mean of 64 batches: the ratio of one batch's errors varies by 6 %, whichever of the two is better."""
    exact = random_vision_sam()
    rounded = {kind: copy.deepcopy(exact).bfloat16() for kind in ("sdpa", "folded")}
    for kind, model in rounded.items():
        use_fast_attention(model, kind)
    errors = {kind: torch.zeros(2, dtype=torch.float64) for kind in rounded}
    for _ in range(64):
        images = pixels()
        wanted, wanted_grads = step(exact, images)
        for kind, model in rounded.items():
            output, grads = step(model, images.bfloat16())
            spread = [(grads[name].double() - grad).norm() / grad.norm() for name, grad in wanted_grads.items()]
            errors[kind] += torch.stack([(output.double() - wanted).norm(), torch.stack(spread).mean()])
    assert (errors["folded"] <= 1.05 * errors["sdpa"]).all()


def test_a_single_layer_in_16_bits_is_more_exact_than_sdpa():
    model = random_vision_sam(layers=1, image_size=128, global_attn_indexes=[0])
    (attention,) = attention_modules(model)
    hidden = torch.randn(1, 16, 16, 32)
    with torch.no_grad():
        exact = attention(hidden)[0]
        attention.bfloat16()
        theirs = attention(hidden.bfloat16())[0]
        use_fast_attention(model, "folded")
        ours = attention(hidden.bfloat16())[0]
    assert (ours - exact).norm() <= (theirs - exact).norm()


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, target_modules=["qkv"], init_lora_weights=False),
        ConvLoraConfig(init_weights=False, decoder="frozen"),
        SamAdapterConfig(init_weights=False),
        CwsamConfig(init_weights=False),
    ],
    ids=lambda config: type(config).__name__,
)
@pytest.mark.parametrize("before", [True, False])
def test_adapters_before_and_after(config, before):
    torch.manual_seed(0)
    plain = get_peft_model(random_vision_sam(), config).double().eval()
    base = random_vision_sam()
    if before:
        use_fast_attention(base)
    torch.manual_seed(0)
    fast = get_peft_model(base, config).double().eval()
    if not before:
        use_fast_attention(fast)
    assert list(fast.state_dict()) == list(plain.state_dict())
    fast.load_state_dict(plain.state_dict())
    images = pixels(dtype=torch.float64)
    assert_equal_steps(fast, plain, images)
    with fast.disable_adapter(), plain.disable_adapter():
        assert difference(fast(images).last_hidden_state, plain(images).last_hidden_state) <= 1e-13
    assert attention_kind(fast.unload()) == "auto"


def test_names_classes_and_values_stay_and_it_can_be_undone():
    model = random_sam()
    images, state = pixels(), {key: value.clone() for key, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]
    with torch.no_grad():
        own = model.vision_encoder(images).last_hidden_state
        use_fast_attention(model, "eager")
        assert attention_kind(model) == "eager"
        use_fast_attention(model, "folded")
        fast = model.vision_encoder(images).last_hidden_state
        assert attention_kind(model) == "folded"
        assert [type(module) for module in model.modules()] == classes
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert len(model.vision_encoder.patch_embed._forward_hooks) == 1
        restore_attention(model)
        assert attention_kind(model) == "sdpa"
        assert not model.vision_encoder.patch_embed._forward_hooks
        assert torch.equal(model.vision_encoder(images).last_hidden_state, own)
    torch.testing.assert_close(fast, own, atol=1e-4, rtol=1e-4)


def test_copies_and_pickles_are_models_of_their_own():
    model = random_vision_sam()
    use_fast_attention(model, "folded")
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    images = pixels()
    with torch.no_grad():
        wanted = model(images).last_hidden_state
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)
        perturb(model)
        for other in copies:
            assert attention_kind(other) == "folded"
            assert torch.equal(other(images).last_hidden_state, wanted)
            assert next(attention_modules(other)).forward is not next(attention_modules(model)).forward


def test_another_input_size_interpolates_as_transformers_does():
    sam = random_sam().double()
    plain, fast = (
        get_peft_model(copy.deepcopy(sam), SamAdapterConfig(image_size=96, init_weights=False)) for _ in range(2)
    )
    fast.load_state_dict(plain.state_dict())
    use_fast_attention(fast)
    images = pixels(size=96, dtype=torch.float64)
    encoders = [model.base_model.model.vision_encoder for model in (fast, plain)]
    assert_equal_steps(*encoders, images)
    for attention in (next(attention_modules(encoder)) for encoder in encoders):
        torch.manual_seed(0)
        attention.rel_pos_h = torch.nn.Parameter(torch.randn(9, 16, dtype=torch.float64))
        attention.rel_pos_w = torch.nn.Parameter(torch.randn(21, 16, dtype=torch.float64))
    assert_equal_steps(*encoders, images)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    plain = random_vision_sam().double().train()
    fast = copy.deepcopy(plain)
    use_fast_attention(fast)
    fast.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_equal_steps(fast, plain, pixels(dtype=torch.float64))


def test_autocast():
    model, images = random_vision_sam(), pixels(batch=64)
    with torch.no_grad():
        exact = model(images).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            theirs = model(images).last_hidden_state
            use_fast_attention(model)
            ours = model(images).last_hidden_state
    assert ours.dtype == theirs.dtype
    assert (ours - exact).norm() <= 1.05 * (theirs - exact).norm()


def test_autocast_does_not_round_the_terms_of_the_bias():
    shapes = ((2, 25, 3, 2, 8), (5, 5, 8), (5, 5, 8))
    tables = [torch.randn(shape) for shape in shapes[1:]]
    results = []
    for enabled in (True, False):
        torch.manual_seed(0)
        qkv = torch.randn(shapes[0]).bfloat16().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            output = tiled_attention(qkv, *tables, 0.3)
            output.float().pow(2).sum().backward()
        results.append((output, qkv.grad))
    assert all(torch.equal(one, other) for one, other in zip(*results))


def test_a_named_kind_is_used_or_raises():
    with pytest.raises(UserError, match="unknown 'fast'"):
        use_fast_attention(random_vision_sam(), "fast")
    with pytest.raises(UserError, match="no image encoder"):
        use_fast_attention(torch.nn.Linear(2, 2))
    without = random_vision_sam(use_rel_pos=False)
    with pytest.raises(UserError, match="folded cannot be used, for it has no relative positions"):
        use_fast_attention(without, "folded")
    images = pixels()
    wanted = without(images).last_hidden_state
    use_fast_attention(without, "auto")
    assert torch.equal(without(images).last_hidden_state, wanted)
    dropout = built_with("eager", attention_dropout=0.5).train()
    with pytest.raises(UserError, match="dropout"):
        use_fast_attention(dropout, "folded")
    use_fast_attention(dropout, "auto")
    torch.manual_seed(0)
    fast = dropout(images).last_hidden_state
    restore_attention(dropout)
    torch.manual_seed(0)
    assert torch.equal(fast, dropout(images).last_hidden_state)


def test_blocks_get_tokens_with_channels_innermost():
    model, layouts = random_vision_sam(), []
    for layer in model.vision_encoder.layers:
        layer.register_forward_pre_hook(lambda module, args: layouts.append(args[0].is_contiguous()))
    model(pixels())
    use_fast_attention(model)
    model(pixels())
    copy.deepcopy(model)(pixels())
    assert layouts == 3 * [False] + 6 * [True]


def test_backward_keeps_no_attention_of_the_whole_map():
    model = random_vision_sam(image_size=256, layers=2, window=7)
    use_fast_attention(model, "folded")
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda value: sizes.append(value.numel()) or value, lambda value: value
    ):
        model(pixels(1, 256))
    heads, tokens = 2, 32 * 32
    assert max(sizes) < heads * tokens**2 / 8


def test_what_is_exported_needs_only_torch():
    model = random_vision_sam(layers=1)
    use_fast_attention(model)
    images = pixels()
    with torch.no_grad():
        program = torch.export.export(model, (images,))
        found = program.module()(images).last_hidden_state
        torch.testing.assert_close(found, model(images).last_hidden_state, atol=1e-4, rtol=1e-4)
    assert not any("hf_sam_adapt" in str(node.target) for node in program.graph.nodes)


@pytest.mark.slow
def test_compiles_as_one_graph():
    plain = random_vision_sam().train()
    fast = copy.deepcopy(plain)
    use_fast_attention(fast)
    fast.compile(fullgraph=True)
    assert_equal_steps(fast, plain, pixels(), forward=1e-4, backward=1e-3)


@pytest.mark.parametrize(
    ("width", "capability", "training", "flash"),
    [
        (192, (8, 6), True, True),
        (208, (8, 0), True, True),  # ViT-H at 1024 px: 80 + 64 + 64
        (208, (9, 0), True, True),
        (208, (8, 6), True, False),
        (208, (8, 9), True, False),
        (208, (12, 0), True, False),
        (208, (8, 9), False, True),
        (232, (8, 6), True, True),
        (264, (9, 0), False, False),  # above 1536 px
    ],
)
def test_values_are_padded_where_flash_attention_runs(width, capability, training, flash, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    heads = SimpleNamespace(
        shape=(1, 2, 64, width), dtype=torch.bfloat16, device=torch.device("cuda"), requires_grad=training
    )
    assert flash_takes(heads) is flash
    heads.dtype = torch.float32
    assert flash_takes(heads) is False


def test_blocks_share_what_is_compiled():
    """Of six blocks, windowed and global, two graphs; a guard on each attention would make six."""
    model = random_vision_sam(layers=6, global_attn_indexes=[1, 4])
    use_fast_attention(model, "folded")
    images = pixels()
    with torch.no_grad():
        expected = model(images).last_hidden_state
    torch._dynamo.reset()
    counts = CompileCounter()
    for layer in model.vision_encoder.layers:
        layer.compile(backend=counts, fullgraph=True)
    with torch.no_grad():
        found = model(images).last_hidden_state
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert counts.frame_count <= 2
    torch._dynamo.reset()


class _Operations(TorchDispatchMode):
    """Counts the operations within."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_constants_of_the_folded_attention_are_made_once():
    """In inference first, and then used by a training; a map of another shape has its own."""
    (attention,) = attention_modules(random_vision_sam(layers=1, global_attn_indexes=[0]))
    forget_constants()

    def run(height: int, width: int, counted: _Operations) -> torch.Tensor:
        attention.rel_pos_h = torch.nn.Parameter(torch.linspace(-1, 1, (2 * height - 1) * 16).view(-1, 16))
        attention.rel_pos_w = torch.nn.Parameter(torch.linspace(-1, 1, (2 * width - 1) * 16).view(-1, 16))
        torch.manual_seed(0)
        qkv = torch.randn(2, height * width, 3, 2, 16)
        with counted:
            return folded_attention(qkv, *position_tables(attention, height, width), 0.3)

    counts = [_Operations() for _ in range(4)]
    with torch.inference_mode():
        first = run(5, 7, counts[0])
    again = run(5, 7, counts[1])
    again.square().sum().backward()
    assert torch.equal(first, again.detach())
    other = run(7, 5, counts[2])
    assert other.shape == first.shape and not torch.equal(other, first)
    forget_constants()
    assert torch.equal(run(7, 5, counts[3]), other)
    assert counts[1].count <= counts[3].count - 16


def test_the_kernel_goes_by_device_dtype_and_processor(monkeypatch):
    wanted = {False: tiled_attention, True: folded_attention}
    for amx in (False, True):
        monkeypatch.setattr(fast, "AMX", amx)
        assert fast.kernel_for("cpu", torch.float32) is tiled_attention
        assert fast.kernel_for("cpu", torch.bfloat16) is wanted[amx]
        assert fast.kernel_for("cuda", torch.float32) is folded_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_on_a_cpu_with_amx_equal_those_without(monkeypatch, dtype):
    plain = random_vision_sam().to(dtype)
    use_fast_attention(plain, "folded")
    images = pixels(batch=3, dtype=dtype)
    monkeypatch.setattr(fast, "AMX", False)
    output, grads = step(plain, images)
    monkeypatch.setattr(fast, "AMX", True)
    other, other_grads = step(plain, images)
    assert torch.equal(other, output) == (dtype == torch.float32)
    assert difference(other, output) <= (0 if dtype == torch.float32 else 0.03)
    for name, value in other_grads.items():
        assert difference(value, grads[name]) <= (0 if dtype == torch.float32 else 0.1), name
