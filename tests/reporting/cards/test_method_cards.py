"""The pages of the methods: links, citations, and no number that the code or RESULTS.md does not have."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from sams import random_sam
from transformers import SamConfig, SamModel

from hf_sam_adapt.config.methods import METHODS
from hf_sam_adapt.inference.loading import CONFIGS, build_model
from hf_sam_adapt.sam import citations


ROOT = Path(__file__).parents[3]
CARDS = ROOT / "model_cards"
NAMES = ("sam_adapter", "conv_lora", "cwsam", "moda", "decoder")
RESULTS = (ROOT / "benchmarks/RESULTS.md").read_text()
SECTIONS = ["What", "When to choose it", "Cost", "Parity with the official code", "Known deviations", "Measured"]


def section(name, title):
    text = (CARDS / f"{name}.md").read_text()
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(text):
    lines = [line.strip("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_sections_links_and_citation(name):
    text = (CARDS / f"{name}.md").read_text()
    assert re.findall(r"^## (.*)", text, flags=re.MULTILINE) == [*SECTIONS, "Citation"]
    titles = [line[3:].lower() for line in RESULTS.splitlines() if line.startswith("## ")]
    anchors = {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        path, _, anchor = link.partition("#")
        assert (CARDS / path).is_file(), link
        assert not anchor or anchor in anchors, link
    for path in re.findall(r"`((?:tests|benchmarks)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    assert re.findall(r"```bibtex\n(.*?)\n```", text, flags=re.DOTALL) == [METHODS[name].citation or citations.SAM]


@pytest.mark.parametrize("name", NAMES)
def test_measured_numbers_are_in_results(name):
    cells = [cell for row in rows(section(name, "Measured"))[2:] for cell in row[1:]]
    cells += [row[1] for row in rows(section(name, "Cost")) if " / " in row[0]]
    assert cells or name == "moda"
    assert [cell for cell in cells if cell not in RESULTS] == []


def trained(method, **args):
    with torch.device("meta"):
        model = build_model(method, args, SamModel(SamConfig()))
    parameters = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    return sum(parameters.values()), sum(count for name, count in parameters.items() if "mask_decoder" not in name)


@pytest.mark.parametrize(
    ("name", "row", "method", "args"),
    [
        ("sam_adapter", "trainable parameters, ViT-B", "sam_adapter", {}),
        ("conv_lora", "trainable parameters, ViT-B", "conv_lora", {}),
        ("cwsam", "trainable parameters, ViT-B, 10 classes", "cwsam", {"num_labels": 10}),
        ("cwsam", "trainable parameters, ViT-B, 5 classes", "cwsam", {"num_labels": 5}),
        ("decoder", "trainable parameters, ViT-B, `full`", "decoder", {}),
    ],
)
def test_costs_are_those_of_the_built_model(name, row, method, args):
    cost = dict(row for row in rows(section(name, "Cost")) if len(row) == 2)
    total, encoder = trained(method, **args)
    assert cost[row] == f"{total:,}" and cost["of these in the encoder"] == f"{encoder:,}"
    if "10 classes" not in row:
        (size,) = (value for key, value in cost.items() if key.startswith("adapter file"))
        assert size == f"{4 * total / 1e6:.1f} MB"


def test_the_hq_head_costs_the_same_in_both_cards():
    found = [dict(rows(section(name, "Cost"))[2:]) for name in ("moda", "decoder")]
    heads = [next(value for key, value in cost.items() if "`hq`" in key and "parameters" in key) for cost in found]
    assert heads == ["1,071,104"] * 2 and found[0]["adapter file per domain, fp32"] == f"{4 * 1_071_104 / 1e6:.1f} MB"


def test_the_folder_shows_the_templates_of_the_package():
    for name in ("run.md", "pool.md", "end.md"):
        assert (CARDS / "templates" / name).resolve() == ROOT / "hf_sam_adapt/reporting/cards" / name


def prepared(config):
    """A small SAM with an adapter, what of it is trained, and SAM's own values."""
    sam = random_sam()
    own = {name: value.clone() for name, value in sam.state_dict().items()}
    model = get_peft_model(sam, config)
    return model, [name for name, value in model.named_parameters() if value.requires_grad], own


@pytest.mark.parametrize(("name", "fields"), [("sam_adapter", {}), ("cwsam", {"num_labels": 3})])
def test_what_the_pages_say_of_faithful_adapters(name, fields):
    """Tokens and whole decoder as published; the positional matrix stays SAM's, and no_mask_embed starts as SAM's."""
    assert "`faithful: true` takes back the first" in (CARDS / f"{name}.md").read_text()
    plain, trained, _ = prepared(CONFIGS[name](**fields))
    faithful, more, own = prepared(CONFIGS[name](faithful=True, **fields))
    layouts = [model.peft_config["default"].embedding_layout for model in (plain, faithful)]
    assert layouts == ["token", "legacy"]
    unreached = ("iou_prediction_head", *(f"output_hypernetworks_mlps.{mlp}" for mlp in (1, 2, 3)))
    for part in (*unreached, "no_mask_embed"):
        assert not any(part in key for key in trained) and any(part in key for key in more), part
    assert not any("shared_image_embedding" in key for key in more)
    state = faithful.state_dict()
    (key,) = [key for key in more if "no_mask_embed" in key]
    assert torch.equal(state[key], own["prompt_encoder.no_mask_embed.weight"])
    (key,) = [key for key in state if "shared_image_embedding" in key]
    assert torch.equal(state[key], own["shared_image_embedding.positional_embedding"])
    if name == "cwsam":
        assert [model.peft_config["default"].lowpass_abs for model in (plain, faithful)] == [False, True]


@pytest.mark.slow
def test_a_wheel_brings_the_templates(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "hf_sam_adapt", tmp_path / "hf_sam_adapt", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "."]
    subprocess.run(pip, check=True, timeout=300, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"hf_sam_adapt/reporting/cards/{name}.md" for name in ("run", "pool", "end")} <= set(names)
