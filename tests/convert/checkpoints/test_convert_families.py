"""Checkpoints of SAM2-Adapter and SAM-HQ: the official values, strictness, and where the adapters load."""

import json
import re

import official_sam2
import pytest
import torch
from official_sam import official_name
from peft import AutoPeftModel, PeftModel
from sams import random_sam, random_sam2, random_sam_hq
from transformers import SamHQModel

from hf_sam_adapt import SamAdaptProcessor, convert_official_checkpoint
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.sam.families import SAM_HQ
from hf_sam_adapt.tuners.common.hq import HQ_MODULES


SIDE = 128


@pytest.fixture
def sam2():
    return random_sam2()


@pytest.fixture
def base2(sam2, tmp_path):
    sam2.save_pretrained(tmp_path / "sam2")
    return str(tmp_path / "sam2")


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


def official(sam, state, x):
    heads = sam.config.mask_decoder_config.num_attention_heads
    return official_sam2.masks(state, sam.config.vision_config.backbone_config, x, heads)


def close(found: torch.Tensor, expected: torch.Tensor, limit: float = 1e-5) -> bool:
    assert expected.std() > 1e-3
    return bool((found - expected).abs().max() < limit * expected.abs().max())


@torch.no_grad()
def test_sam2_adapter_computes_the_official_embedding_and_mask(sam2, base2, write, out):
    state, x = official_sam2.official_state(sam2), images()
    done = convert_official_checkpoint("sam2-adapter", write(state), out, base=base2)
    model = load_adapted(str(out)).model.get_base_model()
    config = sam2.config.vision_config.backbone_config
    for image in x:
        levels = model.vision_encoder(image[None]).fpn_hidden_states[:3]
        for found, expected in zip(levels, official_sam2.embeddings(state, config, image), strict=True):
            assert close(found[0], expected)
        assert not close(levels[0], sam2.vision_encoder(image[None]).fpn_hidden_states[0], 1e-2)
    alone = torch.cat([official(sam2, state, image[None]) for image in x])
    found = model(pixel_values=x).pred_masks
    assert found.shape == (3, 1, 1, 32, 32)
    assert close(found[:, 0, 0], alone, 1e-4)
    # The official batch gives every image the finer maps of the last one.
    together = official(sam2, state, x)
    assert close(together[2], alone[2]) and not close(together[0], alone[0], 1e-2)
    for other in (AutoPeftModel.from_pretrained(out), PeftModel.from_pretrained(sam2, out)):
        assert close(other.eval()(pixel_values=x).pred_masks, found, 1e-6)
    said = {"faithful": True, "embedding_layout": "token", "scale_factor": 2, "decoder": "full", "num_mask_tokens": 2}
    config = json.loads((out / "adapter_config.json").read_text())
    assert {key: config[key] for key in said} == said
    assert config["auto_mapping"]["base_model_class"] == "Sam2Model"
    processor = SamAdaptProcessor.from_pretrained(out)
    assert (processor.image_size, processor.resize, processor.image_mean) == (SIDE, "squash", [0.5] * 3)
    left_out = [note for note in done.notes if "left out" in note]
    assert [note.split(" ")[0] for note in left_out] == ["4", "8", "6", "8"]


@torch.no_grad()
def test_a_prompt_counts_although_no_prompt_is_no_token(sam2, base2, write, out):
    convert_official_checkpoint("sam2-adapter", write(official_sam2.official_state(sam2)), out, base=base2)
    model, x = load_adapted(str(out)).model, images(1)
    plain = model(pixel_values=x).pred_masks
    for prompt in (
        {"input_points": torch.tensor([[[[30.0, 40.0]]]])},
        {"input_boxes": torch.tensor([[[9.0, 9, 80, 60]]])},
    ):
        assert not close(model(pixel_values=x, **prompt).pred_masks, plain, 1e-3)


@torch.no_grad()
def test_sam2_adapter_without_its_decoder(sam2, base2, write, out):
    state = official_sam2.official_state(sam2)
    convert_official_checkpoint("sam2-adapter", write(state), out, base=base2, decoder="none")
    config = json.loads((out / "adapter_config.json").read_text())
    assert config["decoder"] == "frozen"
    levels = load_adapted(str(out)).model.get_base_model().vision_encoder(images(1)).fpn_hidden_states
    expected = official_sam2.embeddings(state, sam2.config.vision_config.backbone_config, images(1)[0])
    assert close(levels[2][0], expected[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("image_encoder.trunk.prompt_generator.shared_mlp3.weight"), "no SAM2-Adapter weights for 4"),
        (
            lambda s: s.pop("mask_decoder.conv_s0.weight"),
            "1 weights missing: mask_decoder.sam_adapter_weights.conv_s0",
        ),
        (lambda s: s.pop("no_mask_embed.weight"), "no mask_decoder weights"),
        (lambda s: s.update({"extra.weight": torch.ones(2)}), "neither SAM's nor SAM2-Adapter's: extra.weight"),
        (lambda s: s["image_encoder.trunk.blocks.1.attn.qkv.weight"].add_(1), "1 of .* are not those of"),
        (lambda s: s["mask_decoder.conv_s1.bias"].fill_(torch.nan), "hold NaN"),
    ],
    ids=["prompts", "skip path", "no-mask", "unknown", "another base", "NaN"],
)
def test_bad_sam2_adapter_checkpoints(sam2, base2, write, out, change, message):
    state = official_sam2.official_state(sam2)
    change(state)
    with pytest.raises(UserError, match=message):
        convert_official_checkpoint("sam2-adapter", write(state), out, base=base2)
    assert not out.exists()


def test_a_base_of_another_family_or_none(sam2, base, base2, write, out):
    state = official_sam2.official_state(sam2)
    with pytest.raises(UserError, match="needs its SAM 2"):
        convert_official_checkpoint("sam2-adapter", write(state), out)
    with pytest.raises(UserError, match="is of type 'sam', files of sam2-adapter belong to 'sam2' models"):
        convert_official_checkpoint("sam2-adapter", write(state), out, base=base)
    with pytest.raises(UserError, match="use --from sam2-adapter"):
        convert_official_checkpoint("sam-adapter", write(state), out, base=base)
    with pytest.raises(UserError, match="is of type 'sam2', files of sam-hq belong to 'sam' models"):
        convert_official_checkpoint("sam-hq", write(state), out, base=base2)


def official_hq_state(hq) -> dict[str, torch.Tensor]:
    """The authors' names of a SamHQModel's tensors."""
    sequences = {"compress_vit": "compress_vit_feat", "encoder": "embedding_encoder", "mask": "embedding_maskfeature"}
    state = {}
    for name, value in hq.state_dict().items():
        if name.startswith("mask_decoder."):
            inside = name.removeprefix("mask_decoder.")
            if match := re.match(r"(compress_vit|encoder|mask)_(conv1|norm|conv2)\.(.*)", inside):
                inside = f"{sequences[match[1]]}.{('conv1', 'norm', 'x', 'conv2').index(match[2])}.{match[3]}"
            inside = inside.replace("hq_token", "hf_token").replace("hq_mask_mlp", "hf_mlp")
            state[f"mask_decoder.{official_name(inside)}"] = value
    return state


@torch.no_grad()
@pytest.mark.parametrize("layout", ["authors", "folder", "file"])
def test_sam_hq_becomes_our_head_on_sam(layout, write, out, tmp_path):
    """Equal to the mended `SamHQModel` that returns the HQ token's mask alone."""
    hq, sam = random_sam_hq(), random_sam(seed=0)
    shared = {name: value for name, value in hq.state_dict().items() if name in sam.state_dict()}
    sam.load_state_dict(shared)
    sam.save_pretrained(tmp_path / "sam")
    hq.save_pretrained(tmp_path / "hq")
    source = {"folder": tmp_path / "hq", "file": tmp_path / "hq" / "model.safetensors"}.get(layout)
    done = convert_official_checkpoint(
        "sam-hq", source or write(official_hq_state(hq)), out, base=str(tmp_path / "sam")
    )
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    hq = SamHQModel.from_pretrained(tmp_path / "hq").eval()
    prompts = {"input_points": torch.tensor([[[[20.0, 30.0]], [[50.0, 9.0]]]] * 3)}
    upstream = hq(pixel_values=x, hq_token_only=True, multimask_output=False, **prompts).pred_masks
    SAM_HQ.mend(hq)
    expected = hq(pixel_values=x, hq_token_only=True, multimask_output=False, **prompts).pred_masks
    found = load_adapted(str(out)).model(pixel_values=x, **prompts).pred_masks
    assert close(found, expected, 1e-5)
    assert not close(upstream, expected, 1e-2), "transformers has mended it: drop our mending"
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["decoder"]) == ("SAM_DECODER", "hq")
    assert SamAdaptProcessor.from_pretrained(out).resize == "pad"
    assert "HQ token alone" in done.notes[0] and "equal within half precision" in done.notes[-1]


def test_bad_sam_hq_checkpoints(base, write, out, tmp_path):
    hq = random_sam_hq()
    state = official_hq_state(hq)
    with pytest.raises(UserError, match="as files of sam-hq do"):
        convert_official_checkpoint("cosam", write(state), out, base=base)
    with pytest.raises(UserError, match="is in the decoder"):
        convert_official_checkpoint("sam-hq", write(state), out, decoder="none")
    with pytest.raises(UserError, match="of sam-hq, use none"):
        convert_official_checkpoint("sam-hq", write(state), out, method_args={"early_layer": 1})
    with pytest.raises(UserError, match=r"model.safetensors is not a file"):
        convert_official_checkpoint("sam-hq", tmp_path, out)
    (tmp_path / "torn.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="not a safetensors file"):
        convert_official_checkpoint("sam-hq", tmp_path / "torn.safetensors", out)
    rest = {name: value for name, value in state.items() if "compress_vit" not in name}
    with pytest.raises(UserError, match="no HQ head"):
        convert_official_checkpoint("sam-hq", write(rest), out)
    assert not out.exists() and len(HQ_MODULES) == 5
