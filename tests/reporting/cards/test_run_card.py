"""The card of a run, parsed: YAML, links, pictures, tables, code that runs."""

import json
import re
import shutil
from typing import get_args, get_type_hints

import pytest
import torch
import yaml
from huggingface_hub import constants, parse_eval_result_entries
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image
from sams import perturb

from hf_sam_adapt.config.methods import METHODS
from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.inference.loading import CONFIGS, build_model, load_adapted, load_base, save_adapter
from hf_sam_adapt.reporting.cards import INSTALL, public_recipe, write_card
from hf_sam_adapt.reporting.cards.base import base_license
from hf_sam_adapt.reporting.cards.metadata import card_data
from hf_sam_adapt.reporting.cards.run_card import load_lines
from hf_sam_adapt.reporting.report import ABSENT


SHA = "0123456789abcdef0123456789abcdef01234567"


def copied(run, tmp_path, **changes):
    """A copy of a run whose metrics.json has `changes`; None removes a key."""
    folder = tmp_path / "copy"
    shutil.copytree(run, folder, ignore=shutil.ignore_patterns("checkpoints", "logs"))
    metrics = json.loads((folder / "metrics.json").read_text()) | changes
    metrics = {key: value for key, value in metrics.items() if value is not None}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def numbers(row):
    return [None if cell == ABSENT else float(cell) for cell in row]


@pytest.mark.parametrize("name", ["binary_run", "class_run"])
def test_links_and_pictures_exist_and_no_path_is_told(name, request, page):
    run = request.getfixturevalue(name)
    card = page(run)
    assert {"samples.png", "curve.png"} <= set(card.pictures)
    for picture in card.pictures:
        assert Image.open(run / picture).format == "PNG"
    local = [link for link in card.links if not link.startswith("https://")]
    assert local == ["recipe.yaml"] and (run / "recipe.yaml").is_file()
    readme = (run / "README.md").read_text()
    assert str(run.parent) not in readme and "/tmp" not in readme
    assert not [line for line in card.text.splitlines() if "{{" in line or "{%" in line or "None" in line.split()]


def test_metadata(binary_run, page, read_json):
    card, test = page(binary_run), read_json(binary_run / "metrics.json")["test"]
    assert card.data["library_name"] == "hf-sam-adapt" and card.data["pipeline_tag"] == "image-segmentation"
    assert not {"base_model", "base_model_relation", "license", "datasets"} & card.data.keys()  # the base is a folder
    name, results = model_index_to_eval_results(card.data["model-index"])
    assert name == "run" and {result.dataset_name for result in results} == {"bright_bars"}
    found = {(result.metric_args["prompt"], result.metric_type): result.metric_value for result in results}
    assert found == {
        (kind, key): pytest.approx(value, abs=5e-5)
        for kind, scores in test.items()
        for key, value in scores["adapted"].items()
    }
    assert {("none", "iou"), ("box", "dice")} <= found.keys()


def test_scores_settings_and_facts(binary_run, page, read_json):
    card, metrics = page(binary_run), read_json(binary_run / "metrics.json")
    scores, settings = card.tables
    for prompt, metric, *cells in scores[1:]:
        key = {"IoU": "iou", "Dice": "dice"}.get(metric)
        if key is not None and "best of" not in prompt:
            found = [metrics["test"][prompt].get(name) for name in ("zero_shot", "adapted", "constant")]
            assert numbers(cells) == [None if one is None else pytest.approx(one[key], abs=5e-4) for one in found]
    recipe = yaml.safe_load((binary_run / "recipe.yaml").read_text())
    shown = {key: yaml.safe_load(value) for key, value in settings[1:]}
    assert shown["max_steps"] == 4 and shown["prompts"] == ["none", "box"] and shown["dataset"] == "bright_bars"
    default = Recipe()
    unsaid = recipe.keys() - shown.keys() - {"output_dir", "model", "learning_rate"}
    assert all(recipe[key] == getattr(default, key) for key in unsaid)
    whole = yaml.safe_load(card.code["yaml"][0])
    assert whole == recipe | {"dataset": "bright_bars", "model": "small", "output_dir": "run"}
    train = metrics["train"]
    assert any(item.startswith(f"Trainable parameters: {train['trainable_parameters']:,} (") for item in card.items)
    assert any("6 training, 2 validation, 4 test images" in item for item in card.items)
    assert any(metrics["environment"]["versions"]["torch"] in item for item in card.items)
    assert any("4 images are few" in item for item in card.items)
    assert card.code["bash"] == [f"{INSTALL}\n"]
    assert [block.split("{")[0] for block in card.code["bibtex"]] == ["@inproceedings", "@inproceedings"]


@pytest.fixture(params=["binary_run", "class_run", "full", "lora", "peft"])
def run_of_any_method(request, binary_run, sam_folder, tmp_path):
    if request.param.endswith("run"):
        return request.getfixturevalue(request.param)
    folder = copied(binary_run, tmp_path)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / file).unlink()
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    arguments = {"peft": {"peft_type": "lora", "use_dora": True}}.get(request.param, {})
    recipe |= {"method": request.param, "method_args": arguments}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    model = perturb(build_model(request.param, arguments, load_base(sam_folder)[0]), std=0.2)
    save_adapter(model, folder)
    return folder


def test_the_code_runs(run_of_any_method, binary_run, page, sam_folder, tmp_path, monkeypatch):
    run = run_of_any_method
    write_card(run)
    card = page(run)
    (tmp_path / "small").symlink_to(sam_folder)
    (tmp_path / "run").symlink_to(run)
    Image.open(next((binary_run.parent).glob("*/test/images/0.png"))).save(tmp_path / "image.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    load, use = card.code["python"]
    assert load.startswith("import hf_sam_adapt") and len(load.splitlines()) <= 5
    space = {}
    exec(load + use, space)
    loaded = load_adapted("run")
    inputs = loaded.processor(Image.open("image.jpg"))
    with torch.no_grad():
        low = loaded.model(pixel_values=inputs["pixel_values"], multimask_output=False).pred_masks[:, 0]
    (full,) = loaded.processor.post_process_masks(low, inputs["original_sizes"], inputs["reshaped_input_sizes"])
    assert torch.equal(space["mask"], full.argmax(0) if len(full) > 1 else full[0] > 0)
    assert space["mask"].shape == (40, 56)


def test_classes(class_run, page, read_json):
    card, scores = page(class_run), read_json(class_run / "metrics.json")["test"]["none"]
    rows = next(table for table in card.tables if table[0][0] == "class")[1:]
    assert [row[0] for row in rows] == ["ground", "grey | dull", "bright"]
    for label, row in enumerate(rows):
        one, constant = (scores[name]["per_class"][str(label)] for name in ("adapted", "constant"))
        found = [one["iou"], constant["iou"], one["precision"], one["recall"]]
        assert numbers(row[1:5]) == [None if value is None else pytest.approx(value, abs=5e-4) for value in found]
        assert int(row[5].replace(",", "")) == one["pixels"]
    assert "confusion.png" in card.pictures
    assert {"miou", "oa", "fwiou"} <= {
        metric["type"] for metric in card.data["model-index"][0]["results"][0]["metrics"]
    }
    assert len(card.code["bibtex"]) == 2 and "pu2025classwise" in card.code["bibtex"][0]


def test_an_old_run_gets_a_card(binary_run, page, tmp_path):
    folder = copied(binary_run, tmp_path, data=None, environment=None, history=None)
    (folder / "curve.png").unlink()
    (folder / "README.md").unlink()
    assert write_card(folder) == folder / "README.md"
    card = page(folder)
    assert card.pictures == ["samples.png"] and card.tables[0] == page(binary_run).tables[0]
    assert not any(item.startswith("Versions") for item in card.items)
    assert "bright_bars" in card.text and str(binary_run.parent) not in (folder / "README.md").read_text()


def test_where_a_run_started_is_said(binary_run, page, tmp_path):
    folder = copied(binary_run, tmp_path)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert "started from" not in page(folder).text
    for adapter, shown in ((str(binary_run), "`run`"), ("me/first", "`me/first`")):
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"adapter": adapter}))
        write_card(folder)
        assert f"It started from the adapter {shown}." in page(folder).text


def test_a_published_card_loads_from_the_repository(binary_run, page, tmp_path):
    folder = copied(binary_run, tmp_path)
    write_card(folder, repo_id="me/bars")
    card = page(folder)
    assert card.data["model-index"][0]["name"] == "bars"
    assert '"me/bars")' in card.code["python"][0] and "is the folder of this file" not in card.text


def test_data_of_the_hub_and_its_benchmark(binary_run, page, tmp_path, monkeypatch):
    data = {"name": "owner/set", "source": "hub", "revision": SHA, "notes": [], "classes": None}
    folder = copied(binary_run, tmp_path, data=data | {"images": {"train": 6, "test": 4}})
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    write_card(folder)
    assert page(folder).data["datasets"] == ["owner/set"] and not (folder / ".eval_results").exists()
    assert page(folder).data["model-index"][0]["results"][0]["dataset"]["revision"] == SHA
    assert "https://huggingface.co/datasets/owner/set" in page(folder).links

    snapshot = cache / "datasets--owner--set" / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    tasks = [{"id": "masks", "config": "default", "split": "test"}, {"id": "other", "split": "validation"}]
    (snapshot / "eval.yaml").write_text(yaml.safe_dump({"name": "Set", "tasks": tasks}))
    write_card(folder)
    scores = json.loads((folder / "metrics.json").read_text())["test"]
    for kind in ("none", "box"):
        (entry,) = parse_eval_result_entries(yaml.safe_load((folder / f".eval_results/set_{kind}.yaml").read_text()))
        assert (entry.dataset_id, entry.task_id, entry.dataset_revision) == ("owner/set", "masks", SHA)
        assert entry.value == pytest.approx(scores[kind]["adapted"]["iou"], abs=5e-5) and "IoU" in entry.notes


def test_what_does_not_help_is_said(binary_run, page, tmp_path):
    scores = {"zero_shot": 0.1, "adapted": 0.3, "constant": 0.31}
    test = {"none": {name: {"iou": value, "dice": value} for name, value in scores.items()}}
    folder = copied(binary_run, tmp_path, test=test, measured_on="val")
    write_card(folder)
    items = page(folder).items
    assert [item for item in items if "not better than the best constant mask (0.310)" in item]
    assert not [item for item in items if "not better than SAM" in item]
    assert [item for item in items if "also chose the checkpoint" in item]


def test_the_licence_is_the_base_models(tmp_path):
    (tmp_path / "base").mkdir()
    base = str(tmp_path / "base")
    assert base_license(base) == {} and base_license("nobody/nothing") == {}
    (tmp_path / "base" / "README.md").write_text("---\ntags: [sam]\n---\n# base\n")
    assert base_license(base) == {}
    block = "---\nlicense: other\nlicense_name: sam\nlicense_link: https://example.org/licence\n---\n"
    (tmp_path / "base" / "README.md").write_text(block)
    assert base_license(base) == {
        "license": "other",
        "license_name": "sam",
        "license_link": "https://example.org/licence",
    }
    assert base_license("tiny") == {"license": "apache-2.0"}


@pytest.mark.parametrize(
    ("model", "method", "expected"),
    [
        ("facebook/sam-vit-base", "cwsam", ("facebook/sam-vit-base", "adapter")),
        ("facebook/sam-vit-base", "full", ("facebook/sam-vit-base", "finetune")),
        ("tiny", "lora", (None, None)),
        ("/home/me/sam", "lora", (None, None)),
    ],
)
def test_only_a_base_on_the_hub_is_linked(model, method, expected):
    data = card_data(name="x", method=method, model=model, task="image-segmentation", datasets=[], results=[])
    assert (data.get("base_model"), data.get("base_model_relation")) == expected


def test_a_public_recipe_names_no_folder(tmp_path):
    (tmp_path / "data").mkdir()
    recipe = Recipe(
        model=str(tmp_path), dataset=str(tmp_path / "data"), output_dir="a/b/run", palette="~/p/colours.yaml"
    )
    public = public_recipe(recipe)
    assert (public.model, public.dataset, public.output_dir) == (tmp_path.name, "data", "run")
    assert public.palette == "colours.yaml"
    named = Recipe(model="facebook/sam-vit-base", dataset="owner/set", adapter="me/polyp")
    assert public_recipe(named) == Recipe(**{**vars(named), "output_dir": "hf-sam-adapt"})


def test_every_method_is_described_and_loaded_as_what_it_is():
    assert METHODS.keys() == CONFIGS.keys() == {*get_args(get_type_hints(Recipe)["method"]), "moda"}
    lines = {
        method: "\n".join(load_lines(Recipe(model=model, method=method), "me/x"))
        for method, model in (("full", "facebook/sam-vit-base"), ("cwsam", "facebook/sam-vit-base"), ("lora", "tiny"))
    }
    assert 'SamModel.from_pretrained("me/x")' in lines["full"] and "peft" not in lines["full"].lower()
    assert 'AutoPeftModel.from_pretrained("me/x")' in lines["cwsam"]
    assert 'PeftModel.from_pretrained(hf_sam_adapt.load_tiny_sam()[0], "me/x")' in lines["lora"]
    assert all(text.startswith("import hf_sam_adapt") and len(text.splitlines()) == 4 for text in lines.values())


def test_a_fully_trained_model_says_that_it_is_one(binary_run, page, tmp_path):
    folder = copied(binary_run, tmp_path)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text()) | {
        "method": "full",
        "model": "facebook/sam-vit-base",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "adapter_config.json").unlink()
    write_card(folder)
    card = page(folder)
    assert card.data["base_model_relation"] == "finetune" and "peft" not in card.data["tags"]
    assert "ordinary SamModel" in card.text.replace("`", "") and "KeyError" not in card.text


@pytest.mark.parametrize(("count", "expected"), [(1, "1 image is few: another one"), (2, "2 images are few: another")])
def test_one_image_is_no_plural(binary_run, tmp_path, count, expected):
    copy = shutil.copytree(binary_run, tmp_path / "run")
    metrics = json.loads((copy / "metrics.json").read_text())
    metrics["data"]["images"] = {"train": count, "val": count, "test": count}
    (copy / "metrics.json").write_text(json.dumps(metrics))
    text = write_card(copy).read_text()
    assert expected in text
    plural = re.search(r"(?<![\d.,])1 images", text) is not None  # the speed may be 31.1 images/s
    assert (plural, "on 1 test image" in text, "from 1 image with a mask" in text) == (
        (False, True, True) if count == 1 else (False, False, False)
    )
