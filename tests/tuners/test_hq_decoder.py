"""The HQ decoder: HQ-SAM's branch on the frozen decoder of `SamModel`, its early map, its adapters in one batch."""

import copy
import gc
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import get_peft_model
from safetensors.torch import load_file
from sams import perturb, random_sam, sam_config
from torch import nn
from transformers import SamConfig, SamModel, SamVisionConfig

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, SamAdapterConfig, SamDecoderConfig, load_tiny_sam
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.forward import encode, segment
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.tuners.common.hq import HQ_MODULES, HqHead, SharedMaps, decode_hq


def images(count=2, seed=3, size=64):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def points(count=2, prompts=3, size=64):
    return size * torch.rand(count, prompts, 2, 2, generator=torch.Generator().manual_seed(7))


def adapted(config_cls=SamDecoderConfig, seed=1, base=None, **fields):
    torch.manual_seed(seed)
    base = random_sam() if base is None else base
    return perturb(get_peft_model(base, config_cls(decoder="hq", **fields)), seed).eval()


def overlay(model):
    return model.get_base_model().mask_decoder


def weights(model, name="default"):
    return {key: value.detach() for key, value in overlay(model).hq_heads[name].named_parameters()}


def layer_norm_2d(x, weight, bias, eps=1e-6):
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + eps).sqrt()
    return x * weight[:, None, None] + bias[:, None, None]


def branch(x, w, name, convolution, **options):
    """Convolution, LayerNorm over the channels, GELU, convolution."""
    x = convolution(x, w[f"{name}.0.weight"], w[f"{name}.0.bias"], **options)
    x = F.gelu(layer_norm_2d(x, w[f"{name}.1.weight"], w[f"{name}.1.bias"]))
    return convolution(x, w[f"{name}.3.weight"], w[f"{name}.3.bias"], **options)


def reference(decoder, w, maps, positions, sparse, dense, early):
    """HQ mask (1, 4g, 4g) of one image and one prompt: maps (C, g, g), sparse (n, C) or None, early (g, g, V)."""
    tokens = [decoder.iou_token.weight, decoder.mask_tokens.weight, w["hq_token.weight"]]
    tokens = torch.cat(tokens + ([] if sparse is None else [sparse]))
    hidden, mixed = decoder.transformer(
        point_embeddings=tokens[None, None],
        image_embeddings=(maps + dense)[None],
        image_positional_embeddings=positions[None],
        attention_similarity=None,
    )
    up = mixed.reshape(-1, len(maps)).T.reshape(1, *maps.shape)
    up = F.conv_transpose2d(up, decoder.upscale_conv1.weight, decoder.upscale_conv1.bias, stride=2)
    up = F.gelu(layer_norm_2d(up, decoder.upscale_layer_norm.weight, decoder.upscale_layer_norm.bias))
    up = F.gelu(F.conv_transpose2d(up, decoder.upscale_conv2.weight, decoder.upscale_conv2.bias, stride=2))
    transposed = {"convolution": F.conv_transpose2d, "stride": 2}
    detail = branch(maps[None], w, "embedding_encoder", **transposed)
    detail = detail + branch(early.permute(2, 0, 1)[None], w, "compress_vit_feat", **transposed)
    features = branch(up, w, "embedding_maskfeature", F.conv2d, padding=1) + detail
    hyper = hidden[0, 0, 5]
    for layer in ("proj_in", "layers.0", "proj_out"):
        hyper = F.linear(hyper, w[f"hq_mask_mlp.{layer}.weight"], w[f"hq_mask_mlp.{layer}.bias"])
        hyper = hyper if layer == "proj_out" else hyper.relu()
    return torch.einsum("c,chw->hw", hyper, features[0])[None]


@pytest.mark.parametrize("init_weights", [True, False, "paper"])
@pytest.mark.parametrize("prompts", [0, 1, 3])
def test_equals_the_reference(prompts, init_weights):
    model, plain = adapted(init_weights=init_weights), random_sam()
    inputs = {"input_points": points(prompts=prompts)} if prompts else {}
    seen = []
    plain.vision_encoder.layers[1].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        found = model(pixel_values=images(), **inputs)
        maps = plain.vision_encoder(images()).last_hidden_state
        labels = torch.ones(2, prompts, 2, dtype=torch.int) if prompts else None
        sparse, dense = plain.prompt_encoder(inputs.get("input_points"), labels, None, None)
        positions = plain.get_image_wide_positional_embeddings()[0]
        assert found.pred_masks.shape == (2, max(1, prompts), 1, 32, 32)
        assert found.iou_scores.shape == (2, max(1, prompts), 1)
        for image in range(2):
            for prompt in range(max(1, prompts)):
                own = None if sparse is None else sparse[image, prompt]
                expected = reference(
                    plain.mask_decoder, weights(model), maps[image], positions, own, dense[min(image, len(dense) - 1)],
                    seen[0][image],
                )  # fmt: skip
                assert expected.std() > 1e-2
                torch.testing.assert_close(found.pred_masks[image, prompt], expected, rtol=1e-4, atol=1e-5)


def official_name(name):
    """The name in HQ-SAM's decoder of a parameter of ours."""
    name = name.replace("hq_token", "hf_token").replace("hq_mask_mlp", "hf_mlp")
    for ours, theirs in (("upscale_conv1", 0), ("upscale_layer_norm", 1), ("upscale_conv2", 3)):
        name = name.replace(ours, f"output_upscaling.{theirs}")
    name = name.replace("layer_norm_final_attn", "norm_final_attn").replace("layer_norm", "norm")
    if any(part in name for part in ("hf_mlp", "hypernetworks", "iou_prediction")):
        for ours, theirs in (("layers.0", "layers.1"), ("proj_in", "layers.0"), ("proj_out", "layers.2")):
            name = name.replace(f".{ours}.", f".{theirs}.")
    return name


def fill_like_the_official_run(modules):
    parameters = {official_name(name): p for module in modules for name, p in module.named_parameters()}
    with torch.no_grad():
        for place, (name, parameter) in enumerate(sorted(parameters.items())):
            fan = parameter[0].numel() if parameter.dim() > 1 else parameter.numel()
            values = np.sin(0.7 * np.arange(parameter.numel()) + place + 1) / np.sqrt(fan)
            values += parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))


def test_equals_the_official_decoder_of_vit_base():
    decoder = SamModel(SamConfig(vision_config={"num_hidden_layers": 1})).mask_decoder.eval()
    head = HqHead(decoder, 768).eval()
    fill_like_the_official_run([decoder, head])
    for module in decoder.transformer.modules():
        if type(module) is nn.LayerNorm:
            module.eps = 1e-5  # PyTorch's default, which the official decoder has

    def wave(*shape):
        return torch.from_numpy(np.sin(0.011 * np.arange(np.prod(shape)))).float().reshape(shape)

    maps, positions = wave(1, 256, 64, 64), 0.5 * wave(1, 256, 64, 64)
    sparse, dense = 0.3 * wave(1, 1, 2, 256), 0.2 * wave(1, 256, 64, 64)
    with torch.no_grad():
        masks, _ = decode_hq(decoder, {"one": head}, None, wave(1, 64, 64, 768), maps, positions, sparse, dense, False)
    expected = torch.tensor([1.096285, 1.034633, 1.082700, 1.046302])
    torch.testing.assert_close(masks[0, 0, 0, 0, :4], expected, rtol=0, atol=3e-6)
    assert masks.mean().item() == pytest.approx(1.186252, abs=3e-6)
    assert masks.std().item() == pytest.approx(0.048491, abs=3e-6)


@pytest.mark.parametrize(
    ("width", "layers", "first_global", "expected"),
    [(768, 12, 2, 1_071_104), (1024, 24, 5, 1_333_248), (1280, 32, 7, 1_595_392)],
)
def test_counts_of_parameters(width, layers, first_global, expected):
    vision = SamVisionConfig(
        hidden_size=width, num_hidden_layers=layers, global_attn_indexes=[first_global, layers - 1],
        num_attention_heads=16, mlp_dim=4 * width,
    )  # fmt: skip
    with torch.device("meta"):
        model = get_peft_model(SamModel(SamConfig(vision_config=vision.to_dict())), SamDecoderConfig(decoder="hq"))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert overlay(model).early_map.layer == first_global
    assert sum(p.numel() for p in overlay(model).base_layer.parameters()) == 4_058_340


def test_five_modules_are_trained_and_stored_and_nothing_else(tmp_path):
    model = adapted().train()
    loss = 0
    for prompt in (Prompt("none"), Prompt("point", points=points()[0], point_labels=torch.ones(3, 2).long())):
        loss = loss + segment(model, images(1), [prompt])[0].square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        ours = ".sam_decoder_hq_head.default." in name
        assert parameter.requires_grad == ours, name
        assert (parameter.grad is not None and bool(parameter.grad.any())) == ours, name
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    prefix = "base_model.model.mask_decoder.sam_decoder_hq_head."
    assert {key.removeprefix(prefix).split(".")[0] for key in stored} == set(HQ_MODULES)
    assert {key.removeprefix(prefix): value.shape for key, value in stored.items()} == {
        key: value.shape for key, value in weights(model).items()
    }


def test_no_mask_embedding_can_be_trained_beside_it():
    model = adapted(train_no_mask_embed=True)
    segment(model, images(1), [Prompt("none")])[0].square().mean().backward()
    trained = [name for name, p in model.named_parameters() if p.requires_grad and ".hq_head." not in name]
    assert sum("no_mask_embed" in name for name in trained) == 1
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_faithful_trains_no_more():
    first, second = (
        {name for name, p in adapted(faithful=flag).named_parameters() if p.requires_grad} for flag in (False, True)
    )
    assert first == second


def test_a_fresh_head_starts_near_sam():
    sam, processor = load_tiny_sam()
    rng = np.random.default_rng(torch.initial_seed())
    torch.manual_seed(0)
    model = get_peft_model(sam, SamDecoderConfig(decoder="hq"))
    drawn, boxes = [], []
    for _ in range(8):
        image = rng.integers(0, 90, (256, 256, 3), dtype=np.uint8)
        top, left = rng.integers(0, 150, 2)
        image[top : top + 80, left : left + 100] += 150
        drawn.append(image)
        boxes.append([[left, top, left + 99, top + 79]])
    inputs = {"pixel_values": processor(drawn)["pixel_values"], "input_boxes": torch.tensor(boxes).float()}
    with torch.no_grad():
        near = model(**inputs).pred_masks
        with model.disable_adapter():
            sams = model(**inputs, multimask_output=False).pred_masks
    both = (near > 0) & (sams > 0)
    assert both.float().mean() > 0.05 and both.sum() > 0.9 * ((near > 0) | (sams > 0)).sum()
    ratio = (near / sams).median().item()
    assert 0.7 < ratio < 1.4


@pytest.mark.parametrize("config_cls", [SamDecoderConfig, SamAdapterConfig, ConvLoraConfig, CwsamConfig])
def test_the_early_map_is_the_output_of_the_adapted_block(config_cls):
    fields = {"scale_factor": 4} if config_cls in (SamAdapterConfig, CwsamConfig) else {}
    seen = []
    for block in (None, 0, 2):
        model = adapted(config_cls, early_layer=block, **fields)
        encoder = model.get_base_model().vision_encoder
        handle = encoder.layers[1 if block is None else block].register_forward_hook(
            lambda module, args, output: seen.append(output)
        )
        with torch.no_grad():
            embeddings = encode(model, images())
            expected = model(pixel_values=images()).pred_masks
            again = model(image_embeddings=embeddings.maps, early_embeddings=embeddings.early).pred_masks
        handle.remove()
        assert torch.equal(embeddings.early, seen[-1]) and embeddings.early.shape == (2, 8, 8, 32)
        assert torch.equal(again, expected)
    assert not torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[4])


def test_gradients_reach_the_encoder_through_both_maps():
    model = adapted(SamAdapterConfig, scale_factor=4).train()
    embeddings = encode(model, images())
    embeddings.maps.retain_grad()
    embeddings.early.retain_grad()
    model(image_embeddings=embeddings.maps, early_embeddings=embeddings.early).pred_masks.sum().backward()
    assert embeddings.maps.grad.any() and embeddings.early.grad.any()
    prompts = [p for name, p in model.named_parameters() if "layers.0.sam_adapter_tune" in name]
    assert prompts and all(p.grad.any() for p in prompts)


def test_a_missing_or_stale_early_map_is_an_error():
    model = adapted()
    sam = model.get_base_model()
    with torch.no_grad():
        embeddings = encode(model, images())
        model(pixel_values=images())
        maps = sam.get_image_embeddings(images())
        for call in (
            lambda: model(image_embeddings=maps),
            lambda: sam(image_embeddings=embeddings.maps),
            lambda: segment(model, None, [Prompt("none")] * 2, image_embeddings=encode(random_sam(), images())),
        ):
            with pytest.raises(UserError, match="early_embeddings") as refusal:
                call()
            assert "\n" not in str(refusal.value)
        with pytest.raises(UserError, match="do not belong"):
            model(image_embeddings=embeddings.maps, early_embeddings=embeddings.early[:1])
        with pytest.raises(UserError, match="do not belong"):
            model(image_embeddings=embeddings.maps, early_embeddings=embeddings.early.flatten(1, 2))
        with pytest.raises(ValueError):  # after the encoder
            model(pixel_values=images(), input_points=points(3))
        with pytest.raises(UserError, match="early_embeddings"):
            model(image_embeddings=maps)
        with model.disable_adapter():
            base = random_sam()(image_embeddings=embeddings.maps).pred_masks
            found = sam(image_embeddings=maps, early_embeddings=embeddings.early).pred_masks
            torch.testing.assert_close(found, base)
            assert encode(model, images()).early is None


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_no_map_outlives_its_forward(use_reentrant):
    """Neither a plain forward nor the recomputation of a checkpoint leaves one behind."""
    model = adapted(SamAdapterConfig, scale_factor=4).train()
    if use_reentrant is not None:
        model.get_base_model().gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    model(pixel_values=images()).pred_masks.sum().backward()
    embeddings = encode(model, images())
    del embeddings
    gc.collect()
    assert overlay(model).early_map.take() == (None, None)
    model(pixel_values=images())
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    model.eval(), [one.eval() for one in copies]
    with torch.no_grad():
        expected = model(pixel_values=images()).pred_masks
        for one in copies:  # their hooks are their own
            assert torch.equal(one(pixel_values=images()).pred_masks, expected)
            assert overlay(one).early_map is not overlay(model).early_map


def test_hooks_are_one_a_model_and_go_with_unload():
    model = adapted()
    model.add_adapter("second", SamDecoderConfig(decoder="hq"))
    sam = model.get_base_model()
    block = sam.vision_encoder.layers[1]
    assert len(block._forward_hooks) == 1 and len(sam._forward_pre_hooks) == 2
    base = model.unload()
    assert base is sam and not block._forward_hooks and not sam._forward_pre_hooks
    with torch.no_grad():
        torch.testing.assert_close(
            base(pixel_values=images()).pred_masks, random_sam()(pixel_values=images()).pred_masks
        )


def three_adapters():
    model = adapted()
    for number, name in enumerate(("second", "third"), start=2):
        torch.manual_seed(number)
        model.add_adapter(name, SamDecoderConfig(decoder="hq", init_weights="paper"))
    return model.eval().requires_grad_(False)


def test_one_batch_of_several_adapters_equals_one_image_at_a_time():
    model = three_adapters()
    sam = model.get_base_model()
    assignment = [("third", torch.tensor([3, 0])), ("default", torch.tensor([1])), ("second", torch.tensor([4, 2]))]
    with torch.no_grad():
        embeddings = encode(model, images(5))
        calls = []
        sam.mask_decoder.transformer.register_forward_hook(lambda *_: calls.append(1))
        for inputs in ({}, {"input_points": points(5)}):
            calls.clear()
            found = sam(
                image_embeddings=embeddings.maps, early_embeddings=embeddings.early, hq_assignment=assignment, **inputs
            )
            assert len(calls) == 1
            again = sam(pixel_values=images(5), hq_assignment=assignment, **inputs)
            assert torch.equal(found.pred_masks, again.pred_masks)
            for name, rows in assignment:
                model.set_adapter(name)
                for row in rows.tolist():
                    one = {key: value[[row]] for key, value in inputs.items()}
                    alone = sam(pixel_values=images(5)[[row]], **one)
                    assert (found.pred_masks[row] - alone.pred_masks[0]).abs().max() <= 1e-6
                    assert (found.iou_scores[row] - alone.iou_scores[0]).abs().max() <= 1e-6
        spread = [
            sam(pixel_values=images(5), hq_assignment=[(n, torch.arange(5))]).pred_masks for n in ("second", "third")
        ]
        assert (spread[0] - spread[1]).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ([("default", [0, 1]), ("second", [1])], "each of the 3"),
        ([("default", [0, 1]), ("second", [3])], "each of the 3"),
        ([("default", [0, 1])], "each of the 3"),
        ([("default", [0, 1]), ("nobody", [2])], "nobody is not an adapter"),
    ],
)
def test_wrong_assignments_are_refused(assignment, message):
    assignment = [(name, torch.tensor(rows)) for name, rows in assignment]
    with pytest.raises(UserError, match=message):
        three_adapters()(pixel_values=images(3), hq_assignment=assignment)


def test_gradients_of_a_mixed_batch_stay_with_their_images():
    model = three_adapters()
    heads = overlay(model).hq_heads.requires_grad_(True)
    assignment = [("second", torch.tensor([0])), ("third", torch.tensor([1]))]
    masks = model(pixel_values=images(2), hq_assignment=assignment).pred_masks
    masks[1].square().mean().backward()
    assert all(p.grad is None or not p.grad.any() for p in heads["second"].parameters())
    assert all(p.grad.any() for p in heads["third"].parameters())
    assert all(p.grad is None for p in heads["default"].parameters())


def test_two_active_adapters_and_merging_are_refused():
    model = three_adapters()
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(UserError, match="hq decoder cannot be active beside another"):
        model(pixel_values=images())
    model.base_model.set_adapter("default")
    expected = model(pixel_values=images()).pred_masks
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(NotImplementedError, match="early block"):
            merge()
    assert torch.equal(model(pixel_values=images()).pred_masks, expected)


def test_an_hq_and_a_full_decoder_in_one_model():
    model = adapted()
    expected = model(pixel_values=images()).pred_masks
    torch.manual_seed(5)
    model.add_adapter("other", SamDecoderConfig(init_weights=False))
    model.set_adapter("other")
    alone = get_peft_model(random_sam(), SamDecoderConfig())
    overlay(alone).overlays["default"].load_state_dict(overlay(model).overlays["other"].state_dict())
    with torch.no_grad():
        found = model(pixel_values=images()).pred_masks
        torch.testing.assert_close(found, alone.eval().requires_grad_(False)(pixel_values=images()).pred_masks)
        assert encode(model, images()).early is None
    model.set_adapter("default")
    assert torch.equal(model(pixel_values=images()).pred_masks, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder": "hq", "num_labels": 3}, "decoder='class_wise' needs the number of classes"),
        ({"decoder": "hq", "num_mask_tokens": 1}, "num_mask_tokens=1 needs decoder='full'"),
        ({"decoder": "hq", "train_iou_head": True}, "rates SAM's own masks"),
        ({"decoder": "class_wise", "num_labels": 3, "train_iou_head": True}, "rates SAM's own masks"),
        ({"decoder": "hq", "early_layer": 3}, "the encoder has blocks 0 to 2"),
        ({"decoder": "hq", "early_layer": -1}, "the encoder has blocks 0 to 2"),
        ({"decoder": "full", "early_layer": 1}, "early_layer=1 needs decoder='hq'"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message):
        get_peft_model(random_sam(), SamDecoderConfig(**fields))


def test_an_encoder_without_global_attention_needs_early_layer():
    config = sam_config()
    config.vision_config.global_attn_indexes = []
    with pytest.raises(UserError, match="name one as early_layer"):
        get_peft_model(SamModel(config), SamDecoderConfig(decoder="hq"))
    get_peft_model(SamModel(config), SamDecoderConfig(decoder="hq", early_layer=2))


def test_adapters_of_one_model_see_one_block():
    model = adapted()
    with pytest.raises(UserError, match="needs early_layer 0"):
        model.add_adapter("second", SamDecoderConfig(decoder="hq", early_layer=0))


def test_an_adapter_cannot_be_named_like_a_module():
    for name in HQ_MODULES:
        with pytest.raises(UserError, match="adapter name"):
            get_peft_model(random_sam(), SamDecoderConfig(decoder="hq"), adapter_name=name)


def test_segment_gives_the_same_with_and_without_kept_embeddings():
    model = adapted()
    kinds = [
        Prompt("none"),
        Prompt("box", boxes=torch.tensor([[4.0, 5, 30, 40], [20, 20, 60, 50]])),
        Prompt("point", points=points()[0, :1], point_labels=torch.ones(1, 2).long()),
    ]
    with torch.no_grad():
        expected = segment(model, images(3), kinds)
        kept = encode(model, images(3))
        found = segment(model, None, kinds, image_embeddings=kept)
        assert all(torch.equal(one, other) for one, other in zip(expected, found))
        for index, prompt in enumerate(kinds):
            (alone,) = segment(model, images(3)[[index]], [prompt])
            assert (alone - expected[index]).abs().max() <= 1e-6


def test_rows_of_one_image_share_what_the_head_makes_of_it():
    """Equal to rows with an early map each, masks and gradients, whatever the order of the rows."""
    owner = torch.tensor([2, 0, 2, 2, 0])
    found = {}
    for shared in (True, False):
        model, seen = adapted().train(), []
        embeddings = encode(model, images(3))
        early = SharedMaps(embeddings.early, owner) if shared else embeddings.early[owner]
        overlay(model).hq_heads["default"].compress_vit_feat.register_forward_hook(
            lambda module, args, output, seen=seen: seen.append(len(output))
        )
        inputs = {"image_embeddings": embeddings.maps[owner], "input_points": points(5, 1)}
        masks = model(early_embeddings=early, **inputs).pred_masks
        masks.square().mean().backward()
        assert seen == [2 if shared else 5]
        found[shared] = [masks, *(p.grad for p in model.parameters() if p.requires_grad)]
    for one, other in zip(found[True], found[False]):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="do not belong"):
        model(early_embeddings=SharedMaps(embeddings.early, owner[:4]), **inputs)
