"""Checkpoints of segment-anything: its published names, and the way back."""

import pytest
import torch
from peft import get_peft_model
from sams import random_sam, random_sam2
from transformers import SamConfig, SamModel

from hf_sam_adapt import SamDecoderConfig
from hf_sam_adapt.cli import main
from hf_sam_adapt.convert.checkpoints.segment_anything import meta_state, registry_name
from hf_sam_adapt.convert.export import export
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_base


def both(*names):
    return [f"{name}.{leaf}" for name in names for leaf in ("weight", "bias")]


def published_names():
    """The keys of sam_vit_b_01ec64.pth, from the modules' attributes in segment-anything."""
    names = ["image_encoder.pos_embed", *both("image_encoder.patch_embed.proj")]
    for block in (f"image_encoder.blocks.{index}" for index in range(12)):
        names += both(
            *(f"{block}.{name}" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.lin1", "mlp.lin2"))
        )
        names += [f"{block}.attn.rel_pos_h", f"{block}.attn.rel_pos_w"]
    names += ["image_encoder.neck.0.weight", "image_encoder.neck.2.weight"]
    names += both("image_encoder.neck.1", "image_encoder.neck.3")
    names += ["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    names += [f"prompt_encoder.point_embeddings.{index}.weight" for index in range(4)]
    names += ["prompt_encoder.not_a_point_embed.weight", "prompt_encoder.no_mask_embed.weight"]
    names += both(*(f"prompt_encoder.mask_downscaling.{index}" for index in (0, 1, 3, 4, 6)))
    transformer = "mask_decoder.transformer"
    attentions = [f"{transformer}.final_attn_token_to_image"]
    for layer in (f"{transformer}.layers.{index}" for index in range(2)):
        kinds = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
        attentions += [f"{layer}.{kind}" for kind in kinds]
        names += both(*(f"{layer}.{name}" for name in ("norm1", "norm2", "norm3", "norm4", "mlp.lin1", "mlp.lin2")))
    names += both(*(f"{one}.{name}_proj" for one in attentions for name in ("q", "k", "v", "out")))
    names += both(f"{transformer}.norm_final_attn")
    names += ["mask_decoder.iou_token.weight", "mask_decoder.mask_tokens.weight"]
    names += both(*(f"mask_decoder.output_upscaling.{index}" for index in (0, 1, 3)))
    heads = [*(f"mask_decoder.output_hypernetworks_mlps.{i}" for i in range(4)), "mask_decoder.iou_prediction_head"]
    return names + both(*(f"{head}.layers.{index}" for head in heads for index in range(3)))


def test_vit_b_has_the_published_names():
    with torch.device("meta"):
        sam = SamModel(SamConfig())
    assert sorted(meta_state(sam)) == sorted(published_names()) and len(published_names()) == 314
    assert registry_name(sam) == "vit_b" and registry_name(random_sam()) is None


@pytest.fixture
def adapted(sam_folder, tmp_path):
    """A `decoder` adapter, and the logits of the model with it."""
    base, processor = load_base(sam_folder)
    model = get_peft_model(base, SamDecoderConfig(init_weights=False)).eval()
    model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model


def test_there_and_back_bit_for_bit(adapted, sam_folder, tmp_path, capsys):
    adapter, model = adapted
    export(str(adapter), tmp_path / "pth", format="sam-pth", progress=False)
    state = torch.load(tmp_path / "pth/sam_model.pth", weights_only=True)
    argv = ["convert", "--from", "sam-pth", str(tmp_path / "pth/sam_model.pth"), "--base", sam_folder]
    assert main([*argv, "--out", str(tmp_path / "back"), "--image_size", "512"]) == 2
    assert "not at 512" in capsys.readouterr().err and not (tmp_path / "back").exists()
    assert main([*argv, "--out", str(tmp_path / "back")]) == 0
    assert "Next: hf-sam-adapt train --model" in capsys.readouterr().out
    back, merged = load_base(str(tmp_path / "back"))[0], model.merge_and_unload()
    for name, value in merged.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    assert all(torch.equal(value, state[name]) for name, value in meta_state(back).items())


@pytest.mark.parametrize("harm", ["missing", "unknown", "shape", "nan"])
def test_a_checkpoint_of_another_sam_is_refused(harm, adapted, sam_folder, tmp_path):
    export(str(adapted[0]), tmp_path / "pth", format="sam-pth", progress=False)
    file = tmp_path / "pth/sam_model.pth"
    state = torch.load(file, weights_only=True)
    name = "mask_decoder.iou_token.weight"
    value = state.pop(name)
    state |= {
        "missing": {},
        "unknown": {name: value, "mask_decoder.more": value},
        "shape": {name: value[:, 1:]},
        "nan": {name: value * torch.nan},
    }[harm]
    torch.save(state, file)
    assert (
        main(["convert", "--from", "sam-pth", str(file), "--base", sam_folder, "--out", str(tmp_path / "back")]) == 2
    )
    assert not (tmp_path / "back").exists()


def test_a_small_sam_needs_its_sizes(adapted, tmp_path):
    from hf_sam_adapt import convert_official_checkpoint

    export(str(adapted[0]), tmp_path / "pth", format="sam-pth", progress=False)
    with pytest.raises(UserError, match="is no SAM of segment-anything's registry; name its sizes by --base"):
        convert_official_checkpoint("sam-pth", tmp_path / "pth/sam_model.pth", tmp_path / "back")


def test_another_family_is_refused_by_name(tmp_path):
    random_sam2().save_pretrained(tmp_path / "sam2")
    message = "format: SAM 2 models cannot be written as sam-pth, only SAM ones; use --format onnx or torch"
    with pytest.raises(UserError, match=message):
        export(str(tmp_path / "sam2"), tmp_path / "out", format="sam-pth", progress=False)
    assert not (tmp_path / "out").exists()
