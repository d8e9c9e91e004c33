"""What a checkpoint does not show is not claimed: bases that nothing was compared with, NaN, fields in no tensor."""

import pytest
import torch
from autogluon import autogluon_state
from official_models import config_of, images
from official_sam import Draw, classifier_state, cwsam_state, hq_state, sam_adapter_state
from peft import PeftModel
from sams import random_sam

from hf_sam_adapt import ModaModel, convert_official_checkpoint
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.fingerprint import compute_fingerprint


def l2p_state(sam):
    draw, channels = Draw(5), sam.config.mask_decoder_config.hidden_size
    return {"prompt": draw(6, 3, channels), "prompt_key": draw(6, channels)}


WHOLE = {
    "conv-lora": autogluon_state,
    "sam-adapter": sam_adapter_state,
    "cwsam": cwsam_state,
    "cosam": hq_state,
    "l2p": l2p_state,
}
TRAINED = {
    "conv-lora": ("lora_", "mask_decoder"),
    "sam-adapter": ("prompt_generator", "mask_decoder", "pe_layer", "no_mask_embed"),
    "cwsam": ("prompt_generator", "Adapter", "mask_decoder", "pe_layer", "no_mask_embed"),
    "cosam": ("hf_", "compress_vit_feat", "embedding_"),
    "l2p": ("prompt",),
}


def trained_alone(sam, kind):
    state = {name: v for name, v in WHOLE[kind](sam).items() if any(part in name for part in TRAINED[kind])}
    return {name: value for name, value in state.items() if "iou_prediction_head" not in name or kind != "conv-lora"}


def convert(kind, path, out, **options):
    return convert_official_checkpoint("cosam" if kind == "l2p" else kind, path, out, **options)


def other_sam(tmp_path):
    random_sam(seed=5).save_pretrained(tmp_path / "other")
    return str(tmp_path / "other")


@pytest.mark.parametrize("kind", WHOLE)
def test_a_base_that_nothing_was_compared_with(sam, write, out, tmp_path, kind):
    other = other_sam(tmp_path)
    done = convert(kind, write(trained_alone(sam, kind)), out, base=other)
    assert not any("equal" in note for note in done.notes)
    assert f"Nothing shows that the checkpoint was trained on {other}" in done.notes[-1]
    config = config_of(out)
    assert config["base_fingerprint"] is None and config["base_model_name_or_path"] == other
    with pytest.warns(UserWarning, match="no fingerprint"):
        PeftModel.from_pretrained(random_sam(), out)


@pytest.mark.parametrize(
    "kept", ["iou_prediction_head", "shared_image_embedding", "prompt_encoder", "no_mask_embed", "not_a_point"]
)
def test_weights_that_fine_tuned_sams_share_tell_nothing(sam, base, write, out, kept):
    whole = autogluon_state(sam)
    state = trained_alone(sam, "conv-lora") | {name: value for name, value in whole.items() if kept in name}
    done = convert("conv-lora", write(state), out, base=base)
    assert "frozen weights tells one SAM from another" in done.notes[-1]
    assert config_of(out)["base_fingerprint"] is None


@pytest.mark.parametrize("kind", ["conv-lora", "sam-adapter", "cwsam", "cosam"])
def test_a_base_that_was_compared(sam, base, write, out, kind):
    done = convert(kind, write(WHOLE[kind](sam)), out, base=base)
    assert f"frozen weights compared with {base}: equal within half precision." in done.notes[-1]
    assert config_of(out)["base_fingerprint"] == compute_fingerprint(sam)


def test_a_pool_without_base_stores_none_after_loading_either(sam, out, tmp_path):
    folder = tmp_path / "hq"
    folder.mkdir()
    for seed, name in enumerate(("BSData", "CAMO")):
        torch.save(hq_state(sam, seed), folder / f"adapter_{name}.pth")
    torch.save(classifier_state(sam, 2), folder / "task_classifier_after_1th_task_training.pth")
    convert_official_checkpoint("cosam", folder, out, image_size=64)
    with pytest.warns(UserWarning, match="no fingerprint"):
        pool = ModaModel.from_pretrained(random_sam(seed=5), str(out))
    pool.save_pretrained(tmp_path / "again")
    assert config_of(tmp_path / "again")["base_fingerprint"] is None
    assert config_of(tmp_path / "again" / "CAMO")["base_fingerprint"] is None


def test_a_pool_of_which_one_file_tells_nothing(sam, base, out, tmp_path):
    folder = tmp_path / "hq"
    folder.mkdir()
    torch.save(hq_state(sam), folder / "adapter_BSData.pth")
    torch.save(trained_alone(sam, "cosam"), folder / "adapter_CAMO.pth")
    torch.save(classifier_state(sam, 2), folder / "task_classifier_after_1th_task_training.pth")
    done = convert_official_checkpoint("cosam", folder, out, base=base)
    assert any(note.startswith("BSData: ") and "equal within half precision" in note for note in done.notes)
    assert any(note.startswith("CAMO: Nothing shows that the checkpoint was trained on") for note in done.notes)
    assert sum("global_attention=True" in note for note in done.notes) == 1
    stored = [config_of(folder)["base_fingerprint"] for folder in (out, out / "BSData", out / "CAMO")]
    assert stored == [None, compute_fingerprint(sam), None]


def spoiled(value, state, name):
    broken = state[name].clone()
    broken.view(-1)[0] = value
    return state | {name: broken}


SPOILED = {
    "conv-lora": "model.model.vision_encoder.layers.1.attn.qkv.lora_moe_experts.2.0.weight",
    "sam-adapter": "image_encoder.prompt_generator.lightweight_mlp_2.0.bias",
    "cwsam": "mask_decoder.cls_upscaling.3.weight",
    "cosam": "embedding_encoder.3.bias",
    "l2p": "prompt_key",
}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("kind", WHOLE)
def test_an_adapter_that_is_not_finite(sam, base, write, out, kind, value, named):
    path = write(spoiled(value, WHOLE[kind](sam), SPOILED[kind]))
    with pytest.raises(UserError, match=r"1 of the adapter's \d+ tensors hold NaN, infinity") as raised:
        convert(kind, path, out, base=base if named else None)
    # Stacked experts have no name of their own in the file.
    assert "\n" not in str(raised.value) and SPOILED[kind].split(".lora_")[0][-20:] in str(raised.value)
    assert not out.exists()


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_an_adapter_of_no_floating_point_numbers(sam, write, out, dtype):
    state = sam_adapter_state(sam)
    name = "image_encoder.prompt_generator.shared_mlp.bias"
    with pytest.raises(UserError, match=r"no floating-point numbers, the first is image_encoder\.prompt_generator"):
        convert("sam-adapter", write(state | {name: state[name].to(dtype)}), out)


@pytest.mark.parametrize("name", ["cls_token", "layers.0.weight", "layers.0.bias"])
def test_a_router_that_is_not_finite(sam, out, tmp_path, name):
    folder = tmp_path / "hq"
    folder.mkdir()
    for domain in ("BSData", "CAMO"):
        torch.save(hq_state(sam), folder / f"adapter_{domain}.pth")
    state = spoiled(float("nan"), classifier_state(sam, 2), name)
    torch.save(state, folder / "task_classifier_after_1th_task_training.pth")
    with pytest.raises(UserError, match=f"NaN.*the first is {name}"):
        convert_official_checkpoint("cosam", folder, out)
    assert not out.exists()


UNTOLD = {
    "conv-lora": "lora_alpha=32, top_k=1, eval_routing=argmax",
    "sam-adapter": "features=['embedding', 'high'], frequency_rate=0.25",
    "cwsam": "features=['embedding', 'low'], frequency_rate=0.25, use_prompts=True, adapter_scale=0.5",
    "cosam": "global_attention=True, early_layer=0",
    "l2p": "global_attention=True, top_k=5",
}


@pytest.mark.parametrize("kind", UNTOLD)
def test_what_no_tensor_tells_is_said(sam, base, write, out, kind):
    done = convert(kind, write(WHOLE[kind](sam)), out, base=base)
    (note,) = [note for note in done.notes if note.startswith("In no tensor, so as published: ")]
    assert UNTOLD[kind] in note and "--method_args" in note


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("conv-lora", "lora_alpha", 8),
        ("conv-lora", "eval_routing", "uniform"),
        ("sam-adapter", "frequency_rate", 0.0625),
        ("cwsam", "adapter_scale", 1.0),
        ("cwsam", "adapter_act", "relu"),
        ("cosam", "global_attention", False),
        ("cosam", "early_layer", 1),
        ("l2p", "top_k", 3),
    ],
)
def test_who_knows_better_says_so(sam, base, write, out, kind, field, value):
    done = convert(kind, write(WHOLE[kind](sam)), out, base=base, method_args={field: value})
    assert config_of(out)[field] == value and not any(f"{field}=" in note for note in done.notes)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("conv-lora", {"method_args": {"r": 4}}, "method_args.r: of conv-lora, use lora_alpha, top_k"),
        ("sam-adapter", {"method_args": {"use_prompts": False}}, "method_args.use_prompts: of sam-adapter"),
        ("cosam", {"method_args": {"top_k": 2}}, "method_args.top_k: an HQ decoder has none; use global_attention"),
        ("l2p", {"method_args": {"early_layer": 2}}, "method_args.early_layer: a prompt pool has none"),
        ("conv-lora", {"method_args": {"lora_alpha": 1}, "lora_alpha": 2}, "lora_alpha: given twice"),
        ("cosam", {"classes": ["a"]}, "classes: only conv-lora or cwsam takes it"),
        ("conv-lora", {"classes": ["a"]}, "classes: .* segments one class"),
        ("cwsam", {"classes": ["a"]}, "classes: 1 names for 3 classes"),
        ("cosam", {"classifier": "x.pth"}, "classifier: only a cosam folder takes it"),
    ],
)
def test_wrong_arguments(sam, write, out, kind, options, message):
    with pytest.raises(UserError, match=message) as raised:
        convert(kind, write(WHOLE[kind](sam)), out, **options)
    assert "\n" not in str(raised.value) and not out.exists()


def test_an_input_size_that_nothing_tells_is_said(sam, write, out, tmp_path):
    path = write(trained_alone(sam, "sam-adapter"))
    assert any("its input size: 1024 pixels" in note for note in convert("sam-adapter", path, out).notes)
    done = convert("sam-adapter", path, tmp_path / "second", image_size=512)
    assert not any("input size" in note for note in done.notes)


def test_the_adapter_computes_what_was_said(sam, base, write, out):
    """A field that no tensor tells changes the masks, so the note is not idle."""
    path = write(cwsam_state(sam))
    convert("cwsam", path, out, base=base)
    convert("cwsam", path, out.parent / "relu", base=base, method_args={"adapter_act": "relu"})
    masks = [
        PeftModel.from_pretrained(random_sam(), folder).eval()(pixel_values=images()).pred_masks
        for folder in (out, out.parent / "relu")
    ]
    assert (masks[0] - masks[1]).abs().max() > 1e-3
