"""Presets fill what is not given."""

from pathlib import Path

import pytest

from hf_sam_adapt.config.presets import PRESETS
from hf_sam_adapt.config.recipe import Recipe, parse_recipe
from hf_sam_adapt.errors import UserError


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_recipe_and_is_resolved_in_its_yaml(name, tmp_path):
    recipe = parse_recipe(["--preset", name])
    for key, value in PRESETS[name].items():
        assert getattr(recipe, key) == ([] if value == ["none"] else value)
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml())
    assert parse_recipe(["--config", str(file), "--output_dir", recipe.output_dir]) == recipe


def test_what_is_given_wins_by_flag_and_by_file(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("preset: 24gb\nbatch_size: 1\n")
    recipe = parse_recipe(["--config", str(file), "--model", "tiny"])
    assert (recipe.model, recipe.batch_size, recipe.precision) == ("tiny", 1, "bf16")
    assert recipe.gradient_accumulation_steps == 2
    assert parse_recipe(["--config", str(file), "--gradient_accumulation_steps", "1"]).gradient_accumulation_steps == 1


def test_the_cpu_preset_caches_only_for_its_own_method():
    recipe = parse_recipe(["--preset", "cpu"])
    assert (recipe.method, recipe.cache_embeddings, recipe.augment) == ("decoder", True, [])
    other = parse_recipe(["--preset", "cpu", "--method", "sam_adapter"])
    assert not other.cache_embeddings and other.augment == Recipe().augment
    same = parse_recipe(["--preset", "cpu", "--method", "decoder"])
    assert same.cache_embeddings


@pytest.mark.parametrize("flags", [("--augment", "flip"), ("--tile", "auto")])
def test_the_cpu_preset_caches_no_images_that_change(flags):
    recipe = parse_recipe(["--preset", "cpu", *flags])
    assert recipe.method == "decoder" and not recipe.cache_embeddings


def test_an_empty_key_is_not_given_and_a_list_is_no_preset(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("preset: 8gb\nmodel:\n")
    assert parse_recipe(["--config", str(file)]).model == PRESETS["8gb"]["model"]
    file.write_text("preset: [8gb]\n")
    with pytest.raises(UserError, match=r"^preset: "):
        parse_recipe(["--config", str(file)])


def test_an_adapter_keeps_its_model_and_method():
    recipe = parse_recipe(["--preset", "80gb", "--adapter", "me/polyp"])
    assert recipe.model is None and recipe.batch_size == 8
    assert not parse_recipe(["--preset", "cpu", "--adapter", "me/polyp"]).cache_embeddings


def test_an_unknown_preset_is_named():
    with pytest.raises(UserError, match="preset: '9gb'"):
        parse_recipe(["--preset", "9gb"])


def test_the_documents_show_every_preset():
    text = (ROOT / "docs" / "training.md").read_text()
    assert all(f"`{name}`" in text for name in PRESETS)
