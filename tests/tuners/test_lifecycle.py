"""What PEFT promises of an adapter holds for ours: bit for bit where DESIGN says so, on CPU in fp32."""

import copy
import json
import pickle
import subprocess
import sys

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from sams import perturb, random_sam, random_sam_hq, random_vision_sam
from transformers import SamModel

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, L2pConfig, SamAdapterConfig, SamDecoderConfig, register_feature
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.tuners.common.layer import ParameterOverlay


CONFIGS = {
    "sam_adapter": lambda **fields: SamAdapterConfig(scale_factor=4, **fields),
    "sam_adapter-bias": lambda **fields: SamAdapterConfig(scale_factor=4, features=[], **fields),
    "sam_adapter-faithful": lambda **fields: SamAdapterConfig(
        scale_factor=4, faithful=True, features=["embedding", "high", "low"], feature_weights=[1, 0.5, 2], **fields
    ),
    "sam_adapter-frozen": lambda **fields: SamAdapterConfig(
        scale_factor=4, decoder="frozen", layers_to_transform=[0, 2], **fields
    ),
    "conv_lora": ConvLoraConfig,
    "conv_lora-faithful": lambda **fields: ConvLoraConfig(faithful=True, num_experts=5, **fields),
    "conv_lora-frozen": lambda **fields: ConvLoraConfig(
        decoder="frozen", layers_to_transform=[0, 2], router="switch", top_k=2, **fields
    ),
    "cwsam": lambda **fields: CwsamConfig(decoder="full", scale_factor=4, **fields),
    "cwsam-class_wise": lambda **fields: CwsamConfig(num_labels=3, scale_factor=4, use_prompts=False, **fields),
    "decoder": SamDecoderConfig,
    "decoder-hq": lambda **fields: SamDecoderConfig(decoder="hq", **fields),
    "sam_adapter-hq": lambda **fields: SamAdapterConfig(decoder="hq", scale_factor=4, **fields),
    "decoder-iou": lambda **fields: SamDecoderConfig(train_iou_head=True, train_no_mask_embed=True, **fields),
}
METHODS = [name for name in CONFIGS if name != "sam_adapter-bias"]
POINT = torch.tensor([[[[20.0, 30.0]]]]).expand(2, -1, -1, -1)


@pytest.fixture(params=CONFIGS)
def method(request) -> str:
    return request.param


def later(*names: str) -> list:
    """Parameters that run with the slow tests."""
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def images(count: int = 2, size: int = 64, seed: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def masks(model, pixel_values=None, **kwargs) -> torch.Tensor:
    """Masks as DESIGN §2.3 compares them: nothing requires grad, a parameter that does changes SDPA's kernel."""
    model = copy.deepcopy(model).requires_grad_(False).eval()
    with torch.no_grad():
        return model(pixel_values=images() if pixel_values is None else pixel_values, **kwargs).pred_masks


def adapted(method: str, seed: int = 1, base=None, **fields):
    base = random_sam() if base is None else base
    torch.manual_seed(seed)
    return perturb(get_peft_model(base, CONFIGS[method](**fields)), seed).eval()


def test_untrained_adapter_leaves_the_output_unchanged(method):
    base = random_sam()
    model = get_peft_model(random_sam(), CONFIGS[method]())
    config = model.peft_config["default"]
    # The others are other decoders from the start.
    if config.num_mask_tokens is None and config.decoder in ("frozen", "full"):
        assert torch.equal(masks(model), masks(base, multimask_output=False))
    assert not torch.equal(masks(adapted(method)), masks(model))


def test_init_weights_false_and_paper_act(method):
    base = masks(random_sam(), multimask_output=False)
    assert not torch.equal(masks(get_peft_model(random_sam(), CONFIGS[method](init_weights=False))), base)
    if method in ("sam_adapter", "sam_adapter-faithful"):
        assert not torch.equal(masks(get_peft_model(random_sam(), CONFIGS[method](init_weights="paper"))), base)


def test_disable_and_unload_give_the_base_bit_for_bit(method):
    base = random_sam()
    model = adapted(method)
    with model.disable_adapter():
        assert torch.equal(masks(model), masks(base))
    assert not torch.equal(masks(model), masks(base, multimask_output=False))
    unloaded = model.unload()
    assert torch.equal(masks(unloaded), masks(base))
    assert list(unloaded.state_dict()) == list(base.state_dict())
    assert not unloaded._forward_pre_hooks


def test_save_and_every_way_to_load(method, tmp_path):
    base = random_sam()
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(SamModel.from_pretrained(tmp_path / "base"), CONFIGS[method]())
    perturb(model)
    expected = masks(model)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(masks(PeftModel.from_pretrained(random_sam(), tmp_path / "adapter")), expected)
    renamed = PeftModel.from_pretrained(random_sam(), tmp_path / "adapter", adapter_name="polyp")
    assert torch.equal(masks(renamed), expected)
    empty = PeftModel.from_pretrained(random_sam(), tmp_path / "adapter", low_cpu_mem_usage=True)
    assert torch.equal(masks(empty), expected)
    assert torch.equal(masks(AutoPeftModel.from_pretrained(tmp_path / "adapter")), expected)
    sam = random_sam()
    sam.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(masks(sam), expected)
    sam.disable_adapters()
    assert torch.equal(masks(sam), masks(random_sam()))


FRESH = """
import sys, torch
import hf_sam_adapt
from peft import AutoPeftModel, PeftModel
from transformers import SamModel
folder = sys.argv[1]
image = torch.load(folder + "/image.pt")
def masks(model):
    with torch.no_grad():
        return model.requires_grad_(False).eval()(pixel_values=image).pred_masks
base = folder + "/base"
sam = SamModel.from_pretrained(base)
sam.load_adapter(folder + "/adapter")
torch.set_num_threads(1)
expected = torch.load(folder + "/masks.pt")
auto = AutoPeftModel.from_pretrained(folder + "/adapter")
models = [sam, auto, PeftModel.from_pretrained(SamModel.from_pretrained(base), folder + "/adapter")]
assert all(torch.equal(masks(model), expected) for model in models)
print("equal")
"""


@pytest.mark.parametrize("name", ["sam_adapter", "decoder-hq", *later("conv_lora", "cwsam-class_wise", "decoder")])
def test_load_in_a_fresh_process(name, tmp_path):
    random_sam().save_pretrained(tmp_path / "base")
    model = perturb(get_peft_model(SamModel.from_pretrained(tmp_path / "base"), CONFIGS[name]()))
    model.save_pretrained(tmp_path / "adapter")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.save(masks(model), tmp_path / "masks.pt")
    torch.set_num_threads(threads)
    torch.save(images(), tmp_path / "image.pt")
    run = subprocess.run([sys.executable, "-c", FRESH, str(tmp_path)], capture_output=True, text=True)
    assert run.stdout.strip() == "equal", run.stderr


def test_copy_and_pickle_after_a_forward_with_gradient(method):
    model = adapted(method)
    model(pixel_values=images()).pred_masks.sum().backward()
    expected = masks(model)
    assert torch.equal(masks(copy.deepcopy(model)), expected)
    assert torch.equal(masks(pickle.loads(pickle.dumps(model))), expected)


def test_several_adapters(method, tmp_path):
    if "class_wise" in method or "hq" in method:
        pytest.skip("two such decoders cannot be active together: test_cwsam_parity.py, test_hq_decoder.py")
    first, second = adapted(method, seed=1), adapted(method, seed=2)
    second.save_pretrained(tmp_path)
    alone = masks(first), masks(second)
    first.load_adapter(tmp_path, adapter_name="second")
    assert torch.equal(masks(first), alone[0])
    first.set_adapter("second")
    assert torch.equal(masks(first), alone[1])
    first.base_model.set_adapter(["default", "second"])
    both = masks(first)
    assert not torch.equal(both, alone[0]) and not torch.equal(both, alone[1])
    first.delete_adapter("default")
    assert torch.equal(masks(first), alone[1])
    with first.disable_adapter():
        assert torch.equal(masks(first), masks(random_sam()))


def test_two_decoders_add_their_differences():
    model = adapted("decoder", seed=1)
    model.add_adapter("second", SamDecoderConfig())
    overlay = model.get_base_model().mask_decoder
    with torch.no_grad():
        for parameter in overlay.overlays["second"].parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.base_model.set_adapter(["default", "second"])
    expected = copy.deepcopy(overlay.base_layer)
    first, second = (dict(overlay.overlays[name].named_parameters()) for name in ("default", "second"))
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            if name in first:
                parameter += (first[name] - parameter) + (second[name] - parameter)
    plain = random_sam()
    plain.mask_decoder = expected
    assert torch.allclose(masks(model), masks(plain, multimask_output=False), atol=1e-5)


def test_decoder_merges_and_unmerges_exactly():
    model = adapted("decoder")
    expected, base = masks(model), random_sam()
    model.merge_adapter()
    assert torch.equal(masks(model), expected)
    model.unmerge_adapter()
    assert torch.equal(masks(model), expected)
    merged = model.merge_and_unload()
    assert not any(isinstance(module, ParameterOverlay) for module in merged.modules())
    assert torch.equal(masks(merged, multimask_output=False), expected)
    assert not torch.equal(masks(base, multimask_output=False), expected)


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("names", [None, ["default"], ["second"]])
def test_a_merged_decoder_keeps_the_adapters_number_of_masks(default, names, tmp_path):
    model = adapted("decoder", multimask_output=default)
    model.add_adapter("second", SamDecoderConfig(multimask_output=default))
    expected = masks(model).shape[2]
    assert expected == (3 if default else 1)
    merged = model.merge_and_unload(adapter_names=names)
    assert masks(merged).shape[2] == masks(copy.deepcopy(merged)).shape[2] == expected
    assert masks(merged, multimask_output=not default).shape[2] != expected
    merged.save_pretrained(tmp_path)  # a plain SamModel, which has SAM's default
    assert masks(SamModel.from_pretrained(tmp_path)).shape[2] == 3
    again = get_peft_model(merged, SamDecoderConfig(multimask_output=not default))
    assert masks(again).shape[2] != expected
    with again.disable_adapter():
        assert masks(again).shape[2] == expected
    assert masks(again.unload()).shape[2] == expected


@pytest.mark.parametrize(
    ("fields", "size", "channels"),
    [({"image_size": 128}, 128, 3), ({"in_channels": 5}, 64, 5), ({"global_attention": True}, 64, 3)],
)
def test_a_second_adapter_leaves_the_input_of_a_merged_model(fields, size, channels):
    x = torch.randn(1, channels, size, size, generator=torch.Generator().manual_seed(3))
    for again in ({}, fields):
        merged = adapted("decoder", **fields).merge_and_unload()
        expected = masks(merged, x)
        model = get_peft_model(merged, SamDecoderConfig(**again))
        assert torch.equal(masks(model, x), expected)
        assert model.peft_config["default"].base_fingerprint["image_size"] == size
        assert torch.equal(masks(model.unload(), x), expected)


def test_a_second_adapter_leaves_what_was_mended_in_a_merged_model():
    x, points = images(1), torch.tensor([[[[20.0, 30.0]]]])
    merged = perturb(get_peft_model(random_sam_hq(), SamDecoderConfig())).merge_and_unload()
    expected = masks(merged, x, input_points=points)
    unloaded = get_peft_model(merged, SamDecoderConfig()).unload()
    assert torch.equal(masks(unloaded, x, input_points=points), expected)


@pytest.mark.parametrize(
    "config",
    [
        SamAdapterConfig(layers_to_transform=[]),
        CwsamConfig(num_labels=3, layers_to_transform=[]),
        ConvLoraConfig(layers_to_transform=[]),
        ConvLoraConfig(target_modules=r".*attn\.qkv", layers_to_transform=[]),
    ],
)
def test_no_block_at_all_is_refused(config):
    with pytest.raises(UserError, match=r"layers_to_transform: \[\] names no block; leave it out for all"):
        get_peft_model(random_sam(), config)


@pytest.mark.parametrize(
    ("config", "place"),
    [
        (SamAdapterConfig(scale_factor=4, modules_to_save=["neck"]), "vision_encoder.neck"),
        (ConvLoraConfig(modules_to_save=["neck"]), "vision_encoder.neck"),
        (SamAdapterConfig(scale_factor=4, decoder="frozen", modules_to_save=["mask_decoder"]), "mask_decoder"),
        (SamDecoderConfig(modules_to_save=["prompt_encoder"]), "prompt_encoder"),
    ],
)
def test_unload_takes_the_trained_copies_away(config, place):
    base = random_sam()
    model = perturb(get_peft_model(random_sam(), config))
    assert any("modules_to_save" in name for name, p in model.named_parameters() if p.requires_grad)
    unloaded = model.unload()
    assert type(unloaded.get_submodule(place)) is type(base.get_submodule(place))
    assert list(unloaded.state_dict()) == list(base.state_dict())
    assert torch.equal(masks(unloaded, input_points=POINT), masks(base, input_points=POINT))


def test_sam_adapter_says_why_it_does_not_merge():
    model = adapted("sam_adapter")
    before = masks(model)
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotImplementedError, match="depend on the image"):
            merge()
    assert torch.equal(masks(model), before)


def test_frozen_decoder_parts_stay_frozen(method, tmp_path):
    model = adapted(method)
    model.save_pretrained(tmp_path)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    with model.disable_adapter():
        pass
    model.set_adapter("default")
    model.load_adapter(tmp_path, adapter_name="other", is_trainable=True)
    model.delete_adapter("other")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert all(any(f".{prefix}" in name for prefix in ("sam_adapter_", "sam_decoder_", "lora_")) for name in trainable)


@pytest.mark.parametrize("name", METHODS)
def test_gradient_checkpointing_with_two_forwards(name):
    """The prompts of the first forward survive the second; both kinds of checkpoint."""

    def gradients(use_reentrant: bool | None):
        model = adapted(name).train()
        if use_reentrant is not None:
            model.get_base_model().gradient_checkpointing_enable({"use_reentrant": use_reentrant})
            assert model.get_base_model().is_gradient_checkpointing
        first = model(pixel_values=images(2, seed=5)).pred_masks
        second = model(pixel_values=images(3, seed=6)).pred_masks
        (first.square().mean() + 2 * second.square().mean()).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.requires_grad}

    plain = gradients(None)
    # A reentrant checkpoint needs an input with a gradient, which only prompts before the blocks give it.
    without_prompts = "conv_lora" in name or name == "cwsam-class_wise"
    for use_reentrant in (False,) if without_prompts else (False, True):
        other = gradients(use_reentrant)
        for key, gradient in plain.items():
            if gradient is not None:
                assert torch.allclose(other[key], gradient, rtol=1e-4, atol=1e-6), key


def rounding(output: torch.Tensor, expected: torch.Tensor) -> float:
    return ((output.float() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", METHODS)
def test_bf16_base_keeps_fp32_adapter(name):
    model = adapted(name, base=random_sam().bfloat16())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    output = masks(model, images().bfloat16())
    assert output.dtype == torch.bfloat16
    assert rounding(output, masks(adapted(name))) < 0.05


def test_autocast(method):
    model = adapted(method)
    expected = masks(model)
    with torch.autocast("cpu", torch.bfloat16):
        output = masks(model)
        model(pixel_values=images()).pred_masks.float().mean().backward()
    assert rounding(output, expected) < 0.05


@pytest.mark.parametrize("name", ["conv_lora", *later("sam_adapter", "cwsam-class_wise", "decoder")])
def test_compiles_to_one_graph(name):
    model = adapted(name)
    expected = model(pixel_values=images()).pred_masks
    compiled = torch.compile(model.get_base_model().vision_encoder, backend="aot_eager", fullgraph=True)
    embedding = compiled(images()).last_hidden_state
    output = model(image_embeddings=embedding).pred_masks
    assert torch.allclose(output, expected, atol=1e-4)
    decoder = model.get_base_model().mask_decoder
    torch._dynamo.reset()
    sam = model.get_base_model()
    dense = sam.prompt_encoder(None, None, None, None)[1].expand(2, -1, -1, -1)
    inputs = (embedding, sam.get_image_wide_positional_embeddings().repeat(2, 1, 1, 1), None, dense, False)
    compiled = torch.compile(decoder, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(*inputs)[0], output, atol=1e-4)
    output.mean().backward()


def test_vision_model_without_decoder():
    model = get_peft_model(random_vision_sam(), SamAdapterConfig(scale_factor=4))
    assert model.peft_config["default"].decoder == "frozen"
    perturb(model)
    with torch.no_grad():
        changed = model(pixel_values=images()).last_hidden_state
        assert not torch.equal(changed, random_vision_sam()(images()).last_hidden_state)
    for config in (SamAdapterConfig(decoder="full"), SamDecoderConfig()):
        with pytest.raises(UserError, match="no mask decoder"):
            get_peft_model(random_vision_sam(), config)


def test_mask_token_default_is_the_adapters():
    model = adapted("sam_adapter")
    assert masks(model).shape[2] == 1
    assert masks(model, multimask_output=True).shape[2] == 3
    sam = model.get_base_model()
    assert sam(pixel_values=images()).pred_masks.shape[2] == 1
    with model.disable_adapter():
        assert masks(model).shape[2] == 3
    model = adapted("sam_adapter", multimask_output=True)
    assert masks(model).shape[2] == 3
    model.add_adapter("second", SamAdapterConfig(scale_factor=4))
    model.set_adapter("second")
    assert masks(model).shape[2] == 1
    model.set_adapter("default")
    assert masks(model).shape[2] == 3


def test_mask_token_default_beside_lora_and_after_a_deletion(tmp_path):
    sam = random_sam().eval()
    sam.add_adapter(LoraConfig(target_modules=r".*vision_encoder.*qkv"), "plain")
    sam.add_adapter(SamAdapterConfig(scale_factor=4), "ours")
    for name, channels in (("plain", 3), ("ours", 1)):
        sam.set_adapter(name)
        assert masks(sam).shape[2] == channels
    sam = random_sam().eval()
    sam.add_adapter(SamDecoderConfig(), "a")
    sam.save_pretrained(tmp_path)
    sam.delete_adapter("a")
    sam.load_adapter(str(tmp_path), "a")
    assert masks(sam).shape[2] == 1


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (ConvLoraConfig(), SamAdapterConfig(scale_factor=4), "in which another method has layers already"),
        (L2pConfig(), SamDecoderConfig(), "in which another method has layers already"),
        (
            LoraConfig(target_modules=r".*mask_decoder.*q_proj"),
            SamDecoderConfig(),
            "another method has layers already",
        ),
        (None, ConvLoraConfig(target_modules=["typo"]), "matches no module that this method could adapt"),
        (None, SamAdapterConfig(target_modules=r".*no_such_layers\.\d+"), "matches no module"),
        (None, ConvLoraConfig(target_modules=["lin1"], decoder="frozen"), "Conv-LoRA adapts maps of the encoder"),
        (None, SamDecoderConfig(modules_to_save=["mask_decoder"]), "which the adapter brings along"),
        (
            None,
            SamDecoderConfig(train_no_mask_embed=True, modules_to_save=["prompt_encoder"]),
            "prompt_encoder is in .* which the adapter brings along",
        ),
        (
            None,
            ConvLoraConfig(train_patch_embed=True, decoder="frozen", modules_to_save=["projection"]),
            "projection is in .*patch_embed, which the adapter brings along; leave it out$",
        ),
        (SamAdapterConfig(scale_factor=4), SamAdapterConfig(target_modules=r".*layers\.\d+"), "match both"),
    ],
)
def test_what_would_go_wrong_silently_is_refused(first, second, message):
    sam = random_sam()
    if first is not None:
        sam.add_adapter(first, "first")
    with pytest.raises(UserError, match=message):
        sam.add_adapter(second, "second")


@pytest.mark.parametrize("name", ["high", "model", "sam_adapter_up"])
def test_names_that_peft_would_confuse_are_refused(name):
    model = adapted("sam_adapter")
    with pytest.raises(UserError, match=f"adapter name '{name}'"):
        model.add_adapter(name, CONFIGS["sam_adapter"]())


def test_a_refused_merge_changes_nothing():
    base = random_sam()
    model = perturb(get_peft_model(random_sam(), SamDecoderConfig(decoder="hq", train_patch_embed=True))).eval()
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match="early block"):
            merge()
    with model.disable_adapter():
        assert torch.equal(masks(model), masks(base))


def test_a_merged_model_keeps_the_adapters_input():
    model = get_peft_model(random_sam(), SamDecoderConfig(image_size=128, in_channels=4, train_patch_embed=True))
    perturb(model).eval()
    pixels = torch.randn(2, 4, 128, 128)
    expected = masks(model, pixels)
    merged = model.merge_and_unload()
    assert torch.allclose(masks(merged, pixels, multimask_output=False), expected, rtol=1e-5, atol=1e-6)


def test_an_adapter_that_is_added_beside_a_merged_one_starts_from_the_base():
    model = adapted("decoder")
    model.merge_adapter()
    model.add_adapter("fresh", SamDecoderConfig())
    model.unmerge_adapter()
    model.set_adapter("fresh")
    assert torch.equal(masks(model), masks(random_sam(), multimask_output=False))


def test_registered_feature(tmp_path):
    register_feature("edges", lambda x: x[..., :1, :].expand_as(x) - x, channels=3)
    model = perturb(get_peft_model(random_sam(), SamAdapterConfig(scale_factor=4, features=["edges", "high"])))
    model.save_pretrained(tmp_path)
    assert torch.equal(masks(PeftModel.from_pretrained(random_sam(), tmp_path)), masks(model))
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config["features"] = ["edges", "nobody"]
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="'nobody' is unknown"):
        PeftModel.from_pretrained(random_sam(), tmp_path)
    for name in ("high", "edges", "not-a-name", "keys"):
        with pytest.raises(UserError):
            register_feature(name, lambda x: x)


def test_layers_to_transform_limits_prompts():
    model = get_peft_model(random_sam(), SamAdapterConfig(scale_factor=4, layers_to_transform=[1]))
    tuned = [n for n, _ in model.named_parameters() if "sam_adapter_tune" in n]
    assert tuned and all(".layers.1." in name for name in tuned)
    with pytest.raises(UserError, match="0 to 2"):
        get_peft_model(random_sam(), SamAdapterConfig(layers_to_transform=[1, 3]))


@pytest.mark.parametrize("name", ["layers", "mask_decoder", "attn", "weight", "vision_encoder", "a.b", ""])
def test_adapter_names_that_would_save_nothing_are_refused(name):
    with pytest.raises(UserError, match="adapter name"):
        get_peft_model(random_sam(), SamAdapterConfig(scale_factor=4), adapter_name=name)
    model = adapted("sam_adapter")
    with pytest.raises(UserError, match="adapter name"):
        model.add_adapter(name, SamAdapterConfig(scale_factor=4))
    assert list(model.peft_config) == ["default"]


def test_missing_and_unexpected_keys_raise(method, tmp_path):
    model = adapted(method)
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    dropped = sorted(weights)[-1]
    save_file({k: v for k, v in weights.items() if k != dropped}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="1 missing"):
        PeftModel.from_pretrained(random_sam(), tmp_path)
    save_file(weights | {dropped + "_2": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match="1 unexpected"):
        PeftModel.from_pretrained(random_sam(), tmp_path)


def test_transformers_loader_names_wrong_keys_and_checks_the_base(tmp_path, caplog):
    """`SamModel.load_adapter` calls no hook of ours after injection: its report names the keys."""
    adapted("sam_adapter").save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    dropped = next(key for key in weights if "sam_adapter_up" in key)
    del weights[dropped]
    save_file(
        weights | {"base_model.model.extra.sam_adapter_up.weight": torch.zeros(1)},
        tmp_path / "adapter_model.safetensors",
    )
    sam = random_sam()
    with caplog.at_level("WARNING"):
        from transformers.utils import logging

        logging.enable_propagation()
        sam.load_adapter(str(tmp_path))
        logging.disable_propagation()
    assert "sam_adapter_up" in caplog.text and "MISSING" in caplog.text and "UNEXPECTED" in caplog.text
    with pytest.raises(UserError, match="other weights"):
        random_sam(seed=9).load_adapter(str(tmp_path))


def test_adapter_names_of_a_mixed_batch_are_refused(method):
    with pytest.raises(NotImplementedError, match="adapter_names"):
        adapted(method)(pixel_values=images(), adapter_names=["default", "__base__"])
