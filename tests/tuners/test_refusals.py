"""A call that is refused leaves the model as it was, and the corrected call then works."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from sams import perturb, random_sam
from torch import nn

from hf_sam_adapt import (
    ConvLoraConfig,
    CwsamConfig,
    L2pConfig,
    ModaConfig,
    ModaModel,
    SamAdapterConfig,
    SamDecoderConfig,
)
from hf_sam_adapt.errors import UserError


GOOD = {
    "sam_adapter": lambda: SamAdapterConfig(scale_factor=4),
    "conv_lora": ConvLoraConfig,
    "cwsam": lambda: CwsamConfig(num_labels=3, scale_factor=4),
    "decoder": SamDecoderConfig,
    "hq": lambda: SamDecoderConfig(decoder="hq"),
    "l2p": L2pConfig,
    "moda": lambda: ModaConfig(domains=["polyp"]),
}
# Method, and fields that are refused when the model has been changed already, or before.
BAD = {
    "no patch embedding": ("sam_adapter", {"target_modules": r".*layers\.\d+"}),
    "resized": ("sam_adapter", {"target_modules": r".*layers\.\d+", "image_size": 128}),
    "four channels": ("conv_lora", {"target_modules": ["lin1"], "in_channels": 4, "image_size": 128}),
    "no Linear": ("conv_lora", {"target_modules": ["qkv", "projection"]}),
    "nothing matched": ("conv_lora", {"target_modules": ["typo"]}),
    "no classes": ("sam_adapter", {"decoder": "class_wise"}),
    "classes without names": ("cwsam", {"id2label": {0: "soil", 1: "crop"}}),
    "no such layer": ("cwsam", {"layers_to_transform": [0, 7]}),
    "no such block": ("hq", {"early_layer": 7}),
    "saved twice": ("decoder", {"modules_to_save": ["mask_decoder"]}),
    "name of a module": ("moda", {"domains": ["polyp", "mask_decoder"]}),
    "LoRA on a norm": ("moda", {"inner": LoraConfig(target_modules=["qkv", "upscale_layer_norm"])}),
}
NEEDS_NEW_LAYERS = ("no patch embedding", "nothing matched")


def config_of(method: str, **fields):
    config = GOOD[method]()
    for name, value in fields.items():
        setattr(config, name, copy.deepcopy(value))
    return config


def state_of(model: nn.Module) -> list:
    """All that a caller can see of a model: which modules and parameters, what is trainable, hooks, config."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")
    return [
        {name: id(module) for name, module in model.named_modules()},
        {name: (id(p), p.requires_grad, p.detach().clone().tolist()) for name, p in model.named_parameters()},
        {name: [list(getattr(module, hook)) for hook in hooks] for name, module in model.named_modules()},
        {name: copy.copy(getattr(module, "_active_adapter", None)) for name, module in model.named_modules()},
        model.config.to_dict(),
        sorted(vars(model)),
        {name: config.to_dict() for name, config in getattr(model, "peft_config", {}).items()},
    ]


def masks(model: nn.Module, **kwargs) -> torch.Tensor:
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    model = copy.deepcopy(model).requires_grad_(False).eval()
    with torch.no_grad():
        return model(pixel_values=pixels, **kwargs).pred_masks


@pytest.mark.parametrize("fault", BAD)
def test_a_refused_first_adapter(fault):
    method, fields = BAD[fault]
    sam, fresh = random_sam(), random_sam()
    before, bad = state_of(sam), config_of(method, **fields)
    said = bad.to_dict()
    for _ in range(2):
        with pytest.raises((UserError, ValueError)):
            get_peft_model(sam, bad)
        assert state_of(sam) == before
        assert bad.to_dict() | {"base_model_name_or_path": None} == said | {"base_model_name_or_path": None}
        if method != "moda":
            with pytest.raises((UserError, ValueError)):
                sam.add_adapter(bad)
            assert state_of(sam) == before
    torch.manual_seed(0)
    corrected = get_peft_model(sam, GOOD[method]())
    torch.manual_seed(0)
    assert torch.equal(masks(corrected), masks(get_peft_model(fresh, GOOD[method]())))


@pytest.mark.parametrize("fault", [fault for fault, (method, _) in BAD.items() if method != "moda"])
def test_a_refused_second_adapter(fault):
    method, fields = BAD[fault]
    model = perturb(get_peft_model(random_sam(), GOOD[method]())).eval()
    sam, expected = model.get_base_model(), masks(model)
    before = state_of(sam)
    for refused in (
        lambda: model.add_adapter("second", config_of(method, **fields)),
        lambda: sam.add_adapter(config_of(method, **fields), "second"),
        # Of the same name the layers are there already, so nothing is missing.
        *([lambda: get_peft_model(sam, config_of(method, **fields))] if fault not in NEEDS_NEW_LAYERS else []),
    ):
        with pytest.raises((UserError, ValueError)):
            refused()
        assert state_of(sam)[:5] == before[:5] and state_of(sam)[6] == before[6]
        assert model.active_adapters == ["default"] and list(model.peft_config) == ["default"]
    assert torch.equal(masks(model), expected)
    if method != "cwsam":
        model.add_adapter("second", GOOD[method]())
        assert torch.equal(masks(model), expected)


def damage(folder, kind: str) -> None:
    file = folder / "adapter_model.safetensors"
    weights = load_file(file)
    last = sorted(weights)[-1]
    if kind == "missing":
        del weights[last]
    elif kind == "unexpected":
        weights[f"{last}_more"] = torch.zeros(1)
    else:
        weights[last] = torch.zeros(*weights[last].shape, 2)
    save_file(weights, file)


@pytest.mark.parametrize("kind", ["missing", "unexpected", "of another shape"])
@pytest.mark.parametrize("method", GOOD)
def test_a_refused_load(method, kind, tmp_path):
    model = perturb(get_peft_model(random_sam(), GOOD[method]())).eval()
    model.save_pretrained(tmp_path / "good")
    model.save_pretrained(tmp_path / "damaged")
    damage(tmp_path / "damaged", kind)
    sam = random_sam()
    before = state_of(sam)
    for trainable in (False, True):
        with pytest.raises(UserError, match=r"1 |keys differ"):
            PeftModel.from_pretrained(sam, tmp_path / "damaged", is_trainable=trainable)
        assert state_of(sam) == before
    loaded = PeftModel.from_pretrained(sam, tmp_path / "good")
    assert torch.equal(masks(loaded), masks(model))
    before, expected = state_of(sam), masks(loaded)
    if method == "moda":
        return
    for name in ("second", "default"):
        with pytest.raises(UserError, match=f"1 {kind}"):
            loaded.load_adapter(tmp_path / "damaged", adapter_name=name)
        assert state_of(sam) == before and torch.equal(masks(loaded), expected)
    loaded.load_adapter(tmp_path / "good", adapter_name="second")
    loaded.set_adapter("second")
    assert torch.equal(masks(loaded), expected)


def test_another_base_is_refused_before_anything(tmp_path):
    get_peft_model(random_sam(), SamAdapterConfig(scale_factor=4)).save_pretrained(tmp_path)
    other = random_sam(seed=9)
    before = state_of(other)
    for load in (lambda: PeftModel.from_pretrained(other, tmp_path), lambda: other.load_adapter(str(tmp_path))):
        with pytest.raises(UserError, match="other weights"):
            load()
        assert state_of(other) == before


def a_pool(domains=("polyp", "leaf")) -> ModaModel:
    pool = ModaModel(random_sam(), ModaConfig(inner=SamAdapterConfig(scale_factor=4)))
    for seed, name in enumerate(domains):
        pool.add_domain(name)
        perturb(pool, seed)
        pool.observe(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))
        pool.finish_domain()
    return pool.eval()


@pytest.mark.parametrize("first", [True, False], ids=["first", "further"])
@pytest.mark.parametrize("fault", ["module", "taken", "no folder", "other method", "damaged"])
def test_a_refused_domain(fault, first, tmp_path):
    pool = a_pool(() if first else ("polyp", "leaf"))
    folder = tmp_path / "other"
    config = SamDecoderConfig() if fault == "other method" else SamAdapterConfig(scale_factor=4)
    get_peft_model(random_sam(), config).save_pretrained(folder)
    if fault == "damaged":
        damage(folder, "missing")
    calls = {
        "module": lambda: pool.add_domain("vision_encoder"),
        "taken": lambda: pool.add_domain("auto" if first else "leaf"),
        "no folder": lambda: pool.add_domain("new", tmp_path / "nowhere"),
        "other method": lambda: pool.add_domain("new", folder),
        "damaged": lambda: pool.add_domain("new", folder),
    }
    before, config_before = state_of(pool.model), copy.deepcopy(pool.moda_config.to_dict())
    with pytest.raises(UserError):
        calls[fault]()
    assert state_of(pool.model) == before and pool.moda_config.to_dict() == config_before
    assert pool.open_domain is None and (pool.inner is None) == first
    pool.add_domain("new")
    assert pool.open_domain == "new"


@pytest.mark.parametrize("fault", ["router", "domain", "config"])
def test_a_refused_pool(fault, tmp_path):
    a_pool().save_pretrained(tmp_path)
    if fault == "router":
        file = tmp_path / "adapter_model.safetensors"
        tensors = load_file(file)
        tensors.pop("counts")
        save_file(tensors, file, metadata={"domains": '["polyp", "leaf"]'})
    elif fault == "domain":
        damage(tmp_path / "leaf", "missing")
    else:
        file = tmp_path / "leaf" / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "scale_factor": 8}))
    sam = random_sam()
    before = state_of(sam)
    with pytest.raises(UserError):
        ModaModel.from_pretrained(sam, tmp_path)
    assert state_of(sam) == before
    assert get_peft_model(sam, SamDecoderConfig()) is not None


@pytest.mark.parametrize("names", ["nobody", ["default", "nobody"]])
def test_unknown_adapters_change_nothing(names):
    model = perturb(get_peft_model(random_sam(), SamDecoderConfig())).eval()
    pool = a_pool()
    for tuner, sam in ((model.base_model, model.get_base_model()), (pool, pool.model)):
        before = state_of(sam)
        with pytest.raises(UserError, match="nobody"):
            tuner.set_adapter(names)
        assert state_of(sam) == before and tuner.active_adapters == ["default"]
    before = state_of(model.get_base_model())
    wanted = [names] if isinstance(names, str) else names
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(UserError, match="'nobody' is not in the model"):
            merge(adapter_names=wanted)
        assert state_of(model.get_base_model()) == before


def test_a_merge_of_what_is_not_finite_changes_nothing():
    model = get_peft_model(random_sam(), SamDecoderConfig(train_no_mask_embed=True))
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "no_mask_embed" in n and p.requires_grad).fill_(torch.nan)
    before = [p.detach().clone() for n, p in model.named_parameters() if ".base_layer." in n]
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="NaNs detected"):
            merge(safe_merge=True)
        after = [p for n, p in model.named_parameters() if ".base_layer." in n]
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("method", [*GOOD, "pruned", "lora"])
def test_multimask_output_may_come_by_position(method, wanted):
    further = {"pruned": ConvLoraConfig(num_mask_tokens=1), "lora": LoraConfig(target_modules=["qkv"])}
    model = perturb(get_peft_model(random_sam(), further.get(method) or GOOD[method]())).eval()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(pixel_values=pixels, multimask_output=wanted).pred_masks
        assert torch.equal(model(pixels, None, None, None, None, None, wanted).pred_masks, expected)
        assert torch.equal(model.get_base_model()(pixels, None, None, None, None, None, wanted).pred_masks, expected)
        assert torch.equal(model(pixels).pred_masks, model(pixel_values=pixels).pred_masks)


def test_mask_decoders_take_their_arguments_by_position():
    for config in (L2pConfig(), ConvLoraConfig(num_mask_tokens=1, decoder="full"), SamDecoderConfig()):
        sam = perturb(get_peft_model(random_sam(), config)).eval().get_base_model()
        maps = sam.get_image_embeddings(torch.randn(1, 3, 64, 64))
        dense = sam.prompt_encoder(None, None, None, None)[1]
        names = (
            "image_embeddings",
            "image_positional_embeddings",
            "sparse_prompt_embeddings",
            "dense_prompt_embeddings",
        )
        inputs = (maps, sam.get_image_wide_positional_embeddings(), None, dense)
        by_name = sam.mask_decoder(**dict(zip(names, inputs, strict=True)), multimask_output=False)[0]
        assert torch.equal(sam.mask_decoder(*inputs, False)[0], by_name)
