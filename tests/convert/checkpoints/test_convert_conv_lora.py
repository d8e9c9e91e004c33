"""AutoGluon's Conv-LoRA checkpoints: exact round trip, sizes from the shapes, and one clear error for each defect."""

import copy
import pickle

import pytest
import torch
from autogluon import QKV, autogluon_state
from official_models import config_of
from peft import AutoPeftModel, PeftModel, get_peft_model_state_dict
from reference_conv_lora import mixture
from safetensors.torch import load_file
from sams import random_sam
from torch import nn

import hf_sam_adapt
from hf_sam_adapt import SamAdaptProcessor, cli, convert_official_checkpoint
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.sam.fingerprint import compute_fingerprint


LAYERS, WIDTH, RANK, EXPERTS = 3, 32, 2, 4


def expected_tensors(state, layers=range(LAYERS), experts=EXPERTS, decoder=True):
    """What the adapter must hold, written down from the name map of the format, not with the converter."""
    expected = {}
    for index in layers:
        old, new = QKV.format(index), f"base_model.model.vision_encoder.layers.{index}.attn.qkv."
        expected[f"{new}lora_A.weight"] = state[f"{old}lora_A"]
        expected[f"{new}lora_B.weight"] = state[f"{old}lora_B"]
        if experts > 1:
            expected[f"{new}lora_experts.w_gate"] = state[f"{old}lora_moe_gating.w_gate"]
            expected[f"{new}lora_experts.w_noise"] = state[f"{old}lora_moe_gating.w_noise"]
        for kind in ("weight", "bias"):
            parts = [state[f"{old}lora_moe_experts.{e}.0.{kind}"] for e in range(experts)]
            expected[f"{new}lora_experts.{kind}"] = torch.stack(parts)
    for name, value in state.items():
        inner = name.removeprefix("model.model.mask_decoder.")
        if decoder and inner != name and not inner.startswith("iou_prediction_head"):
            expected[f"base_model.model.mask_decoder.lora_weights.{inner}"] = value
    return expected


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_converted_adapter_loads_with_the_checkpoints_tensors(sam, base, write, out):
    state = autogluon_state(sam)
    done = convert_official_checkpoint("conv-lora", write({"state_dict": state}), out, base=base)
    names = ["adapter_config.json", "adapter_model.safetensors", "preprocessor_config.json"]
    assert done.folder == out and sorted(path.name for path in out.iterdir()) == names
    expected = expected_tensors(state)
    assert_equal(load_file(out / "adapter_model.safetensors"), expected)
    for loaded in (PeftModel.from_pretrained(random_sam(), out), AutoPeftModel.from_pretrained(out)):
        assert_equal(get_peft_model_state_dict(loaded, save_embedding_layers=False), expected)


def test_what_the_config_says(sam, base, write, out):
    state = autogluon_state(sam)
    convert_official_checkpoint("conv-lora", write({"state_dict": state}), out, base=base)
    config = config_of(out)
    said = {
        "peft_type": "CONV_LORA",
        "r": RANK,
        "lora_alpha": 32,
        "num_experts": EXPERTS,
        "router": "faithful",
        "eval_routing": "argmax",
        "decoder": "full",
        "num_mask_tokens": 1,
        "layers_to_transform": None,
        "base_model_name_or_path": base,
        "base_fingerprint": compute_fingerprint(sam),
        "inference_mode": True,
    }
    assert {key: config[key] for key in said} == said
    processor = SamAdaptProcessor.from_pretrained(out)
    assert (processor.image_size, processor.patch_size, processor.resize) == (64, 8, "squash")


def test_the_packages_own_loading_finds_the_base_and_computes(sam, base, write, out):
    convert_official_checkpoint("conv-lora", write({"state_dict": autogluon_state(sam)}), out, base=base)
    loaded = load_adapted(str(out))
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        adapted = loaded.model(pixels).pred_masks
        with loaded.model.disable_adapter():
            plain = loaded.model(pixels, multimask_output=False).pred_masks
        zero_shot = sam(pixels, multimask_output=False).pred_masks
    assert adapted.shape == plain.shape == (2, 1, 1, 32, 32)
    assert (plain - zero_shot).norm() <= 1e-6 * zero_shot.norm()
    assert not torch.allclose(adapted, plain, atol=1e-2)


class OfficialLinear(nn.Module):
    """One adapted Linear, from the checkpoint's own tensors."""

    def __init__(self, linear, state, prefix, alpha=32):
        super().__init__()
        self.linear, self.state, self.prefix, self.alpha = linear, state, prefix, alpha

    def forward(self, x):
        own = {key.removeprefix(self.prefix): value for key, value in self.state.items() if self.prefix in key}
        z = x @ own["lora_A"].T  # (N, H, W, r)
        index = (z.mean((1, 2)) @ own["lora_moe_gating.w_gate"]).argmax(1)
        experts = [f"lora_moe_experts.{e}.0." for e in range(EXPERTS)]
        weight, bias = (torch.stack([own[expert + kind] for expert in experts]) for kind in ("weight", "bias"))
        return (
            self.linear(x) + self.alpha / len(own["lora_A"]) * (z + mixture(z, index, weight, bias)) @ own["lora_B"].T
        )


def official_model(sam, state):
    """The published network: adapted `qkv`, and a decoder with one mask token and one hyper-network MLP."""
    model = copy.deepcopy(sam)
    for index, layer in enumerate(model.vision_encoder.layers):
        layer.attn.qkv = OfficialLinear(layer.attn.qkv, state, QKV.format(index))
    decoder = model.mask_decoder
    decoder.num_mask_tokens = 1
    decoder.mask_tokens = nn.Embedding(1, decoder.hidden_size)
    decoder.output_hypernetworks_mlps = decoder.output_hypernetworks_mlps[:1]
    prefix = "model.model.mask_decoder."
    decoder.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    return model


def test_a_converted_adapter_computes_the_published_networks_masks(sam, base, write, out):
    state = autogluon_state(sam, scale=0.2)
    convert_official_checkpoint("conv-lora", write({"state_dict": state}), out, base=base)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        official = official_model(sam, state)(pixels, multimask_output=False)
        converted = load_adapted(str(out)).model(pixels)
        plain = sam(pixels, multimask_output=False)
    spread = official.pred_masks.std()
    torch.testing.assert_close(converted.pred_masks, official.pred_masks, atol=1e-4 * spread.item(), rtol=0)
    torch.testing.assert_close(converted.iou_scores, official.iou_scores, atol=1e-4, rtol=0)
    assert (official.pred_masks - plain.pred_masks).abs().mean() > 0.1 * spread


@pytest.mark.parametrize("legacy", [False, True])
def test_without_base_frozen_weights_are_counted_and_the_fingerprint_is_null(sam, write, out, legacy):
    state = autogluon_state(sam)
    path = write(state, _use_new_zipfile_serialization=not legacy)  # a bare state dict, and one without memory map
    done = convert_official_checkpoint("conv-lora", path, out)
    trained = [name for name in state if "lora_" in name or ("mask_decoder" in name and "iou_pred" not in name)]
    assert done.notes[-1].startswith(f"{len(state) - len(trained)} frozen weights skipped")
    config = config_of(out)
    assert config["base_fingerprint"] is None and config["base_model_name_or_path"] is None
    assert_equal(load_file(out / "adapter_model.safetensors"), expected_tensors(state))
    assert SamAdaptProcessor.from_pretrained(out).image_size == 64
    with pytest.raises(UserError, match="does not name its base model"):
        load_adapted(str(out))


@pytest.mark.parametrize("named", [True, False])
def test_an_encoder_alone(sam, base, write, out, named):
    state = {k: v for k, v in autogluon_state(sam).items() if named or "mask_decoder" not in k}
    done = convert_official_checkpoint("conv-lora", write(state), out, decoder="none", base=base)
    config = config_of(out)
    assert config["decoder"] == "frozen" and config["num_mask_tokens"] is None
    expected = expected_tensors(state, decoder=False)
    assert_equal(load_file(out / "adapter_model.safetensors"), expected)
    loaded = PeftModel.from_pretrained(random_sam(), out)
    assert_equal(get_peft_model_state_dict(loaded, save_embedding_layers=False), expected)
    dropped = sum("mask_decoder" in name and "iou_prediction_head" not in name for name in state)
    assert done.notes[0].startswith(f"{dropped} weights of the mask decoder left out")


@pytest.mark.parametrize("layers", [[1], [0, 2], [0, 1]])
@pytest.mark.parametrize("experts", [1, 3])
def test_holes_ranks_experts_and_alpha(sam, base, write, out, layers, experts):
    state = autogluon_state(sam, rank=5, experts=experts, layers=layers)
    convert_official_checkpoint("conv-lora", write(state), out, base=base, lora_alpha=7)
    config = config_of(out)
    assert (config["r"], config["num_experts"], config["lora_alpha"]) == (5, experts, 7)
    assert config["layers_to_transform"] == layers
    expected = expected_tensors(state, layers, experts)
    loaded = PeftModel.from_pretrained(random_sam(), out)
    assert_equal(get_peft_model_state_dict(loaded, save_embedding_layers=False), expected)


def test_a_half_precision_checkpoint_fits_its_base(sam, base, write, out):
    state = {name: value.half() for name, value in autogluon_state(sam).items()}
    convert_official_checkpoint("conv-lora", write(state), out, base=base)
    assert_equal(load_file(out / "adapter_model.safetensors"), expected_tensors(state))


def test_trained_weights_alone_take_the_input_size_of_the_base_or_of_the_caller(sam, base, write, out, tmp_path):
    state = {k: v for k, v in autogluon_state(sam).items() if "lora_" in k or "mask_decoder" in k}
    path = write(state)
    convert_official_checkpoint("conv-lora", path, out, image_size=512)
    assert SamAdaptProcessor.from_pretrained(out).image_size == 512
    convert_official_checkpoint("conv-lora", path, tmp_path / "other")
    assert SamAdaptProcessor.from_pretrained(tmp_path / "other").image_size == 1024
    convert_official_checkpoint("conv-lora", path, tmp_path / "third", base=base)
    assert SamAdaptProcessor.from_pretrained(tmp_path / "third").image_size == 64
    with pytest.raises(UserError, match=r"image_size: .* at 64, not at 512"):
        convert_official_checkpoint("conv-lora", path, tmp_path / "fourth", base=base, image_size=512)


def without(*parts):
    return lambda state: {k: v for k, v in state.items() if not any(part in k for part in parts)}


def changed(name, change):
    return lambda state: state | {name: change(state.get(name))}


QKV0, QKV1, TOKENS = QKV.format(0), QKV.format(1), "model.model.mask_decoder.mask_tokens.weight"
CLASS_HEAD = "model.model.mask_decoder.output_classifier_mlps."
IOU_BIAS = "model.model.mask_decoder.iou_prediction_head.proj_out.bias"
NECK = "model.model.vision_encoder.neck.conv2.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("mask_decoder"), "has no mask_decoder weights; --decoder none"),
        (
            without("mask_decoder.upscale"),
            "6 weights missing: mask_decoder.*upscale_conv1.*--decoder none",
        ),
        (changed(TOKENS, lambda value: value.repeat(3, 1)), "has 3 mask tokens and no class head .*; --decoder none"),
        (changed(f"{CLASS_HEAD}bias", lambda _: torch.zeros(4)), "has no whole class head .*output_classifier_mlps"),
        (
            changed(f"{CLASS_HEAD}weight", lambda _: torch.zeros(4, 16)),
            "weights missing: mask_decoder.*classifier.bias",
        ),
        (
            changed(TOKENS, lambda value: value[:, :8]),
            "model.model.mask_decoder.mask_tokens.weight is .*, this SAM takes",
        ),
        (without("lora_"), "has no Conv-LoRA weights"),
        (without("lora_moe_gating"), "layer 0 misses 2 Conv-LoRA weights: lora_moe_gating.w_gate"),
        (without("layers.1.attn.qkv.lora_B"), "layer 1 misses 1 Conv-LoRA weights: lora_B"),
        (without("layers.1.attn.qkv.lora_A"), "layer 1 has no complete"),
        (without("layers.2.attn.qkv.lora_moe_experts.1."), "layer 2 misses 2 .*moe_experts.1.0.bias"),
        (
            without("layers.2.attn.qkv.lora_moe_experts.3."),
            "4 experts in layers 0, 1; .*3 experts in layers 2",
        ),
        (changed(f"{QKV1}lora_A", lambda value: torch.zeros(3, WIDTH)), "differ in size: r=2.*; r=3, .*in layers 1"),
        (changed(f"{QKV1}lora_B", lambda value: value.T), "lora_B of layer 1 is .*expected"),
        (changed(f"{QKV0}lora_extra", lambda _: torch.zeros(1)), "layer 0 has unknown 1 .*lora_extra"),
        (changed("model.model.text_encoder.weight", lambda _: torch.zeros(1)), "1 weights that are neither.*text_enc"),
        (
            changed(NECK, lambda value: value + 1),
            r"1 of \d+ frozen .*vision_encoder.neck.conv2.weight \(differs",
        ),
        (changed(NECK, lambda value: value * float("nan")), "1 of .*neck.conv2.weight"),
        (changed(NECK, lambda value: value[:1]), r"neck.conv2.weight \(\(1, 16, 3, 3\) against"),
        (
            changed("model.model.mask_decoder.iou_prediction_head.proj_out.bias", lambda value: value + 1),
            "1 of .*iou_",
        ),
        (
            changed("model.model.vision_encoder.layers.9.norm1.weight", lambda _: torch.zeros(WIDTH)),
            "neither SAM's nor Conv-LoRA's: model.model.vision_encoder.layers.9.norm1.weight",
        ),
        (
            changed("model.model.vision_encoder.layers.9.layer_norm1.weight", lambda _: torch.zeros(WIDTH)),
            "vision_encoder.layers.9.layer_norm1.weight .the base has none",
        ),
        (lambda state: {}, "holds no state dict"),
        (lambda state: {"weights": [1, 2]}, "holds no state dict"),
        (lambda state: torch.zeros(3), "holds no state dict"),
    ],
)
def test_each_defect_of_a_checkpoint_is_one_error(sam, base, write, out, change, message):
    path = write({"state_dict": change(autogluon_state(sam))})
    with pytest.raises(UserError, match=message) as raised:
        convert_official_checkpoint("conv-lora", path, out, base=base)
    assert "\n" not in str(raised.value) and not out.exists()


def test_another_base_is_refused(sam, write, out, tmp_path):
    random_sam(seed=5).save_pretrained(tmp_path / "other")
    path = write(autogluon_state(sam))
    with pytest.raises(UserError, match=r"(\d+) of \1 frozen weights .*other"):
        convert_official_checkpoint("conv-lora", path, out, base=str(tmp_path / "other"))


class Payload:
    def __reduce__(self):
        return (print, ("run",))


def test_a_checkpoint_that_needs_code_is_refused_and_not_run(sam, write, out, capsys):
    path = write({"state_dict": autogluon_state(sam), "hyper_parameters": Payload()})
    with pytest.raises(UserError, match=r"holds more than tensors \(.*print.*could run code") as raised:
        convert_official_checkpoint("conv-lora", path, out)
    assert "\n" not in str(raised.value) and capsys.readouterr().out == "" and not out.exists()


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 torn", pickle.dumps([1])])
def test_a_file_that_is_no_checkpoint(tmp_path, out, content):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is not a PyTorch file|holds no state dict") as raised:
        convert_official_checkpoint("conv-lora", path, out)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_damaged_checkpoint(sam, write, out, zipped):
    path = write({"state_dict": {"a": torch.randn(50)}}, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for end in range(0, len(whole), 37):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"is not a PyTorch file, or a damaged one|holds more than tensors"):
            convert_official_checkpoint("conv-lora", path, out)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "sam"}, "format: 'sam' is unknown; use one of sam-adapter, conv-lora, cwsam, cosam"),
        ({"domains": ["a"]}, "domains: only a cosam folder takes it"),
        ({"decoder": "hq"}, "decoder: 'hq' is unknown"),
        ({"checkpoint_path": "nowhere.ckpt"}, "nowhere.ckpt is not a file"),
        ({"image_size": 128}, "image_size: the checkpoint was trained at 64, not at 128"),
        ({"base": "nowhere/at/all"}, "nowhere/at/all"),
    ],
)
def test_wrong_arguments(sam, write, out, options, message):
    arguments = {"format": "conv-lora", "checkpoint_path": write(autogluon_state(sam)), "out_folder": out} | options
    with pytest.raises(UserError, match=message):
        convert_official_checkpoint(**arguments)
    assert not out.exists()


def test_what_stands_in_the_folder_is_kept(sam, write, out):
    path = write(autogluon_state(sam))
    out.mkdir()
    convert_official_checkpoint("conv-lora", path, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(UserError, match="not an empty folder"):
        convert_official_checkpoint("conv-lora", path, out, lora_alpha=1)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_a_write_that_fails_leaves_nothing(sam, write, out, monkeypatch):
    path = write(autogluon_state(sam))

    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(SamAdaptProcessor, "save_pretrained", full_disk)
    with pytest.raises(OSError, match="no space"):
        convert_official_checkpoint("conv-lora", path, out)
    assert [file.name for file in out.parent.iterdir()] == [path.name]


def test_the_command(sam, base, write, out, capsys):
    state = autogluon_state(sam)
    path = str(write({"state_dict": state}))
    argv = ["convert", "--from", "conv-lora", path, "--out", str(out), "--base", base, "--lora_alpha", "16"]
    assert cli.main([*argv, "--decoder", "none"]) == 0
    shown = capsys.readouterr().out
    assert "left out, as asked" in shown and f"compared with {base}" in shown and f"Saved to {out}." in shown
    assert config_of(out)["lora_alpha"] == 16
    assert_equal(load_file(out / "adapter_model.safetensors"), expected_tensors(state, decoder=False))
    assert cli.main(argv) == 2 and "not an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "convert needs the checkpoint's file"),
        (["x.ckpt"], "convert needs --from"),
        (["x.ckpt", "--from=conv-lora"], "convert needs --out"),
        (["--from", "nothing", "x.ckpt"], "'nothing' is not one of sam-adapter, conv-lora"),
        (["--from", "conv-lora", "x.ckpt", "--out", "adapter"], "x.ckpt is not a file"),
        (["--from", "conv-lora", "x.ckpt", "--decoder", "some"], "decoder: 'some' is not one of full, none"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", *argv]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_it_is_part_of_the_public_names():
    assert "convert_official_checkpoint" in dir(hf_sam_adapt)
