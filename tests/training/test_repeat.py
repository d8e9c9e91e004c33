"""The card's repeat command works where it says, a run's recipe from everywhere, and what reads the recipe, too."""

import json
import os
import re
import shlex
import shutil

import pytest
import yaml
from safetensors.torch import load_file

from hf_sam_adapt.cli import main
from hf_sam_adapt.cli.evaluate import EvaluateArguments, _chosen_data, evaluate_command
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.training.earlier_run import EarlierRun


@pytest.fixture
def project(tmp_path, monkeypatch, sam_folder, disc_folder):
    """The working directory, with a run in `runs/one` whose recipe was given relative paths."""
    top = tmp_path / "project"
    shutil.copytree(disc_folder, top / "data/discs")
    shutil.copytree(sam_folder, top / "sam")
    monkeypatch.chdir(top)
    keys = {"model": "sam", "dataset": "data/discs", "output_dir": "runs/one", "method": "decoder"}
    keys |= {"max_steps": 2, "eval_every": 1, "batch_size": 2}
    assert main(["train", *(text for key, value in keys.items() for text in (f"--{key}", str(value)))]) == 0
    return top


def weights(folder):
    return {name: tensor.tolist() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}


@pytest.mark.parametrize(
    "place", ["runs/one", "..", *(pytest.param(place, marks=pytest.mark.slow) for place in (".", "runs"))]
)
def test_a_run_is_repeated_from_its_folder_and_from_others(project, monkeypatch, place):
    (command,) = re.findall(r"`(hf-sam-adapt train [^`]*)`", (project / "runs/one/README.md").read_text())
    _, *argv = shlex.split(command)
    assert argv[argv.index("--config") + 1] == "recipe.yaml"
    monkeypatch.chdir(project / place)
    argv[argv.index("--config") + 1] = os.path.relpath(project / "runs/one/recipe.yaml")
    argv[argv.index("--output_dir") + 1] = str(project / "runs/again")
    assert main(argv) == 0
    assert weights(project / "runs/again") == weights(project / "runs/one")


def test_the_command_of_the_card_as_it_stands(project, monkeypatch):
    (command,) = re.findall(r"`(hf-sam-adapt train [^`]*)`", (project / "runs/one/README.md").read_text())
    monkeypatch.chdir(project / "runs/one")
    assert main(shlex.split(command)[1:]) == 0
    assert weights(project / "runs/again") == weights(project / "runs/one")


def test_a_run_goes_on_from_elsewhere_and_after_a_move(project, monkeypatch, tmp_path):
    before = json.loads((project / "runs/one/metrics.json").read_text())
    shutil.move(project, tmp_path / "moved")
    (tmp_path / "moved/runs/one/metrics.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "moved/runs/one/recipe.yaml", "--resume_from_checkpoint", "latest"]) == 0
    after = json.loads((tmp_path / "moved/runs/one/metrics.json").read_text())
    assert after["test"] == before["test"] and not (tmp_path / "runs").exists()


def test_evaluate_finds_the_data_of_a_run_from_elsewhere(project, monkeypatch):
    stored = yaml.safe_load((project / "runs/one/recipe.yaml").read_text())
    assert (stored["dataset"], stored["model"], stored["output_dir"]) == ("../../data/discs", "../../sam", ".")
    expected = json.loads((project / "runs/one/metrics.json").read_text())["test"]["none"]["adapted"]
    monkeypatch.chdir(project / "runs")
    # The model that an adapter's config names starts at the working directory, as in PEFT.
    for dataset in (None, "../data/discs", str(project / "data/discs")):
        found = evaluate_command(EvaluateArguments(adapter="one", model="../sam", dataset=dataset))
        assert found.test["none"]["adapted"] == pytest.approx(expected)


def test_a_given_data_set_is_no_matter_of_where_the_runs_own_lies(project, monkeypatch, tmp_path):
    """A published recipe names the folder alone; one of that name in the working directory may be given."""
    stored = yaml.safe_load((project / "runs/one/recipe.yaml").read_text())
    published = stored | {"dataset": "discs", "model": "sam", "prompts": ["box"]}
    (project / "runs/one/recipe.yaml").write_text(yaml.safe_dump(published))
    monkeypatch.chdir(project / "data")
    (project / "data/other").symlink_to("discs")
    for dataset, kinds in (("discs", ["box"]), ("other", ["none"])):
        arguments = EvaluateArguments(adapter="../runs/one", model="../sam", dataset=dataset)
        assert list(_chosen_data(arguments, EarlierRun.read("../runs/one"))["prompts"]) == kinds
    with pytest.raises(UserError, match=r"dataset: discs: paths in .* give it as a flag"):
        _chosen_data(EvaluateArguments(adapter="../runs/one"), EarlierRun.read("../runs/one"))
