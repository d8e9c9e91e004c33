"""Official SAM-Adapter, CWSAM and CoSAM checkpoints: the reference's values, strictness, and where they load."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from official_models import (
    GENERATOR,
    NO_MASK,
    PE,
    class_logits,
    close,
    config_of,
    images,
    official_decoder,
    prompts_of,
)
from official_sam import classifier_state, cwsam_state, hq_state, official_name, sam_adapter_state
from peft import AutoPeftModel, PeftModel
from reference_sam import encoder, promptless_mask
from safetensors.torch import load_file
from sams import random_sam
from torch import nn
from transformers import SamConfig, SamModel

from hf_sam_adapt import ModaModel, SamAdaptProcessor, cli, convert_official_checkpoint
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.sam.fingerprint import compute_fingerprint
from hf_sam_adapt.tuners.common.hq import HqHead, decode_hq
from hf_sam_adapt.tuners.moda.tokens import joint_tokens


STATES = {"sam-adapter": sam_adapter_state, "cwsam": cwsam_state, "cosam": hq_state}


@torch.no_grad()
def test_sam_adapter_computes_the_published_masks(sam, base, write, out):
    state, x = sam_adapter_state(sam), images()
    convert_official_checkpoint("sam-adapter", write(state), out, base=base)
    embedding = encoder(sam.vision_encoder, x, prompts_of(sam, state, x, "high"))
    expected = promptless_mask(official_decoder(state), embedding, eps=1e-6)
    transformers_model = random_sam()
    transformers_model.load_adapter(out)
    for model in (load_adapted(str(out)).model, AutoPeftModel.from_pretrained(out), transformers_model):
        close(model.eval()(pixel_values=x).pred_masks[:, 0, 0], expected)
    # The checkpoint's own matrix and no-mask embedding matter.
    others = promptless_mask(official_decoder(state | {PE: state[PE] + 1, NO_MASK: state[NO_MASK] - 1}), embedding)
    assert (others - expected).abs().mean() > 0.01 * expected.std()
    config = config_of(out)
    said = {"faithful": True, "embedding_layout": "legacy", "scale_factor": 4, "decoder": "full"}
    said |= {"base_fingerprint": compute_fingerprint(sam), "base_model_name_or_path": base, "inference_mode": True}
    assert {key: config[key] for key in said} == said
    processor = SamAdaptProcessor.from_pretrained(out)
    assert (processor.image_size, processor.resize) == (64, "squash")


@torch.no_grad()
@pytest.mark.parametrize("classes", [3, 5])
def test_cwsam_computes_the_published_classes(sam, base, write, out, classes):
    state, x = cwsam_state(sam, classes), images()
    done = convert_official_checkpoint("cwsam", write(state), out, base=base)
    assert [note.split(" weights")[0] for note in done.notes[:2]] == ["12", "1"] and "Depth" in done.notes[0]

    def bottleneck(index, name, value):
        own = {key.split(name)[1]: one for key, one in state.items() if f"blocks.{index}.{name}." in key}
        hidden = F.gelu(value @ own[".D_fc1.weight"].T + own[".D_fc1.bias"])
        return hidden @ own[".D_fc2.weight"].T + own[".D_fc2.bias"]

    embedding = encoder(
        sam.vision_encoder,
        x,
        prompts_of(sam, state, x, "low"),
        after_attention=lambda i, y: y + bottleneck(i, "Space_Adapter", y),
        beside_mlp=lambda i, z: 0.5 * bottleneck(i, "MLP_Adapter", z),
    )
    found = load_adapted(str(out)).model(pixel_values=x).pred_masks
    assert found.shape == (2, 1, classes, 32, 32)
    close(found[:, 0], class_logits(official_decoder(state), state, embedding, classes))
    config = config_of(out)
    said = {"num_labels": classes, "faithful": True, "lowpass_abs": True, "adapter_ratio": 0.25, "adapter_scale": 0.5}
    assert {key: config[key] for key in said} == said


def test_the_hq_decoder_gives_the_official_values_of_vit_base(write, out):
    """The values of the official modules (ViT-B's sizes), whose i-th parameter by name is a sine of phase i + 1."""
    sam = SamModel(SamConfig(vision_config={"num_hidden_layers": 1})).eval()
    shapes = {name: value.shape for name, value in sam.mask_decoder.named_parameters()}
    shapes |= {name: value.shape for name, value in HqHead(sam.mask_decoder, 768).named_parameters()}
    own = {"hq_token": "hf_token", "hq_mask_mlp": "hf_mlp"}
    names = {name: official_name(name.replace(part := name.split(".")[0], own.get(part, part))) for name in shapes}
    state = {}
    for place, (name, theirs) in enumerate(sorted(names.items(), key=lambda pair: pair[1])):
        shape = shapes[name]
        count, fan = math.prod(shape), math.prod(shape[1:]) if len(shape) > 1 else shape[0]
        values = np.sin(0.7 * np.arange(count) + place + 1) / np.sqrt(fan)
        values += len(shape) == 1 and theirs.endswith("weight")
        state[theirs] = torch.from_numpy(values).float().reshape(shape)
    with torch.no_grad():
        for name, parameter in sam.mask_decoder.named_parameters():
            parameter.copy_(state[names[name]])
    sam.save_pretrained(out.parent / "vit_b")
    convert_official_checkpoint("cosam", write(state), out, base=str(out.parent / "vit_b"))
    overlay = PeftModel.from_pretrained(sam, out).get_base_model().mask_decoder
    for module in overlay.base_layer.transformer.modules():
        if type(module) is nn.LayerNorm:
            module.eps = 1e-5  # PyTorch's default, which the official decoder has

    def wave(*shape):
        return torch.from_numpy(np.sin(0.011 * np.arange(np.prod(shape)))).float().reshape(shape)

    maps, dense = wave(1, 256, 64, 64), 0.2 * wave(1, 256, 64, 64)
    early, sparse = wave(1, 64, 64, 768), 0.3 * wave(1, 1, 2, 256)
    with torch.no_grad():
        masks, _ = decode_hq(
            overlay.base_layer, overlay.hq_heads, None, early, maps, 0.5 * wave(1, 256, 64, 64), sparse, dense, False
        )
    expected = torch.tensor([1.096285, 1.034633, 1.082700, 1.046302])
    torch.testing.assert_close(masks[0, 0, 0, 0, :4], expected, rtol=0, atol=3e-6)
    assert masks.mean().item() == pytest.approx(1.186252, abs=3e-6)
    assert masks.std().item() == pytest.approx(0.048491, abs=3e-6)


@torch.no_grad()
def test_an_hq_decoder_sees_block_0(sam, base, write, out):
    done = convert_official_checkpoint("cosam", write(hq_state(sam)), out, base=base)
    assert "global_attention=True, early_layer=0" in done.notes[0]
    config = config_of(out)
    assert (config["decoder"], config["early_layer"], config["global_attention"]) == ("hq", 0, True)
    model = load_adapted(str(out)).model
    assert model.get_base_model().mask_decoder.early_map.layer == 0
    assert model(pixel_values=images()).pred_masks.std() > 1e-3


@pytest.fixture
def write_pool(sam, tmp_path):
    def write_pool(domains, classified=None, layer="layers.0"):
        folder = tmp_path / "hq_sam_b"
        folder.mkdir()
        states = {}
        for seed, name in enumerate(domains):
            states[name] = hq_state(sam, seed)
            torch.save(states[name], folder / f"adapter_{name}.pth")
        torch.save(classifier_state(sam, 2, seed=1), folder / "task_classifier_after_1th_task_training_buffer10.pth")
        last = classifier_state(sam, classified or len(domains))
        last = {name.replace("layers.0", layer): value for name, value in last.items()}
        torch.save(last, folder / f"task_classifier_after_{len(domains) - 1}th_task_training_buffer10.pth")
        return folder, states, last

    return write_pool


@torch.no_grad()
@pytest.mark.parametrize(
    ("domains", "order", "layer"),
    [(["Polyp", "BSData", "CAMO"], None, "layers.0"), (["b", "c", "a"], ["c", "a", "b"], "classifier")],
)
def test_a_folder_becomes_a_pool(sam, base, out, write_pool, domains, order, layer):
    folder, states, classifier = write_pool(domains, layer=layer)
    done = convert_official_checkpoint("cosam", folder, out, base=base, domains=order)
    assert "no domain can be added" in done.notes[-1]
    order = order or ["BSData", "CAMO", "Polyp"]
    pool = load_adapted(str(out)).model
    assert isinstance(pool, ModaModel) and pool.domains == order
    x = images(6)
    tokens, _ = joint_tokens(sam.vision_encoder, x, classifier["cls_token"])
    logits = tokens[:, 0] @ classifier[f"{layer}.weight"].T + classifier[f"{layer}.bias"]
    torch.testing.assert_close(pool.route(x).scores, logits.softmax(1), rtol=1e-4, atol=1e-5)
    assert pool.route(x).domains == [order[index] for index in logits.argmax(1)]
    alone = PeftModel.from_pretrained(random_sam(), out / order[1])
    for name in order:
        stored = load_file(out / name / "adapter_model.safetensors")
        key = "base_model.model.mask_decoder.sam_decoder_hq_head.hq_token.weight"
        assert torch.equal(stored[key], states[name]["hf_token.weight"])
    expected = alone.eval()(pixel_values=x).pred_masks
    torch.testing.assert_close(pool(pixel_values=x, domain=order[1]).pred_masks, expected)
    assert SamAdaptProcessor.from_pretrained(out).image_size == 64


OFFICIAL_FILES = {
    "BSData": "BSData_train",
    "RSDD_I": "RSDD_I_train",
    "RSDD_II": "RSDD_II_train",
    "group1": "group1",
    "group2": "group2",
    "group3": "group3",
    "CAMO": "CAMO_train",
    "Polyp": "Polyp_train",
}


@pytest.mark.parametrize("named", [None, OFFICIAL_FILES.keys(), OFFICIAL_FILES.values()])
def test_the_file_names_of_the_official_code(base, out, write_pool, named):
    folder, states, _ = write_pool(list(OFFICIAL_FILES.values())[::-1])
    domains = None if named is None else list(named)
    done = convert_official_checkpoint("cosam", folder, out, base=base, domains=domains)
    assert config_of(out)["domains"] == list(OFFICIAL_FILES)
    assert done.notes[0] == "Router: task_classifier_after_7th_task_training_buffer10.pth."
    assert (domains is None) == any("CoSAM's order" in note for note in done.notes)
    for domain, file in OFFICIAL_FILES.items():
        (stored,) = [v for k, v in load_file(out / domain / "adapter_model.safetensors").items() if "hq_token" in k]
        assert torch.equal(stored, states[file]["hf_token.weight"])


def test_two_files_of_one_domain(out, write_pool):
    folder, *_ = write_pool(["CAMO", "CAMO_train", "Polyp_train"])
    with pytest.raises(UserError, match=r"adapter_CAMO.pth and adapter_CAMO_train.pth are of one domain, CAMO"):
        convert_official_checkpoint("cosam", folder, out)


@pytest.mark.parametrize(
    "more",
    [
        ["task_classifier_after_1th_task_training.pth"],
        ["task_classifier_after_1th_task_training_buffer20.pth"],
        ["task_classifier_after_1st_task_training.pth", "task_classifier_after_01th_task_training.pth"],
    ],
)
def test_several_routers_of_the_last_task(sam, base, out, tmp_path, write_pool, more):
    folder, _, own = write_pool(["CAMO_train", "Polyp_train"])
    for seed, name in enumerate(more, start=30):
        torch.save(classifier_state(sam, 2, seed=seed), folder / name)
    with pytest.raises(UserError, match=r"several of the last task: .*; name one as classifier") as raised:
        convert_official_checkpoint("cosam", folder, out, base=base)
    assert all(name in str(raised.value) for name in more)
    buffer10 = "task_classifier_after_1th_task_training_buffer10.pth"
    for chosen, seed in (buffer10, None), (more[0], 30):
        done = convert_official_checkpoint("cosam", folder, tmp_path / chosen, base=base, classifier=chosen)
        assert done.notes[0] == f"Router: {chosen}."
        expected = own if seed is None else classifier_state(sam, 2, seed=seed)
        stored = load_file(tmp_path / chosen / "adapter_model.safetensors")
        assert any(torch.equal(value, expected["layers.0.weight"]) for value in stored.values())
    with pytest.raises(UserError, match="is not a file"):
        convert_official_checkpoint("cosam", folder, out, base=base, classifier="mine.pth")


@torch.no_grad()
def test_official_heads_give_official_masks(sam, base, out, write_pool):
    """The published pass: no block has windows, and the head sees the output of block 0."""
    folder, states, _ = write_pool(["BSData_train", "CAMO_train"])
    convert_official_checkpoint("cosam", folder, out, base=base)
    pool, x = load_adapted(str(out)).model, images()
    boxes = torch.tensor([[[4.0, 8.0, 40.0, 52.0]], [[16.0, 2.0, 60.0, 33.0]]])
    official, seen = random_sam(), {}
    for layer in official.vision_encoder.layers:
        layer.window_size = 0
    official.vision_encoder.layers[0].register_forward_hook(lambda module, args, output: seen.update(early=output))
    embedding = official.vision_encoder(x).last_hidden_state
    sparse, dense = official.prompt_encoder(input_points=None, input_labels=None, input_boxes=boxes, input_masks=None)
    position = official.get_image_wide_positional_embeddings().expand(2, -1, -1, -1)
    for domain, state in zip(("BSData", "CAMO"), states.values()):
        head = HqHead(official.mask_decoder, 32)
        names = {
            official_name(k.replace("hq_token", "hf_token").replace("hq_mask_mlp", "hf_mlp")): k
            for k in head.state_dict()
        }
        head.load_state_dict({ours: state[theirs] for theirs, ours in names.items()})
        expected, _ = decode_hq(
            official.mask_decoder, {"h": head}, None, seen["early"], embedding, position, sparse, dense
        )
        close(pool(pixel_values=x, input_boxes=boxes, domain=domain).pred_masks, expected)
        alone = load_adapted(str(out / domain), model=base).model
        close(alone(pixel_values=x, input_boxes=boxes).pred_masks, expected)
    windowed = random_sam().vision_encoder(x).last_hidden_state
    assert (windowed - embedding).abs().max() > 1e-2


@torch.no_grad()
def test_a_pool_without_base(sam, out, write_pool):
    folder, *_ = write_pool(["BSData", "CAMO"])
    convert_official_checkpoint("cosam", folder, out, image_size=64)
    assert config_of(out)["base_fingerprint"] is None and config_of(out / "CAMO")["base_fingerprint"] is None
    pool = ModaModel.from_pretrained(random_sam(), str(out))
    assert pool(pixel_values=images()).pred_masks.shape == (2, 1, 1, 32, 32)


@pytest.mark.parametrize(
    ("domains", "options", "remove", "message"),
    [
        (["Polyp", "own"], {}, None, "domains: own in .* none of CoSAM's"),
        (["Polyp", "CAMO"], {"domains": ["CAMO", "BSData"]}, None, "holds no adapter_BSData.pth"),
        (["Polyp", "CAMO"], {"domains": ["CAMO", "CAMO"]}, None, "'CAMO' is in the pool already"),
        (["Polyp", "CAMO"], {"domains": ["CAMO"]}, None, "tells 2 domains apart, the folder has 1: CAMO"),
        (["Polyp", "CAMO"], {"decoder": "none"}, None, "nothing but a decoder"),
        (["Polyp", "CAMO"], {}, "adapter_*", "holds no adapter_<domain>.pth"),
        (["Polyp", "CAMO"], {}, "task_*", "holds no task_classifier_after"),
    ],
)
def test_each_defect_of_a_folder_is_one_error(base, out, write_pool, domains, options, remove, message):
    folder, *_ = write_pool(domains)
    for path in folder.glob(remove or "nothing"):
        path.unlink()
    with pytest.raises(UserError, match=message) as raised:
        convert_official_checkpoint("cosam", folder, out, base=base, **options)
    assert "\n" not in str(raised.value) and not out.exists() and not list(out.parent.glob(".tmp*"))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("cls_token"),
        lambda state: state.pop("layers.0.bias"),
        lambda state: state.update(more=torch.zeros(1)),
        lambda state: state.update({"layers.0.weight": torch.zeros(2, 5)}),
    ],
)
def test_another_file_is_no_classifier(out, write_pool, change):
    folder, _, state = write_pool(["Polyp", "CAMO"])
    change(state)
    torch.save(state, folder / "task_classifier_after_1th_task_training_buffer10.pth")
    with pytest.raises(UserError, match=r"is not a task classifier|do not agree"):
        convert_official_checkpoint("cosam", folder, out)


@pytest.mark.parametrize("format", STATES)
def test_without_base_the_adapter_names_none_and_loads_with_a_warning(sam, write, out, format):
    done = convert_official_checkpoint(format, write(STATES[format](sam)), out)
    assert "not compared: no --base" in done.notes[-1]
    config = config_of(out)
    assert config["base_fingerprint"] is None and config["base_model_name_or_path"] is None
    with pytest.warns(UserWarning, match="no fingerprint"):
        loaded = PeftModel.from_pretrained(random_sam(), out)
    stored = load_file(out / "adapter_model.safetensors")
    own = loaded.state_dict()
    assert stored and all(any(torch.equal(value, one) for one in own.values()) for value in stored.values())


@pytest.mark.parametrize("format", ["sam-adapter", "cwsam"])
def test_an_encoder_alone(sam, base, write, out, format):
    done = convert_official_checkpoint(format, write(STATES[format](sam)), out, decoder="none", base=base)
    assert "of the mask decoder and its embeddings left out" in done.notes[-3]
    config = config_of(out)
    assert config["decoder"] == "frozen" and config["num_labels"] is None and config["modules_to_save"] is None
    loaded = load_adapted(str(out)).model
    keys = load_file(out / "adapter_model.safetensors").keys()
    assert all(".vision_encoder." in key for key in keys)
    with torch.no_grad():
        assert loaded(pixel_values=images()).pred_masks.shape == (2, 1, 1, 32, 32)


def without(*parts):
    return lambda state: {k: v for k, v in state.items() if not any(part in k for part in parts)}


def changed(name, change):
    return lambda state: state | {name: change(state.get(name))}


NECK = "image_encoder.neck.2.weight"


@pytest.mark.parametrize(
    ("format", "change", "message"),
    [
        ("sam-adapter", without("shared_mlp"), "has no SAM-Adapter weights"),
        ("sam-adapter", without("lightweight_mlp_1"), "2 weights missing: .*layers.1.sam_adapter_tune.bias"),
        ("sam-adapter", without("mask_decoder", "pe_layer", "no_mask"), "has no mask_decoder weights; --decoder none"),
        ("sam-adapter", without("pe_layer"), "1 weights missing: shared_image_embedding.positional_embedding"),
        ("sam-adapter", without("no_mask_embed"), "1 weights missing: prompt_encoder.*no_mask_embed"),
        ("sam-adapter", changed("extra.weight", lambda _: torch.zeros(1)), "neither SAM's nor SAM-Adapter's: extra"),
        ("sam-adapter", changed(f"{GENERATOR}more.bias", lambda _: torch.zeros(1)), "neither SAM's nor SAM-Adapter's"),
        ("sam-adapter", changed("mask_decoder.own.weight", lambda _: torch.zeros(1)), "1 weights unknown: mask_deco"),
        (
            "sam-adapter",
            changed(f"{GENERATOR}shared_mlp.bias", lambda value: value[:3]),
            r"shared_mlp.bias is \(3,\), this",
        ),
        ("sam-adapter", changed(NECK, lambda value: value + 1), r"1 of \d+ frozen .*encoder.neck.2.weight \(differs"),
        (
            "sam-adapter",
            lambda state: cwsam_state(random_sam()),
            "holds image_encoder.blocks.0.Space_Adapter.*use --from cwsam",
        ),
        (
            "cwsam",
            lambda state: sam_adapter_state(random_sam()),
            "holds image_encoder.prompt_generator.*use --from sam-adapter",
        ),
        ("cwsam", without("cls_upscaling"), "has no class head .*--decoder none"),
        ("cwsam", without("2.MLP_Adapter"), "4 weights missing: .*layers.2.sam_adapter_mlp"),
        ("cosam", without("compress_vit_feat"), "has no HQ decoder weights"),
        ("cosam", without("hf_mlp.layers.1"), "2 weights missing: .*hq_mask_mlp.layers.0.bias"),
        ("cosam", changed("iou_token.weight", lambda value: value + 1), r"frozen .*first is iou_token.weight"),
        (
            "cosam",
            changed("prompt.weight", lambda _: torch.zeros(1)),
            "neither SAM's nor the HQ decoder's: prompt.weight",
        ),
    ],
)
def test_each_defect_of_a_checkpoint_is_one_error(sam, base, write, out, format, change, message):
    path = write(change(STATES[format](sam)))
    with pytest.raises(UserError, match=message) as raised:
        convert_official_checkpoint(format, path, out, base=base)
    assert "\n" not in str(raised.value) and not out.exists()


@pytest.mark.parametrize("format", STATES)
def test_another_base_is_refused(sam, write, out, tmp_path, format):
    random_sam(seed=5).save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match=r"(\d+) of \1 frozen weights .*other"):
        convert_official_checkpoint(format, write(STATES[format](sam)), out, base=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("sam-adapter", {"lora_alpha": 2}, "lora_alpha: only conv-lora takes it"),
        ("cosam", {"domains": ["a"]}, "domains: only a cosam folder takes it"),
        ("cosam", {"decoder": "none"}, "nothing but a decoder"),
        ("cwsam", {"image_size": 512}, "image_size: the checkpoint was trained at 64"),
    ],
)
def test_wrong_arguments(sam, write, out, format, options, message):
    with pytest.raises(UserError, match=message):
        convert_official_checkpoint(format, write(STATES[format](sam)), out, **options)


def test_the_command(sam, base, write, write_pool, out, capsys):
    path = write(sam_adapter_state(sam))
    assert cli.main(["convert", "--from", "sam-adapter", str(path), "--out", str(out), "--base", base]) == 0
    assert f"compared with {base}" in capsys.readouterr().out
    folder, *_ = write_pool(["x", "y"])
    argv = ["convert", "--from", "cosam", str(folder), "--out", str(out.parent / "pool"), "--domains", "y", "x"]
    assert cli.main([*argv, "--base", base]) == 0
    assert f"Saved to {out.parent / 'pool'}." in capsys.readouterr().out
