"""The decoders of SAM 2, SAM 3 and SAM-HQ: which mask comes out, what is trained, and the faults stepped around."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from sams import RANDOM_SAMS, perturb, random_sam2, random_sam3_tracker, random_sam_hq, randomise
from torch import nn

from hf_sam_adapt import ConvLoraConfig, CwsamConfig, L2pConfig, ModaConfig, SamAdapterConfig, SamDecoderConfig
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.embeddings.cache import cache_key, check_cacheable
from hf_sam_adapt.inference.forward import encode, segment, segment_multimask, segment_rounds
from hf_sam_adapt.inference.loading import build_model, load_adapted, load_base, save_adapter
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.sam.families import SAM_HQ, encoder_shape, family_of
from hf_sam_adapt.sam.image_embeddings import ImageEmbeddings, SharedMaps
from hf_sam_adapt.sam.processing import SamAdaptProcessor
from hf_sam_adapt.tuners.common.two_way import mix_tokens
from hf_sam_adapt.tuners.l2p.layer import key_loss


FAMILIES = ["sam_hq", "sam2", "sam3_tracker"]
METHODS: dict[str, dict] = {
    "decoder": {},
    "lora": {},
    "full": {},
    "sam_adapter": {"scale_factor": 4},
    "conv_lora": {"num_experts": 3},
    "cwsam": {"decoder": "full", "scale_factor": 4},
    "l2p": {"pool_size": 6, "top_k": 3},
}
PRECISIONS = ["no", "bf16"]
CONFIGS = {
    "decoder": SamDecoderConfig,
    "sam_adapter": lambda: SamAdapterConfig(scale_factor=4),
    "conv_lora": lambda: ConvLoraConfig(num_experts=2),
    "cwsam": lambda: CwsamConfig(decoder="full", scale_factor=4),
    "l2p": L2pConfig,
    "moda": lambda: ModaConfig(domains=["polyp"]),
    "moda-lora": lambda: ModaConfig(
        domains=["polyp"], inner=LoraConfig(target_modules=r".*(qkv|q_proj)", modules_to_save=["mask_decoder"])
    ),
}
ADAPTERS = [name for name in METHODS if name != "full"]
FRESH = [name for name in ADAPTERS if name != "l2p"]  # whose prompts act from the start
CHOOSING = ["sam2", "sam3_tracker"]


def pixels_for(model: nn.Module, count: int = 3) -> torch.Tensor:
    side = encoder_shape(model).image_size
    return torch.randn(count, 3, side, side)


def mixed_prompts(model: nn.Module) -> list[Prompt]:
    """None, two boxes, and a point on a mask, of three images."""
    shape = encoder_shape(model)
    side, cells = shape.image_size, 4 * shape.grid
    boxes = torch.tensor([[0.1, 0.2, 0.6, 0.7], [0.3, 0.3, 0.9, 0.5]]) * side
    masks = torch.randn(1, cells, cells)
    labels = torch.ones(1, 1, dtype=torch.int64)
    point = Prompt("mask", points=torch.full((1, 1, 2), side / 3), point_labels=labels, masks=masks)
    return [Prompt("none"), Prompt("box", boxes=boxes), point]


def by_transformers(model: nn.Module, pixels: torch.Tensor, prompt: Prompt) -> torch.Tensor:
    """An image's masks of token 0, from a call of transformers' forward for each of its objects."""
    found = []
    for row in range(max(1, len(prompt))):
        inputs = {}
        if prompt.boxes is not None:
            inputs["input_boxes"] = prompt.boxes[None, row : row + 1]
        if prompt.points is not None:
            inputs["input_points"] = prompt.points[None, row : row + 1]
            inputs["input_labels"] = prompt.point_labels[None, row : row + 1]
        if prompt.masks is not None:
            inputs["input_masks"] = prompt.masks[None, row : row + 1]
        # In training mode there is no choice among the tokens; the models have no dropout.
        output = model.train()(pixel_values=pixels[None], multimask_output=False, **inputs)
        found.append(output.pred_masks[0, 0, 0])
    model.eval()
    return torch.stack(found)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_mixed_prompts_give_what_transformers_gives_for_each_object(model_type):
    model = RANDOM_SAMS[model_type]()
    family_of(model).mend(model)
    pixels, prompts = pixels_for(model), mixed_prompts(model)
    with torch.no_grad():
        found = segment(model, pixels, prompts)
        for image, prompt, masks in zip(pixels, prompts, found):
            wanted = by_transformers(model, image, prompt)
            torch.testing.assert_close(masks, wanted, rtol=1e-5, atol=1e-5)
            assert masks.std() > 0.01 and masks.shape == wanted.shape
        (three, scores), *_ = segment_multimask(model, pixels, prompts)
        assert three.shape[:2] == (1, 3) == scores.shape


@pytest.mark.parametrize("model_type", FAMILIES)
def test_rounds_of_corrections_use_one_encoding(model_type):
    model = RANDOM_SAMS[model_type]()
    pixels, prompts = pixels_for(model, 2), mixed_prompts(model)[1:]
    side = encoder_shape(model).image_size
    for prompt in prompts:
        prompt.targets = torch.randint(0, 2, (len(prompt), side, side), dtype=torch.uint8)
        prompt.draws = torch.rand(len(prompt), 2)
    with torch.no_grad():
        embeddings = encode(model, pixels)
        logits, estimates = segment_rounds(model, prompts, embeddings)
        assert [len(masks) for masks in logits] == [6, 3] == [len(values) for values in estimates]
        alone = segment_rounds(model, prompts[1:], embeddings[[1]])[0][0]
    torch.testing.assert_close(logits[1], alone, rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits[1][0], logits[1][1])


def test_rows_add_an_images_map_without_copies_of_it():
    maps, owner = torch.randn(3, 2, 4, 4), torch.tensor([2, 2, 0])
    for runs in (None, ((2, 2), (0, 1))):
        values = torch.randn(3, 2, 4, 4)
        wanted = values + maps[owner]
        found = values + SharedMaps(maps, owner, runs)
        assert torch.equal(found, wanted) and found.data_ptr() == values.data_ptr()
    half = torch.randn(3, 2, 4, 4).bfloat16()
    assert torch.equal(half + SharedMaps(maps, owner), half + maps[owner])
    leaf = torch.randn(3, 2, 4, 4, requires_grad=True)
    shared = maps.clone().requires_grad_()
    (leaf * 2 + SharedMaps(shared, owner)).square().sum().backward()
    other, again = leaf.detach().clone().requires_grad_(), maps.clone().requires_grad_()
    (other * 2 + again[owner]).square().sum().backward()
    assert torch.allclose(leaf.grad, other.grad) and torch.allclose(shared.grad, again.grad)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_trained_tensor_gets_a_gradient_and_the_rest_is_not_stored(model_type, method, precision, tmp_path):
    base = RANDOM_SAMS[model_type]()
    model = perturb(build_model(method, METHODS[method], base), std=0.05).train()
    pixels, prompts = pixels_for(base), mixed_prompts(base)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        loss = sum(masks.square().mean() for masks in segment(model, pixels, prompts))
        loss = loss + (key_loss(model) if method == "l2p" else 0)
    loss.backward()
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.any()] == []
    untrained = ("conv_s0", "conv_s1", "pred_obj_score_head", "no_memory", "fpn_layers.3", "prompt_encoder")
    assert not [name for name in trained if any(part in name for part in untrained)]
    if method in ADAPTERS:
        save_adapter(model, tmp_path)
        assert method == "lora" or not [
            name for name in load_file(tmp_path / "adapter_model.safetensors") if "conv_s" in name
        ]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_batch_is_its_images_one_at_a_time(model_type, method, precision):
    base = RANDOM_SAMS[model_type]()
    model = perturb(build_model(method, METHODS[method], base), std=0.05).eval()
    pixels, prompts = pixels_for(base), mixed_prompts(base)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        together = segment(model, pixels, prompts)
        for place, masks in enumerate(together):
            (alone,) = segment(model, pixels[place : place + 1], prompts[place : place + 1])
            error = (masks - alone).abs().max() / masks.abs().max()
            assert error <= (1e-5 if precision == "no" else 3e-2), float(error)
    assert (together[1][0] - together[1][1]).abs().max() > 1e-3


@pytest.mark.parametrize("method", FRESH)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_fresh_adapter_is_the_base_and_so_is_a_disabled_one(model_type, method):
    base = RANDOM_SAMS[model_type]().requires_grad_(False)
    family_of(base).mend(base)
    pixels, prompts = pixels_for(base), mixed_prompts(base)
    model = build_model(method, METHODS[method], RANDOM_SAMS[model_type]()).eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    with torch.no_grad():
        plain, own = segment(base, pixels, prompts), base(pixel_values=pixels).pred_masks
        assert all(map(torch.equal, segment(model, pixels, prompts), plain))
        for parameter in trained:
            parameter.add_(0.1 * torch.randn_like(parameter))
        assert not torch.equal(segment(model, pixels, prompts)[0], plain[0])
        for adapter in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert all(map(torch.equal, segment(adapter, pixels, prompts), segment(model, pixels, prompts)))
        with model.disable_adapter():
            model.requires_grad_(False)
            assert torch.equal(model(pixel_values=pixels).pred_masks, own)
            assert all(map(torch.equal, segment(model, pixels, prompts), plain))


def left_behind(model: nn.Module) -> dict[str, tuple]:
    """Of each module all hooks, and what this package or PEFT keeps in it; which mask its decoder returns."""
    kept = {}
    for name, module in model.named_modules():
        hooks = [list(value.values()) for key, value in sorted(vars(module).items()) if key.endswith("_hooks")]
        own = sorted(key for key in vars(module) if "hf_sam_adapt" in key or "peft" in key)
        kept[name] = (type(module), hooks, own, vars(module).get("dynamic_multimask_via_stability"))
    return kept


@pytest.mark.parametrize("method", ["decoder", "sam_adapter", "conv_lora", "cwsam", "l2p", "moda", "moda-lora"])
@pytest.mark.parametrize("model_type", RANDOM_SAMS)
def test_unload_leaves_a_base_as_it_was(model_type, method, tmp_path):
    """With transformers' faults if its user has built it, without them if `load_base` has."""
    config = CONFIGS[method]
    RANDOM_SAMS[model_type]().save_pretrained(tmp_path)
    for base in (RANDOM_SAMS[model_type](), load_base(str(tmp_path))[0]):
        pixels = pixels_for(base)
        before = left_behind(base)
        with torch.no_grad():
            expected = base.requires_grad_(False)(pixel_values=pixels).pred_masks
            model = perturb(get_peft_model(base, config())).requires_grad_(False).eval()
            adapted = model(pixel_values=pixels, multimask_output=False).pred_masks
            assert not torch.equal(adapted, expected[:, :, : adapted.shape[2]])
            unloaded = model.unload().requires_grad_(False)
            assert unloaded is base and left_behind(base) == before
            assert torch.equal(base(pixel_values=pixels).pred_masks, expected)


@pytest.mark.parametrize("method", ["decoder", "sam_adapter", "conv_lora", "cwsam"])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_saved_adapter_comes_back_bit_for_bit(model_type, method, tmp_path):
    RANDOM_SAMS[model_type]().save_pretrained(tmp_path / "base")
    model = build_model(method, METHODS[method], load_base(str(tmp_path / "base"))[0])
    perturb(model).requires_grad_(False).eval()
    save_adapter(model, tmp_path / "adapter")
    loaded = load_adapted(str(tmp_path / "adapter"), str(tmp_path / "base")).model.requires_grad_(False)
    by_peft = PeftModel.from_pretrained(RANDOM_SAMS[model_type](), tmp_path / "adapter").requires_grad_(False).eval()
    pixels, prompts = pixels_for(model), mixed_prompts(model)
    with torch.no_grad():
        wanted = segment(model, pixels, prompts)
        for again in (loaded, by_peft):
            assert all(map(torch.equal, segment(again, pixels, prompts), wanted))


@pytest.mark.parametrize("model_type", CHOOSING)
class TestTheMaskOfToken0:
    """In `eval()` transformers may return another token's, which the random models' unstable masks make it do."""

    def masks(self, model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(pixel_values=pixels, multimask_output=False).pred_masks

    def token_0(self, model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        found = self.masks(model.train(), pixels)
        model.eval()
        return found

    def test_comes_out_while_an_adapter_is_active(self, model_type):
        base = RANDOM_SAMS[model_type]().requires_grad_(False)
        family_of(base).mend(base)
        pixels = pixels_for(base)
        own, first = self.masks(base, pixels), self.token_0(base, pixels)
        assert not torch.equal(own, first)  # or the test could not fail
        model = get_peft_model(RANDOM_SAMS[model_type](), SamDecoderConfig()).requires_grad_(False).eval()
        assert torch.equal(self.masks(model, pixels), first)
        assert torch.equal(model(pixel_values=pixels).pred_masks, first)  # and when the caller names nothing
        with model.disable_adapter():
            model.requires_grad_(False)
            assert torch.equal(self.masks(model, pixels), own)
        with pytest.raises(ValueError, match="Exactly one"):
            model(pixel_values=None)
        assert model.get_base_model().mask_decoder.base_layer.dynamic_multimask_via_stability
        (none, *_), none_of_base = (segment(sam, pixels, [Prompt("none")] * 3) for sam in (model, base))
        assert torch.equal(none, first[0, 0]) and torch.equal(none_of_base[0], first[0, 0])

    def test_is_what_a_merged_or_wholly_trained_model_returns_after_it_is_saved(self, model_type, tmp_path):
        model = perturb(get_peft_model(RANDOM_SAMS[model_type](), SamDecoderConfig())).requires_grad_(False).eval()
        pixels = pixels_for(model)
        wanted = self.masks(model, pixels)
        merged = model.merge_and_unload().requires_grad_(False)
        assert torch.equal(self.masks(merged, pixels), wanted)
        full = randomise(build_model("full", {}, RANDOM_SAMS[model_type]()), seed=4).requires_grad_(False)
        for name, trained in (("merged", merged), ("full", full)):
            trained.save_pretrained(tmp_path / name)
            again, _ = load_base(str(tmp_path / name))
            again.requires_grad_(False).eval()
            family_of(trained).mend(trained)
            assert torch.equal(self.masks(again, pixels), self.token_0(trained, pixels))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_hq_decoders_and_lost_windows_are_refused_with_the_reason(model_type):
    model = RANDOM_SAMS[model_type]()
    title = family_of(model).title
    with pytest.raises(UserError, match=f"decoder='hq' on {title}: .*decoder='full' trains it|which decoder='full'"):
        get_peft_model(model, SamDecoderConfig(decoder="hq"))
    with pytest.raises(UserError, match=f"global_attention: the windows of {title} cannot be taken away"):
        get_peft_model(model, SamDecoderConfig(global_attention=True))
    assert not hasattr(model, "peft_config")
    get_peft_model(model, SamDecoderConfig())  # nothing of the refused ones is left behind


@pytest.mark.parametrize("model_type", RANDOM_SAMS)
def test_embeddings_of_another_family_are_refused(model_type):
    model = RANDOM_SAMS[model_type]()
    for other in set(RANDOM_SAMS) - {model_type, "sam" if model_type == "sam_hq" else "sam_hq"}:
        foreign = RANDOM_SAMS[other]()
        embeddings = encode(foreign, pixels_for(foreign, 1))
        if {model_type, other} == {"sam2", "sam3_tracker"}:  # of other widths, were they not small ones
            embeddings = ImageEmbeddings(embeddings.maps[:, :16], skips=embeddings.skips)
        with pytest.raises(UserError, match=r"image_embeddings: maps of .* are another model's"):
            segment(model, None, [Prompt("none")], image_embeddings=embeddings)


@pytest.mark.parametrize("model_type", RANDOM_SAMS)
def test_an_adapter_of_one_family_is_refused_on_another(model_type, tmp_path):
    model = get_peft_model(RANDOM_SAMS[model_type](), SamDecoderConfig())
    save_adapter(model, tmp_path)
    for other in set(RANDOM_SAMS) - {model_type}:
        with pytest.raises(UserError, match=f"base_fingerprint.model_type is {model_type}, this model has {other}"):
            PeftModel.from_pretrained(RANDOM_SAMS[other](), tmp_path)


def test_a_plain_lora_of_another_family_or_size_is_refused(tmp_path):
    """Its file says neither."""
    for model_type, make in RANDOM_SAMS.items():
        make().save_pretrained(tmp_path / model_type)
    random_sam2(blocks_per_stage=[1, 2, 3, 2]).save_pretrained(tmp_path / "sam2-deeper")
    short = {"target_modules": r".*attn\.qkv", "modules_to_save": None}
    save_adapter(build_model("lora", {}, load_base(str(tmp_path / "sam2"))[0]), tmp_path / "lora")
    save_adapter(build_model("lora", short, load_base(str(tmp_path / "sam2"))[0]), tmp_path / "short")
    save_adapter(build_model("lora", {}, load_base(str(tmp_path / "sam"))[0]), tmp_path / "of_sam")
    for adapter, base, reason in (
        ("lora", "sam", "a SAM: No modules were targeted"),
        ("short", "sam", "a SAM: 20 keys differ, the first is .*backbone"),
        ("short", "sam3_tracker", "a SAM 3: Target modules .* not found"),
        ("short", "sam2-deeper", "a SAM 2: .*size mismatch for .*blocks.5.attn.qkv"),
        ("of_sam", "sam_hq", "a SAM-HQ: it misses .*mask_decoder.hq_token"),
    ):
        with pytest.raises(UserError, match=f"adapter: .*{adapter} does not fit .*{base}, {reason}.*its own base"):
            load_adapted(str(tmp_path / adapter), str(tmp_path / base))


@pytest.mark.parametrize("model_type", CHOOSING)
def test_kept_embeddings_depend_on_what_makes_the_finer_maps(model_type):
    model = build_model("decoder", {}, RANDOM_SAMS[model_type]())
    shape = encoder_shape(model)
    processor = SamAdaptProcessor(shape.image_size, shape.patch_size, **family_of(model).processor)
    check_cacheable(model)
    keys = {cache_key(model, processor, "no")}
    decoder = model.get_base_model().mask_decoder.base_layer
    for value in (decoder.conv_s0.bias, decoder.conv_s1.weight, model.get_base_model().no_memory_embedding):
        with torch.no_grad():
            value.add_(1)
        keys.add(cache_key(model, processor, "no"))
    assert len(keys) == 4
    decoder.conv_s0.requires_grad_(True)
    with pytest.raises(UserError, match="trains what computes the decoder's inputs"):
        check_cacheable(model)


def test_sam3_adds_no_memory_to_a_map_that_is_used():
    """transformers adds it to one that is dropped; when this fails, `UsedLevels` can go."""
    base, pixels = random_sam3_tracker().requires_grad_(False), torch.randn(2, 3, 112, 112)
    moved = random_sam3_tracker().requires_grad_(False)
    moved.no_memory_embedding.add_(1)
    plain, shifted = base.get_image_embeddings(pixels), moved.get_image_embeddings(pixels)
    assert all(map(torch.equal, plain, shifted)), "transformers has mended Sam3TrackerModel"
    with torch.no_grad():
        ours = encode(base, pixels)
        assert torch.equal(ours.maps, plain[-1] + base.no_memory_embedding.reshape(1, -1, 1, 1))
        family_of(base).mend(base)
        family_of(base).mend(base)  # once
        assert torch.equal(base.get_image_embeddings(pixels)[-1], ours.maps)
        by_call = base.train()(pixel_values=pixels, multimask_output=False).pred_masks
        assert torch.equal(by_call[:, 0], torch.stack(segment(base.eval(), pixels, [Prompt("none")] * 2)))


def literal_hq_masks(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """SAM-HQ's sum of the masks of token 0 and of the HQ token, written down (arXiv 2306.01567, section 3.2)."""
    decoder = model.mask_decoder
    output = model.vision_encoder(pixels)
    maps, early = output.last_hidden_state, output.intermediate_embeddings[0].permute(0, 3, 1, 2)
    _, dense = model.prompt_encoder(None, None, None, None)
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hq_token.weight])
    places = model.get_image_wide_positional_embeddings().expand(len(pixels), -1, -1, -1)
    mixed, attended, _ = mix_tokens(decoder, tokens, maps, places, None, dense)
    gelu = decoder.activation
    upscaled = gelu(decoder.upscale_layer_norm(decoder.upscale_conv1.forward(attended)))
    upscaled = gelu(decoder.upscale_conv2(upscaled))
    detail = decoder.encoder_conv2(gelu(decoder.encoder_norm(decoder.encoder_conv1(maps))))
    detail = detail + decoder.compress_vit_conv2(gelu(decoder.compress_vit_norm(decoder.compress_vit_conv1(early))))
    fine = decoder.mask_conv2(gelu(decoder.mask_norm(decoder.mask_conv1(upscaled)))) + detail
    first = decoder.output_hypernetworks_mlps[0](mixed[:, 0, 1])
    high = decoder.hq_mask_mlp(mixed[:, 0, -1])
    return torch.einsum("bc,bchw->bhw", first, upscaled) + torch.einsum("bc,bchw->bhw", high, fine)


def test_sam_hq_upscales_what_its_transformer_returns():
    """transformers upscales what went into it; when this fails, `AttendedImage` can go."""
    model, pixels = random_sam_hq().requires_grad_(False), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wanted = literal_hq_masks(model, pixels)
        faulty = model(pixel_values=pixels, multimask_output=False).pred_masks[:, 0, 0]
        assert (faulty - wanted).abs().max() > 0.05 * wanted.abs().max(), "transformers has mended SamHQModel"
        SAM_HQ.mend(model)
        SAM_HQ.mend(model)  # once
        mended = model(pixel_values=pixels, multimask_output=False).pred_masks[:, 0, 0]
        torch.testing.assert_close(mended, wanted, rtol=1e-5, atol=1e-5)
        ours = torch.cat(segment(model, pixels, [Prompt("none")] * 2))
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", RANDOM_SAMS)
def test_transformers_computes_no_loss(model_type):
    """`labels` are swallowed, so the training has losses of its own."""
    model = RANDOM_SAMS[model_type]()
    output = model(pixel_values=pixels_for(model, 1), labels=torch.zeros(1, 4, 4))
    assert getattr(output, "loss", None) is None


def test_the_plain_hiera_is_not_taken_for_a_sam():
    with pytest.raises(UserError, match="is of type 'sam2_hiera_det_model'"):
        get_peft_model(random_sam2().vision_encoder.backbone, SamDecoderConfig())
