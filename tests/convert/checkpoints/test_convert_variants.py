"""Official checkpoints as they come: wrapped names, predictor folders, several classes, variants of CWSAM, L2P."""

import copy

import pytest
import torch
import torch.nn.functional as F
from autogluon import QKV, autogluon_state
from official_models import GENERATOR, class_logits, close, config_of, images, official_decoder, prompts_of
from official_sam import Draw, classifier_state, cwsam_state, hq_state, sam_adapter_state
from reference_sam import complex_frequency_component, encoder
from safetensors.torch import load_file
from test_convert_conv_lora import OfficialLinear
from test_convert_unverified import WHOLE, convert, l2p_state

from hf_sam_adapt import SamAdaptProcessor, cli, convert_official_checkpoint
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted


WEIGHTS = "adapter_model.safetensors"


def prefixed(prefix):
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


WRAPPINGS = {
    "module.": prefixed("module."),
    "model.": prefixed("model."),
    "_orig_mod.": prefixed("_orig_mod."),
    "module._orig_mod.": prefixed("module._orig_mod."),
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model": lambda state: {"model": state, "optimizer": {"lr": 1e-4}},
    "net": lambda state: {"net": state},
    "model, module.": lambda state: {"model": prefixed("module.")(state)},
    "model, state_dict": lambda state: {"model": {"state_dict": state}},
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_what_training_code_wraps_around_a_model(sam, write, out, kind, wrapping):
    state = WHOLE[kind](sam)
    convert(kind, write(state), out.parent / "plain")
    convert(kind, write(WRAPPINGS[wrapping](state), "wrapped.pth"), out)
    expected, found = (load_file(folder / WEIGHTS) for folder in (out.parent / "plain", out))
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in found)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda state: {"model": state, "net": state}, "several models, under model, net"),
        (lambda state: state | prefixed("module.")(state), "differ in a prefix such as 'module.' only"),
        (lambda state: {"model": {"epoch": 1}}, "holds no state dict"),
        (lambda state: {"optimizer": state}, "holds no state dict"),
        (lambda state: [state], "holds no state dict"),
    ],
)
def test_a_file_with_another_content(sam, write, out, content, message):
    with pytest.raises(UserError, match=message):
        convert("sam-adapter", write(content(sam_adapter_state(sam))), out)


@pytest.mark.parametrize(
    ("given", "state", "fitting", "sign"),
    [
        ("sam-adapter", cwsam_state, "cwsam", "image_encoder.blocks.0.Space_Adapter"),
        ("cwsam", sam_adapter_state, "sam-adapter", "image_encoder.prompt_generator"),
        ("sam-adapter", hq_state, "cosam", "hf_token.weight"),
        ("cosam", sam_adapter_state, "sam-adapter", "image_encoder.prompt_generator"),
        ("cwsam", autogluon_state, "conv-lora", "vision_encoder.layers.0.attn.qkv.lora_moe"),
        ("conv-lora", cwsam_state, "cwsam", "image_encoder.blocks.0.Space_Adapter"),
        ("conv-lora", hq_state, "cosam", "hf_token.weight"),
    ],
)
def test_a_file_of_another_format(sam, base, write, out, given, state, fitting, sign):
    with pytest.raises(UserError, match=rf"holds .*{sign}.*, as files of {fitting} do; use --from {fitting}$"):
        convert_official_checkpoint(given, write(state(sam)), out, base=base)
    with pytest.raises(UserError, match=rf"holds module\.model\..*{sign}.*use --from {fitting}$"):
        convert_official_checkpoint(given, write({"model": prefixed("module.model.")(state(sam))}), out, base=base)
    assert not out.exists()


def test_the_router_alone(sam, write, out):
    with pytest.raises(UserError, match="is the router of a cosam folder; name the folder"):
        convert_official_checkpoint("cosam", write(classifier_state(sam, 2)), out)


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ("optim: {lora: {r: 2, alpha: 16, conv_lora_expert_num: 4}}", 16),
        ("optimization: {lora: {r: 2, alpha: 8.5}}", 8.5),
        ("optim: {lr: 0.1}", 32),
        ("- a list", 32),
        (None, 32),
    ],
)
def test_a_predictors_folder(sam, base, out, tmp_path, config, alpha):
    folder = tmp_path / "AutogluonModels"
    folder.mkdir()
    torch.save({"state_dict": autogluon_state(sam)}, folder / "model.ckpt")
    (folder / "df_preprocessor.pkl").write_bytes(b"never opened")
    if config is not None:
        (folder / "config.yaml").write_text(config)
    done = convert_official_checkpoint("conv-lora", folder, out, base=base)
    assert config_of(out)["lora_alpha"] == alpha
    assert any("lora_alpha=32" in note for note in done.notes) == (alpha == 32)
    convert_official_checkpoint("conv-lora", folder, tmp_path / "own", base=base, lora_alpha=5)
    assert config_of(tmp_path / "own")["lora_alpha"] == 5


def test_a_folder_that_is_no_predictors(out, tmp_path):
    with pytest.raises(UserError, match=r"holds no model.ckpt; name an AutoGluon predictor's folder"):
        convert_official_checkpoint("conv-lora", tmp_path, out)
    (tmp_path / "model.ckpt").touch()
    (tmp_path / "config.yaml").write_text("{")
    with pytest.raises(UserError, match=r"config.yaml cannot be read; name .*model.ckpt itself, with --lora_alpha"):
        convert_official_checkpoint("conv-lora", tmp_path, out)


def several_classes(sam, tokens, classes):
    """AutoGluon's checkpoint for several classes: more mask tokens, and a linear layer that names their class."""
    state, draw = autogluon_state(sam, scale=0.2), Draw(21, 2.0)
    decoder, width = "model.model.mask_decoder.", sam.config.mask_decoder_config.hidden_size
    state[f"{decoder}mask_tokens.weight"] = draw(tokens, width)
    head = {f"{decoder}output_classifier_mlps.weight": draw(classes + 1, width)}
    return state | head | {f"{decoder}output_classifier_mlps.bias": draw(classes + 1)}


def published_scores(sam, state, pixels):
    """Scores of the classes (B, K, h, w): every mask votes with its probability for the class that its token has."""
    model = copy.deepcopy(sam)
    for index, layer in enumerate(model.vision_encoder.layers):
        layer.attn.qkv = OfficialLinear(layer.attn.qkv, state, QKV.format(index))
    own = {k.split("mask_decoder.")[1]: v for k, v in state.items() if "mask_decoder." in k}
    decoder, tokens = model.mask_decoder, own["mask_tokens.weight"]
    weight, bias = own.pop("output_classifier_mlps.weight"), own.pop("output_classifier_mlps.bias")
    decoder.num_mask_tokens, decoder.mask_tokens = len(tokens), torch.nn.Embedding(*tokens.shape)
    mlp = decoder.output_hypernetworks_mlps[0]
    decoder.output_hypernetworks_mlps = torch.nn.ModuleList([mlp])
    decoder.load_state_dict(own)
    decoder.output_hypernetworks_mlps = torch.nn.ModuleList([mlp] * len(tokens))  # one for all tokens
    seen = {}
    decoder.transformer.register_forward_hook(lambda module, args, output: seen.update(tokens=output[0][:, 0]))
    every = []
    hook = decoder.upscale_conv2.register_forward_hook(lambda module, args, output: seen.update(up=F.gelu(output)))
    model(pixels, multimask_output=False)
    hook.remove()
    of_masks = seen["tokens"][:, 1 : 1 + len(tokens)]
    for one in range(len(tokens)):
        every.append(torch.einsum("bc,bchw->bhw", mlp(of_masks[:, one]), seen["up"]).sigmoid())
    votes = (of_masks @ weight.T + bias).softmax(-1)[..., :-1]  # without "no object"
    return torch.einsum("bnk,bnhw->bkhw", votes, torch.stack(every, 1))


@torch.no_grad()
@pytest.mark.parametrize(("tokens", "classes"), [(1, 2), (1, 4), (3, 3), (5, 2), (10, 6)])
def test_several_classes_of_autogluon(sam, base, write, out, tokens, classes):
    state = several_classes(sam, tokens, classes)
    names = [f"class {label}" for label in range(classes)]
    done = convert_official_checkpoint("conv-lora", write({"state_dict": state}), out, base=base, classes=names)
    config = config_of(out)
    said = {"decoder": "class_wise", "num_labels": classes, "num_mask_tokens": tokens}
    assert {key: config[key] for key in said} == said
    assert config["id2label"] == {str(label): name for label, name in enumerate(names)}
    assert not any("without names" in note for note in done.notes)
    found = load_adapted(str(out)).model(pixel_values=images()).pred_masks[:, 0]
    expected = published_scores(sam, state, images())
    torch.testing.assert_close(found.exp(), expected.clamp(min=1e-6), rtol=1e-4, atol=1e-6)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    assert tokens == 1 or expected.std() > 1e-2


def test_classes_without_a_background_of_their_own_or_without_names(sam, base, write, out, tmp_path):
    path = write(several_classes(sam, 3, 3))
    convert_official_checkpoint("conv-lora", path, out, base=base, classes=["road", "car"])
    assert config_of(out)["id2label"] == {"0": "background", "1": "road", "2": "car"}
    done = convert_official_checkpoint("conv-lora", path, tmp_path / "bare", base=base)
    assert config_of(tmp_path / "bare")["id2label"] is None
    assert "3 classes without names, which --classes gives." in done.notes
    done = convert_official_checkpoint("conv-lora", path, tmp_path / "encoder", base=base, decoder="none")
    dropped = sum("mask_decoder." in name and "iou_prediction" not in name for name in several_classes(sam, 3, 3))
    assert done.notes[0].startswith(f"{dropped} weights of the mask decoder left out")


def cwsam_masks(sam, state, x, prompts, blocks=True):
    def bottleneck(index, name, value):
        own = {key.split(name)[1]: one for key, one in state.items() if f"blocks.{index}.{name}." in key}
        hidden = F.gelu(value @ own[".D_fc1.weight"].T + own[".D_fc1.bias"])
        return hidden @ own[".D_fc2.weight"].T + own[".D_fc2.bias"]

    added = {}
    if blocks:
        added["after_attention"] = lambda i, y: y + bottleneck(i, "Space_Adapter", y)
        added["beside_mlp"] = lambda i, z: 0.5 * bottleneck(i, "MLP_Adapter", z)
    embedding = encoder(sam.vision_encoder, x, prompts, **added)
    return class_logits(official_decoder(state), state, embedding, 3)


def grouped_prompts(sam, state, x):
    """Prompts of the variant whose convolution sees low frequencies with its first half and high with its second."""
    weight, bias = (state[f"{GENERATOR}prompt_generator.proj.{kind}"] for kind in ("weight", "bias"))
    both = torch.cat([complex_frequency_component(x, 0.25, keep) for keep in ("low", "high")], 1)
    component = F.conv2d(both, weight, bias, stride=8, groups=2)
    up, up_bias = (state[f"{GENERATOR}shared_mlp.{kind}"] for kind in ("weight", "bias"))
    tokens = sam.vision_encoder.patch_embed(x)
    batch, height, width, channels = tokens.shape
    rows = tokens.reshape(batch, channels, height * width).transpose(1, 2)
    embedded = rows @ state[f"{GENERATOR}embedding_generator.weight"].T + state[f"{GENERATOR}embedding_generator.bias"]
    guidance = embedded + component.flatten(2).transpose(1, 2)
    prompts = []
    for index in range(3):
        tune = f"{GENERATOR}lightweight_mlp_{index}.0."
        hidden = F.gelu(guidance @ state[f"{tune}weight"].T + state[f"{tune}bias"])
        prompts.append((hidden @ up.T + up_bias).reshape(batch, height, width, channels))
    return prompts


VARIANTS = {
    "published": ({}, lambda sam, state, x: prompts_of(sam, state, x, "low"), True),
    "high": ({"features": ["embedding", "high"]}, lambda sam, state, x: prompts_of(sam, state, x, "high"), True),
    "both": ({"features": ["embedding", "low", "high"]}, grouped_prompts, True),
    "no prompts": ({"use_prompts": False}, lambda sam, state, x: None, True),
    "no block adapters": ({}, lambda sam, state, x: prompts_of(sam, state, x, "low"), False),
    "first version": ({"features": ["embedding", "high"]}, lambda s, state, x: prompts_of(s, state, x, "high"), False),
}


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variants_of_cwsam(sam, base, write, out, variant):
    fields, prompts, blocks = VARIANTS[variant]
    state, x = cwsam_state(sam), images()
    if not blocks:
        state = {name: value for name, value in state.items() if "_Adapter." not in name}
    done = convert_official_checkpoint("cwsam", write(state), out, base=base, method_args=fields)
    found = load_adapted(str(out)).model(pixel_values=x).pred_masks[:, 0]
    close(found, cwsam_masks(sam, state, x, prompts(sam, state, x), blocks))
    assert config_of(out)["block_adapters"] is blocks
    if not fields:
        assert any("features=['embedding', 'low']" in note for note in done.notes)
    if variant == "no prompts":
        assert "12 weights of the prompts, which are not added, left out." in done.notes
    if variant == "both":
        published = cwsam_masks(sam, state, x, prompts_of(sam, state, x, "low"))
        assert (found - published).abs().max() > 1e-2  # the same names and shapes, another function


def test_prompts_that_were_never_trained(sam, base, write, out):
    state = cwsam_state(sam)
    state |= {k: torch.zeros_like(v) for k, v in state.items() if GENERATOR in k and k.endswith("bias")}
    path = write(state)
    with pytest.raises(UserError, match=r"all biases of the prompt_generator are zero.*use_prompts false"):
        convert_official_checkpoint("cwsam", path, out, base=base)
    for index, used in enumerate((True, False)):
        folder = out.parent / str(index)
        convert_official_checkpoint("cwsam", path, folder, base=base, method_args={"use_prompts": used})
        assert config_of(folder)["use_prompts"] is used


@pytest.mark.parametrize("features", [["low"], ["low", "embedding"], ["embedding"], ["embedding", "mine"], []])
def test_other_features_are_none_of_the_official_codes(sam, write, out, features):
    with pytest.raises(UserError, match=r"method_args.features: .* is none of the official code's"):
        convert_official_checkpoint("cwsam", write(cwsam_state(sam)), out, method_args={"features": features})


def published_l2p(sam, state, x):
    """Masks (B, h, w): the prompts of the nearest keys behind SAM's tokens, without attention windows."""
    sam = copy.deepcopy(sam)
    for layer in sam.vision_encoder.layers:
        layer.window_size = 0
    masks = []
    for embedding in sam.vision_encoder(x).last_hidden_state:
        likeness = F.cosine_similarity(embedding.mean((1, 2))[None], state["prompt_key"])
        chosen = state["prompt"][likeness.topk(5).indices].flatten(0, 1)  # (5 L, C)
        decoded, _ = sam.mask_decoder(
            image_embeddings=embedding[None],
            image_positional_embeddings=sam.get_image_wide_positional_embeddings(),
            sparse_prompt_embeddings=chosen[None, None],
            dense_prompt_embeddings=sam.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, 8, 8),
            multimask_output=False,
        )
        masks.append(decoded[0, 0, 0])
    return torch.stack(masks)


@torch.no_grad()
@pytest.mark.parametrize("names", [("prompt", "prompt_key"), ("prompts", "keys"), ("key", "a_prompt")])
def test_a_prompt_pool_of_cosams_l2p(sam, base, write, out, names):
    state = l2p_state(sam)
    ordered = [state["prompt"], state["prompt_key"]] if names[0] != "key" else [state["prompt_key"], state["prompt"]]
    done = convert_official_checkpoint("cosam", write(dict(zip(names, ordered))), out, base=base)
    config = config_of(out)
    said = {"peft_type": "L2P", "pool_size": 6, "prompt_length": 3, "top_k": 5, "global_attention": True}
    assert {key: config[key] for key in said} == said and "HQ decoder, which is not in the file" in done.notes[0]
    close(load_adapted(str(out)).model(pixel_values=images()).pred_masks[:, 0, 0], published_l2p(sam, state, images()))


RESAMPLED = {
    "conv-lora": ("bicubic", True),
    "sam-adapter": ("bilinear", True),
    "cwsam": ("bilinear", True),
    "cosam": ("bilinear", False),
    "l2p": ("bilinear", False),
}


@pytest.mark.parametrize("kind", RESAMPLED)
def test_inputs_as_the_official_code_resizes_them(sam, base, write, out, kind):
    convert(kind, write(WHOLE[kind](sam)), out, base=base)
    processor = SamAdaptProcessor.from_pretrained(out)
    assert (processor.resample, processor.antialias, processor.resize) == (*RESAMPLED[kind], "squash")


def test_the_command_takes_it_all(sam, base, write, out, capsys):
    path = str(write(cwsam_state(sam)))
    argv = ["convert", "--from", "cwsam", path, "--out", str(out), "--base", base, "--classes", "road", "water"]
    argv += ["--method_args.features", "embedding", "low", "high", "--method_args.adapter_scale", "1.0"]
    assert cli.main(argv) == 0
    config, shown = config_of(out), capsys.readouterr().out
    assert config["features"] == ["embedding", "low", "high"] and config["adapter_scale"] == 1.0
    assert config["id2label"] == {"0": "background", "1": "road", "2": "water"}
    assert "In no tensor, so as published: frequency_rate=0.25" in shown
    assert cli.main([*argv[:4], "--out", f"{out}2", "--method_args.rank", "3"]) == 2
    assert "method_args.rank: of cwsam, use features" in capsys.readouterr().err
