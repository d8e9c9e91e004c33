"""Paths in a file of keys start at the file's folder, in every command and from every working directory."""

import dataclasses
import os
import shutil
import typing

import pytest
import yaml

from hf_sam_adapt.cli.commands import COMMANDS, imported
from hf_sam_adapt.config.arguments import from_file, parse_arguments
from hf_sam_adapt.config.continual_recipe import ContinualRecipe
from hf_sam_adapt.config.recipe import Recipe, parse_recipe
from hf_sam_adapt.errors import UserError


ARGUMENTS = {name: imported(command.arguments) for name, command in COMMANDS.items()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """`project/` with data, a model, an adapter and a palette beside `recipes/`; runs from another folder."""
    for folder in ("project/recipes", "project/data/polyp", "project/sam", "project/polyp/adapter", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "project/colours.yaml").write_text("a: [0, 0, 0]")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "project"


def write(project, **keys):
    path = project / "recipes/recipe.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


@pytest.mark.parametrize(
    ("key", "value", "found"),
    [
        ("dataset", "../data/polyp", "data/polyp"),
        ("dataset", "..", "."),
        ("dataset", "missing/deep/folder", "recipes/missing/deep/folder"),
        ("model", "../sam", "sam"),
        ("adapter", "../polyp/adapter", "polyp/adapter"),
        ("palette", "../colours.yaml", "colours.yaml"),
        ("output_dir", "../runs/one", "runs/one"),
        ("output_dir", "run", "recipes/run"),
        ("resume_from_checkpoint", "../runs/one/checkpoints/step_2", "runs/one/checkpoints/step_2"),
    ],
)
@pytest.mark.parametrize("place", [".", "project", "project/recipes", "elsewhere"])
def test_a_relative_path_starts_at_its_file(project, monkeypatch, key, value, found, place):
    path = write(project, **{key: value})
    monkeypatch.chdir(project.parent / place)
    recipe = parse_recipe(["--config", os.path.relpath(path)])
    assert os.path.abspath(getattr(recipe, key)) == os.path.abspath(project / found)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset", "synthetic:polyp"),
        ("dataset", "owner/name"),
        ("model", "tiny"),
        ("model", "facebook/sam-vit-base"),
        ("model", "owner/name@refs/pr/1"),
        ("adapter", "owner/name/folder"),
        ("palette", "FUSAR_MAP_1"),
        ("resume_from_checkpoint", "latest"),
        ("dataset", "/data/polyp"),
    ],
)
def test_what_is_no_relative_path_stays(project, key, value):
    (project / "recipes/tiny").mkdir()  # the embedded model, whatever lies there
    assert getattr(parse_recipe(["--config", str(write(project, **{key: value}))]), key) == value
    assert getattr(parse_recipe([f"--{key}", value]), key) == value


def test_a_flag_starts_at_the_working_directory(project, monkeypatch):
    monkeypatch.chdir(project)
    recipe = parse_recipe(["--config", str(write(project, dataset="nowhere/at/all")), "--dataset", "data/polyp"])
    assert recipe.dataset == "data/polyp"


def test_the_tilde_of_a_flag_is_the_home_folder(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project))
    recipe = parse_recipe(["--dataset=~/data/polyp", "--output_dir=~/runs/new"])
    assert recipe.dataset == f"{project}/data/polyp"
    assert recipe.output_dir == f"{project}/runs/new"


@pytest.mark.parametrize(("key", "value"), [("dataset", "data/polyp"), ("model", "sam"), ("adapter", "polyp/adapter")])
def test_what_lies_in_the_working_directory_alone_is_refused_with_the_right_path(project, monkeypatch, key, value):
    monkeypatch.chdir(project)
    with pytest.raises(
        UserError, match=rf"^{key}: {value}: paths in .*recipe.yaml start at .* write \.\./{value} there"
    ):
        parse_recipe(["--config", str(write(project, **{key: value}))])
    assert getattr(parse_recipe(["--config", str(write(project, **{key: f"../{value}"}))]), key).endswith(value)


@pytest.mark.parametrize(
    "value", ["../data/polyp", {"one": "../data/polyp"}, {"name": "one", "dataset": "../data/polyp"}]
)
def test_domains_and_natural(project, value):
    recipe = from_file(ContinualRecipe, write(project, domains=[value], natural=value))
    for found in (recipe.read_domains()[0], recipe.read_natural()):
        assert found.dataset == str(project / "data/polyp")


@pytest.mark.parametrize("start", [".", "project", "project/runs/one", "elsewhere"])
def test_a_stored_recipe_reads_back_from_anywhere_and_after_a_move(project, monkeypatch, start):
    monkeypatch.chdir(project)
    run = project / "runs/one"
    run.mkdir(parents=True)
    keys = {"dataset": "data/polyp", "model": "sam", "adapter": "polyp/adapter", "palette": "colours.yaml"}
    (run / "recipe.yaml").write_text(Recipe(**keys, output_dir="runs/one").to_yaml(run))
    for top in (project, project.parent / "moved"):
        if not top.exists():
            monkeypatch.chdir(project.parent)
            shutil.move(project, top)
        monkeypatch.chdir(str(project.parent / start).replace(str(project), str(top)))
        recipe = parse_recipe(["--config", os.path.relpath(top / "runs/one/recipe.yaml")])
        assert {key: os.path.abspath(getattr(recipe, key)) for key in keys} == {
            key: str(top / value) for key, value in keys.items()
        }
        assert os.path.abspath(recipe.output_dir) == str(top / "runs/one")


def test_a_stored_recipe_keeps_names_and_absolute_paths(project):
    keys = {"dataset": "owner/name", "model": "facebook/sam-vit-base", "adapter": str(project / "polyp/adapter")}
    stored = yaml.safe_load(Recipe(**keys, output_dir=str(project / "runs/one")).to_yaml(project / "runs/one"))
    assert {key: stored[key] for key in keys} == keys and stored["output_dir"] == "."


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_key_of_a_command_that_takes_a_path_says_so(name):
    """Whoever adds a key decides: what its help calls a folder or a file is a path, and starts at the file."""
    words = ("folder", "file", "PNG", "checkpoint or", "Hub id")
    no_path = {"mask_suffix", "mask_values", "max_megabytes", "repo_type", "repo", "layout", "hub_model_id", "format"}
    no_path |= {"max_megapixels", "cache_embeddings", "domains"} - ({"domains"} if name == "continual" else set())
    for field in dataclasses.fields(ARGUMENTS[name]):
        told = any(word.lower() in field.metadata["help"].lower() for word in words)
        takes = field.metadata["path"] is not None
        if takes or (told and field.name not in no_path):
            assert takes, f"{name}: {field.name}"
            hint = typing.get_type_hints(ARGUMENTS[name])[field.name]
            assert "str" in str(hint)


@pytest.mark.parametrize("name", ["doctor", "predict", "evaluate", "estimate", "push", "demo", "convert"])
def test_the_other_commands_read_paths_alike(project, name):
    cls = ARGUMENTS[name]
    keys = {field.name: field for field in dataclasses.fields(cls) if field.metadata["path"] is not None}
    many = {key for key in keys if "adapters" in key or key == "inputs"}
    path = write(project, **{key: ["../sam"] if key in many else "../sam" for key in keys})
    found = parse_arguments(cls, ["--config", str(path)])
    for key in keys:
        assert getattr(found, key) in (str(project / "sam"), [str(project / "sam")])
