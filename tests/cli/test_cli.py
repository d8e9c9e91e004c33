"""The command line: help, exit status, one line per mistake."""

import pytest
import torch

from hf_sam_adapt import cli
from hf_sam_adapt.cli import commands
from hf_sam_adapt.distributed import SampleLoader
from hf_sam_adapt.errors import UserError, exit_status


COMMANDS = ("train", "evaluate", "predict", "doctor", "export-tiny")


def test_help_lists_the_commands(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {command} " in shown for command in COMMANDS)
    assert cli.main([]) == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"usage: hf-sam-adapt {command}" in shown and "default:" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian'"),
        (["train", "--dateset", "x"], "unknown flag --dateset; did you mean 'dataset'?"),
        (["train", "--dataset", "nowhere/at/all"], "nowhere/at/all"),
        (["train", "--epochs", "many"], "epochs: 'many' is not an integer"),
        (["evaluate", "--promts", "box"], "unknown flag --promts; did you mean 'prompts'?"),
        (["evaluate", "nowhere/at/all", "--dataset", "synthetic:polyp"], "nowhere/at/all"),
        (["predict", "--adaptor", "x"], "unknown flag --adaptor; did you mean 'adapter'?"),
        (["predict", "nowhere.png"], "nowhere.png"),
        (["export-tiny"], "export-tiny needs the folder"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in error and not list(tmp_path.iterdir())


def test_ctrl_c_is_130_and_other_errors_keep_their_traceback(monkeypatch, capsys):
    def interrupted(name, argv):
        raise KeyboardInterrupt

    def broken(name, argv):
        raise RuntimeError("a bug")

    def refused(name, argv):
        raise UserError("two\nlines")

    monkeypatch.setitem(commands.COMMANDS, "train", interrupted)
    assert cli.main(["train"]) == 130
    monkeypatch.setitem(commands.COMMANDS, "train", refused)
    assert cli.main(["train"]) == 2 and "error: two lines\n" in capsys.readouterr().err
    monkeypatch.setitem(commands.COMMANDS, "train", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["train"])


def test_a_runs_recipe_is_accepted_by_every_command(tmp_path, capsys, monkeypatch):
    from hf_sam_adapt.config.recipe import Recipe

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = tmp_path / "recipe.yaml"
    config.write_text(Recipe(dataset=str(tmp_path / "nowhere"), output_dir=str(tmp_path / "out")).to_yaml())
    for argv in (["train"], ["evaluate"], ["predict", str(tmp_path / "nowhere.png")]):
        assert cli.main([*argv, "--config", str(config)]) == 2
        error = capsys.readouterr().err
        assert "nowhere" in error and "unknown key" not in error


def test_export_tiny_does_not_overwrite(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert cli.main(["export-tiny", str(tmp_path)]) == 2
    assert "not an empty folder" in capsys.readouterr().err


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("a.png: corrupt file; replace it")


def test_a_mistake_found_by_a_worker_process_is_one_line_too(capsys):
    loader = SampleLoader(Broken(), num_workers=1)
    assert exit_status(lambda: list(loader)) == 2
    assert capsys.readouterr().err == "error: a.png: corrupt file; replace it\n"


def test_an_exported_tiny_is_an_ordinary_model_folder(tmp_path):
    from transformers import SamModel

    from hf_sam_adapt import load_tiny_sam

    assert cli.main(["export-tiny", str(tmp_path / "tiny")]) == 0
    loaded = SamModel.from_pretrained(tmp_path / "tiny").state_dict()
    embedded = load_tiny_sam()[0].state_dict()
    assert loaded.keys() == embedded.keys() and all(torch.equal(loaded[name], embedded[name]) for name in loaded)
