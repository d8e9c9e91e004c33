"""What makes a training step cheap leaves its numbers as they are."""

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from sams import perturb, random_sam

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.inference.forward import segment
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.sam.attention import tiles, use_fast_attention
from hf_sam_adapt.sam.gradient_checkpointing import enable_checkpointing
from hf_sam_adapt.training.frozen_weights import cast_frozen_matrices


ADAPTER = "adapter_model.safetensors"
QKV = r"vision_encoder\.layers\.\d+\.attn\.qkv"
METHODS = {
    "lora": LoraConfig(r=2, target_modules=QKV, modules_to_save=["mask_decoder"], init_lora_weights=False),
    "conv_lora": ConvLoraConfig(init_weights=False),
    "sam_adapter": SamAdapterConfig(init_weights=False),
    "cwsam": CwsamConfig(num_labels=3, init_weights=False),
    "decoder": SamDecoderConfig(),
}


def gradients(model: torch.nn.Module, images: torch.Tensor, precision: torch.dtype) -> dict[str, torch.Tensor]:
    """Of every parameter that gets one, and the logits under "logits"."""
    torch.manual_seed(0)  # Conv-LoRA draws noise for its gate
    with torch.autocast("cpu", precision):
        logits = torch.stack(segment(model, images, [Prompt("none")] * len(images)))
    logits.float().pow(2).mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None} | {"logits": logits.detach()}


def assert_close_runs(folder: Path, other: Path, relative: float) -> None:
    """Losses and, as a whole, weights agree; AdamW turns a gradient that is rounding alone into a full step."""
    losses = []
    for path in (folder, other):
        rows = json.loads((path / "metrics.json").read_text())["history"]["train"]
        losses.append([row["loss"] for row in rows])
    assert len(losses[0]) > 1
    assert losses[0] == pytest.approx(losses[1], rel=relative)
    one, two = (load_file(path / ADAPTER) for path in (folder, other))
    flat, wanted = (torch.cat([weights[name].flatten() for name in sorted(one)]) for weights in (one, two))
    assert (flat - wanted).norm() <= relative * wanted.norm()


@pytest.mark.parametrize("method", METHODS)
def test_frozen_16_bit_weights_give_the_same_numbers(method):
    plain = perturb(get_peft_model(random_sam(), METHODS[method])).train()
    cast = copy.deepcopy(plain)
    encoder = cast.base_model.model.vision_encoder
    cast_frozen_matrices(encoder, torch.bfloat16)
    half = [name for name, p in encoder.named_parameters() if p.dtype == torch.bfloat16]
    assert any("mlp.lin1" in name for name in half)
    assert not any(p.requires_grad and p.dtype != torch.float32 for p in cast.parameters())
    assert cast.base_model.model.dtype == torch.float32
    images = torch.randn(2, 3, 64, 64)
    one, two = gradients(plain, images, torch.bfloat16), gradients(cast, images, torch.bfloat16)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_blocks_below_the_first_adapter_keep_nothing_for_backward():
    model = get_peft_model(random_sam(), LoraConfig(target_modules=r"vision_encoder\.layers\.2\.attn\.qkv"))
    layers = model.base_model.model.vision_encoder.layers
    kept: list[list[int]] = []
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, args: kept.append([]))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept[-1].append(t.numel()) or t, lambda t: t):
        output = model.base_model.model.vision_encoder(torch.randn(1, 3, 64, 64)).last_hidden_state
    assert output.requires_grad
    assert [len(sizes) > 0 for sizes in kept] == [False, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sam_adapter", pytest.param("lora", marks=pytest.mark.slow)])
def test_a_run_with_folded_attention_equals_one_with_eager(method, short_recipe, command_line, tmp_path):
    for kind in ("folded", "eager"):
        done = command_line("train", *short_recipe(kind, method=method, attention=kind, learning_rate=1e-2))
        assert done.returncode == 0, done.stderr
    assert_close_runs(tmp_path / "folded", tmp_path / "eager", 1e-3)


@pytest.mark.slow
def test_a_checkpointed_run_equals_one_that_is_not(short_recipe, command_line, tmp_path):
    keys = {"method": "conv_lora", "prompts": ["none", "box"], "learning_rate": 1e-2}
    for checkpointing in ("true", "selective", "false"):
        done = command_line("train", *short_recipe(checkpointing, **keys, gradient_checkpointing=checkpointing))
        assert done.returncode == 0, done.stderr
    for checkpointing in ("true", "selective"):
        assert_close_runs(tmp_path / checkpointing, tmp_path / "false", 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_leaves_the_gradients_and_selective_the_attention(method, monkeypatch):
    """One forward of the attention a layer where it is kept, two where it is not."""
    plain = perturb(get_peft_model(random_sam(), METHODS[method])).train()
    use_fast_attention(plain, "folded")
    images = torch.randn(2, 3, 64, 64)
    wanted = gradients(plain, images, torch.bfloat16)
    calls = []
    flash = tiles._flash
    monkeypatch.setattr(tiles, "_flash", lambda *args, **kwargs: calls.append(0) or flash(*args, **kwargs))
    counts = {}
    for kind in (False, "selective", True):
        model = copy.deepcopy(plain)
        model.zero_grad()
        if kind:
            enable_checkpointing(model, kind)
        calls.clear()
        found = gradients(model, images, torch.bfloat16)
        counts[kind] = len(calls)
        assert found.keys() == wanted.keys()
        for name in found:
            assert torch.equal(found[name], wanted[name]), name
    if method == "decoder":  # nothing below it is trained, so nothing is computed again
        assert counts[False] == counts["selective"] == counts[True] > 0
    else:
        assert counts[False] == counts["selective"] > 0
        assert counts[True] > counts[False]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sam_adapter", "lora"])
def test_a_compiled_run_equals_one_that_is_not(method, short_recipe, command_line, tmp_path):
    for compiled in (True, False):
        keys = {"method": method, "max_steps": 2, "learning_rate": 1e-2, "compile": compiled}
        done = command_line("train", *short_recipe(str(compiled), **keys))
        assert done.returncode == 0, done.stderr
    assert_close_runs(tmp_path / "True", tmp_path / "False", 1e-3)


@pytest.mark.slow
def test_evaluate_and_predict_take_the_attention(sam_folder, disc_folder, command_line, tmp_path):
    image = next((disc_folder / "test" / "images").iterdir())
    for kind in ("auto", "eager"):
        done = command_line(
            "predict", image, "--model", sam_folder, "--attention", kind, "--output_dir", tmp_path / kind
        )
        assert done.returncode == 0, done.stderr
    (one, two) = (next((tmp_path / kind).glob("*_mask.png")).read_bytes() for kind in ("auto", "eager"))
    assert one == two
    done = command_line("evaluate", "--model", sam_folder, "--dataset", disc_folder, "--attention", "fast")
    assert done.returncode == 2 and "attention" in done.stderr and len(done.stderr.strip().splitlines()) == 1
