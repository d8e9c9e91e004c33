"""`method: peft`: which of PEFT's tuners inject and train, what they start from, and that they come back."""

import json
import re
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from sams import RANDOM_SAMS, perturb, random_sam

from hf_sam_adapt import load_tiny_sam
from hf_sam_adapt.cli import main
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import build_model, load_adapted, method_of, save_adapter
from hf_sam_adapt.sam.families import SAM, encoder_shape
from hf_sam_adapt.tuners import stock


PAGE = Path(__file__).parents[2] / "docs/peft.md"
# Settings of the table's rows where PEFT's own do not divide the 192 channels of `tiny`.
SETTINGS = {"C3A": {"block_size": 64}, "VBLORA": {"vector_length": 64}}
STOCK = sorted(
    {kind.value for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items() if cls.__module__.startswith("peft.")}
    - stock.UNUSABLE.keys()
    | stock.LORA_VARIANTS.keys()
)
QUICK = ["LORA", "DORA", "ADALORA", "VERA", "IA3", "LN_TUNING", "BOFT"]


def build(kind, base, **settings):
    return build_model("peft", {"peft_type": kind, **settings}, base, steps=4)


def images(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))


def masks(model, side=64):
    """Without gradients of any parameter, which alone changes the attention's kernel."""
    required = [p for p in model.parameters() if p.requires_grad]
    for parameter in required:
        parameter.requires_grad_(False)
    with torch.no_grad():
        found = model.eval()(pixel_values=images(side), multimask_output=False).pred_masks
    for parameter in required:
        parameter.requires_grad_(True)
    return found


def in_encoder(model):
    return {n: p for n, p in model.named_parameters() if p.requires_grad and "mask_decoder" not in n}


def train(model, side=64, steps=3):
    """A few steps; returns the names of trained parameters without a gradient and how many of the encoder's moved."""
    before = {name: parameter.detach().clone() for name, parameter in in_encoder(model).items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        out = model.train()(pixel_values=images(side), multimask_output=False).pred_masks
        target = torch.rand(out.shape, generator=torch.Generator().manual_seed(1)).round()
        torch.nn.functional.binary_cross_entropy_with_logits(out, target).backward()
        optimizer.step()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    return without, sum(not torch.equal(before[name], p) for name, p in in_encoder(model).items())


@pytest.mark.parametrize("kind", QUICK)
def test_a_tuner_trains_and_comes_back_without_this_package(kind, sam_folder, tmp_path):
    base = random_sam()
    plain = masks(random_sam())
    model = build(kind, base)
    assert (masks(model) - plain).abs().max() <= 1e-6 * plain.abs().max()
    without, moved = train(model)
    assert without == [] and moved == len(in_encoder(model)) > 0
    decoder = {n.rpartition("default.")[2] for n, p in model.named_parameters() if p.requires_grad and "decoder." in n}
    assert decoder == set(SAM.reached_parameters(random_sam().mask_decoder))
    save_adapter(model, tmp_path)
    again = PeftModel.from_pretrained(random_sam(), tmp_path)
    torch.testing.assert_close(masks(again), masks(model), rtol=0, atol=1e-5)
    assert (masks(model) - plain).abs().max() > 1e-3
    with model.disable_adapter():
        torch.testing.assert_close(masks(model), plain, rtol=0, atol=1e-5)
    assert (method_of(model.peft_config["default"]) == "lora") is (kind in ("LORA", "DORA"))


@pytest.mark.parametrize("kind", ["VERA", "LN_TUNING"])
@pytest.mark.parametrize("family", [name for name in RANDOM_SAMS if name != "sam"])
def test_a_tuner_trains_on_every_family_of_sams(family, kind):
    model = build(kind, RANDOM_SAMS[family]())
    side = encoder_shape(model).image_size
    before = masks(model, side)
    without, moved = train(model, side, steps=1)
    trained = in_encoder(model)
    assert without == [] and moved == len(trained) > 0
    assert all("norm" in name or "vera" in name for name in trained)
    assert (masks(model, side) - before).abs().max() > 1e-3


@pytest.mark.parametrize("variant", stock.LORA_VARIANTS)
def test_variants_of_lora_are_what_lora_makes_of_their_fields(variant):
    fields = stock.LORA_VARIANTS[variant]
    torch.manual_seed(1)
    named = build(variant, random_sam())
    torch.manual_seed(1)
    typed = build_model("lora", fields, random_sam())
    assert torch.equal(masks(named), masks(typed))
    config = named.peft_config["default"]
    assert config.r == 8 and all(getattr(config, name) == value for name, value in fields.items())
    assert stock.changes_base(config) is (variant in ("PISSA", "OLORA"))


def test_lora_that_writes_into_its_base_is_told_from_others():
    """Else zero-shot SAM would be measured with PiSSA's remainder of its weights."""
    plain = masks(random_sam())
    for variant in ("PISSA", "DORA"):
        model = perturb(build(variant, random_sam()), std=0.05)
        with model.disable_adapter():
            kept = (masks(model) - plain).abs().max() < 1e-4
        assert kept is not stock.changes_base(model.peft_config["default"])


def test_a_pool_refuses_what_it_cannot_hold_before_anything_is_trained(sam_folder, make_dataset, tmp_path, capsys):
    data = str(make_dataset())
    start = ["continual", "--model", sam_folder, "--domains", f"one: {data}", f"two: {data}"]
    start += ["--output_dir", str(tmp_path / "all"), "--method"]
    shared = main([*start, "peft", "--method_args.peft_type", "VERA"]), capsys.readouterr().err
    changed = main([*start, "lora", "--method_args.init_lora_weights", "pissa"]), capsys.readouterr().err
    assert shared[0] == changed[0] == 2
    assert "method_args: a pool has no place for them: the tuner keeps tensors for all of its layers" in shared[1]
    assert "the method changes SAM's own weights, which the domains share; use another tuner" in changed[1]
    assert not list(tmp_path.glob("all/tasks/*/adapter_model.safetensors"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"method_args.peft_type: missing; name one of ADALORA, .*VERA"),
        ({"peft_type": "DORRA"}, r"PEFT has no tuner 'DORRA'; use one of .*DORA"),
        ({"peft_type": "OFT"}, r"OFT cannot adapt a SAM: its linear layer takes a map .*; use one of "),
        ({"peft_type": "CONV_LORA"}, r"CONV_LORA is a method of this package; name it as the recipe's method"),
        ({"peft_type": "VERA", "rank": 3}, r"method_args.rank is not a field of VeraConfig"),
        ({"peft_type": "C3A", "block_size": 7}, r"C3AConfig refuses them: The block size should be a factor"),
    ],
)
def test_bad_settings_are_told(fields, message):
    with pytest.raises(UserError, match=message):
        build_model("peft", fields, random_sam())


def test_what_a_file_of_plain_peft_cannot_store_is_refused():
    with pytest.raises(UserError, match="image_size"):
        build_model("peft", {"peft_type": "VERA"}, random_sam(), image_size=96)
    with pytest.raises(UserError, match="max_steps: AdaLoRA cannot spread"):
        build_model("peft", {"peft_type": "ADALORA"}, random_sam(), steps=1)
    with pytest.raises(UserError, match="use method: peft"):
        build_model("lora", {"peft_type": "VERA"}, random_sam())


@pytest.mark.parametrize("kind", ["OFT", "GRALORA", "POLY", "SHADOW"])
def test_peft_has_not_mended_what_cannot_be_used(kind):
    """Where this fails, take the type out of UNUSABLE."""
    config_cls = {key.value: cls for key, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}[kind]
    with pytest.raises((AttributeError, RuntimeError, ValueError)):
        model = get_peft_model(random_sam(hidden_size=128), config_cls(target_modules=SAM.attention_names))
        masks(model)


def test_adalora_gives_up_ranks_and_keeps_those_it_measured(tmp_path):
    model = build("ADALORA", random_sam(), init_r=6, target_r=3)
    allocate = stock.rank_allocator(model, 8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(8):
        optimizer.zero_grad()
        model.train()(pixel_values=images(), multimask_output=False).pred_masks.square().mean().backward()
        optimizer.step()
        allocate(step + 1)
    kept = [p.count_nonzero().item() for n, p in model.named_parameters() if "lora_E" in n]
    assert sum(kept) == 3 * len(kept) and model.peft_config["default"].total_step == 8
    save_adapter(model, tmp_path)
    again = PeftModel.from_pretrained(random_sam(), tmp_path, is_trainable=True)
    torch.testing.assert_close(masks(again), masks(model), rtol=0, atol=1e-5)
    assert stock.rank_allocator(again, 5) is None  # its ranks are settled
    for name, parameter in model.named_parameters():
        if "lora_E" in name:
            parameter.data.fill_(0.3)  # the weights of an earlier step, with all ranks
    stock.keep_every_rank(model)
    save_adapter(model, tmp_path)
    again = PeftModel.from_pretrained(random_sam(), tmp_path)
    torch.testing.assert_close(masks(again), masks(model), rtol=0, atol=1e-5)


def row(kind, folder):
    """A line of the page's table: one tuner on `tiny`."""
    settings = SETTINGS.get(kind, {})
    torch.manual_seed(0)
    model = build(kind, load_tiny_sam()[0], **settings)
    plain = masks(load_tiny_sam()[0], 256)
    fresh = (masks(model, 256) - plain).abs().max() <= 1e-3 * plain.abs().max()
    count = sum(parameter.numel() for parameter in in_encoder(model).values())
    without, moved = train(model, 256, steps=2)
    assert without == [] and moved == len(in_encoder(model)), kind
    save_adapter(model, folder)
    again = PeftModel.from_pretrained(load_tiny_sam()[0], folder)
    torch.testing.assert_close(masks(again, 256), masks(model, 256), rtol=0, atol=1e-3)
    size = (folder / "adapter_model.safetensors").stat().st_size
    written = " ".join(f"`{key}: {value}`" for key, value in settings.items()) or "\u2013"
    return f"| `{kind}` | {count:,} | {size / 1e6:.2f} | {'yes' if fresh else 'no'} | {written} |"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_page_has_the_table_of_tuners(tmp_path):
    rows = [row(kind, tmp_path / kind) for kind in STOCK]
    found = re.findall(r"^\| `[A-Z0-9_]+` \|(?: [^|]+\|){4}$", PAGE.read_text(), re.MULTILINE)
    assert found == rows, "\n".join(rows)


def test_the_page_names_what_cannot_be_used():
    text = PAGE.read_text()
    assert [kind for kind in stock.UNUSABLE if f"`{kind}`" not in text] == []
    assert all(f"`{kind}`" in text for kind in STOCK)


def test_an_adapter_of_a_stock_tuner_is_loaded_by_commands(sam_folder, tmp_path):
    from hf_sam_adapt.inference.loading import load_base

    base, processor = load_base(sam_folder)
    model = perturb(build("VERA", base), std=0.05)
    save_adapter(model, tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_adapted(str(tmp_path))
    assert torch.equal(masks(loaded.model), masks(model)) and method_of(loaded.config) == "peft"
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "VERA"
