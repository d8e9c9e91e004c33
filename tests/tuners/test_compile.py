"""What `torch.compile` makes of an adapted encoder: without a graph break, once for what is alike."""

import pytest
import torch
import torch._dynamo.config
from peft import LoraConfig, get_peft_model
from sams import random_sam
from torch._dynamo.testing import CompileCounter

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, ModaConfig, SamAdapterConfig
from hf_sam_adapt.sam.attention import use_fast_attention
from hf_sam_adapt.sam.gradient_checkpointing import enable_checkpointing
from hf_sam_adapt.tuners.conv_lora import balance_loss


CONFIGS = {
    "lora": lambda: LoraConfig(target_modules=r".*vision_encoder.*\.qkv", init_lora_weights=False),
    "conv_lora": lambda: ConvLoraConfig(init_weights=False, decoder="frozen"),
    "sam_adapter": lambda: SamAdapterConfig(scale_factor=4, init_weights=False, decoder="frozen"),
    "cwsam": lambda: CwsamConfig(scale_factor=4, init_weights=False, decoder="frozen"),
}


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def adapted(method: str, **sizes) -> torch.nn.Module:
    torch.manual_seed(0)
    sam = random_sam(**sizes)
    use_fast_attention(sam, "folded")
    return get_peft_model(sam, CONFIGS[method]()).eval()


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64)


@pytest.mark.slow
@pytest.mark.parametrize("method", CONFIGS)
def test_adapted_blocks_share_what_is_compiled(method):
    """Of six blocks a graph for windowed and one for global ones: at most two more are made."""
    model = adapted(method, layers=6, global_attn_indexes=[1, 4])
    encoder, inputs, counts = model.get_base_model().vision_encoder, images(), CompileCounter()
    with torch.no_grad():
        expected = encoder(inputs).last_hidden_state
        for layer in encoder.layers:
            layer.compile(backend=counts, fullgraph=True)
        found = encoder(inputs).last_hidden_state
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert counts.frame_count <= 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["conv_lora", "sam_adapter"])
def test_one_graph_takes_batches_of_any_size(method):
    model, counts = adapted(method), CompileCounter()
    encoder = model.get_base_model().vision_encoder
    batches = [images(count) for count in (2, 3, 5, 4)]
    with torch.no_grad():
        expected = [encoder(batch).last_hidden_state for batch in batches]
        encoder.compile(backend=counts, fullgraph=True)
        found = [encoder(batch).last_hidden_state for batch in batches]
    for one, other in zip(found, expected):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))
    assert counts.frame_count <= 2


@pytest.mark.slow
def test_a_balance_loss_out_of_checkpointed_blocks_breaks_no_graph(monkeypatch):
    monkeypatch.setattr(torch._dynamo.config, "skip_fwd_side_effects_in_bwd_under_checkpoint", True)
    inputs, results = images(), []
    for compiled in (False, True):
        model = adapted("conv_lora").train()
        encoder = model.get_base_model().vision_encoder
        enable_checkpointing(model, True)
        if compiled:
            encoder.compile(backend="aot_eager", fullgraph=True)
        torch.manual_seed(1)
        output = encoder(inputs).last_hidden_state
        loss = balance_loss(model)
        assert loss.requires_grad and loss > 0
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        gradients = torch.autograd.grad(output.square().mean() + loss, [*trained.values()])
        assert any("w_gate" in name and one.abs().max() > 0 for name, one in zip(trained, gradients))
        results.append((output, loss, *gradients))
    for found, expected in zip(*results, strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["probe", "joint"])
def test_a_router_reads_an_encoder_that_is_compiled(mode):
    """Its hooks are set for the call, which a compiled encoder would not look at."""
    config = ModaConfig(domains=["polyp", "leaf"], inner=SamAdapterConfig(scale_factor=4), router=mode)
    pool = get_peft_model(random_sam(), config).eval()
    encoder, inputs = pool.get_base_model().vision_encoder, images()
    with torch.no_grad():
        expected = pool.base_model.router_features(inputs)
        encoder.compile(backend="eager")
        encoder(inputs)
        found = pool.base_model.router_features(inputs)
    assert torch.equal(found, expected)
