"""Help that comes without torch, and what a command says of missing packages and of the next command."""

import dataclasses
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hf_sam_adapt import __version__, errors, load_segmentation_dataset
from hf_sam_adapt.cli import main, next_command
from hf_sam_adapt.cli.arguments import (
    ConvertArguments,
    DoctorArguments,
    EstimateArguments,
    EvaluateArguments,
    ExportTinyArguments,
    PredictArguments,
)
from hf_sam_adapt.cli.commands import COMMANDS, PROG
from hf_sam_adapt.config.continual_recipe import ContinualRecipe
from hf_sam_adapt.config.help import GROUPS
from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.errors import EXTRAS, UserError
from hf_sam_adapt.metrics import PROMPTLESS_METRICS
from hf_sam_adapt.names import METRIC_NAMES


HEAVY = ("torch", "transformers", "peft", "datasets", "numpy", "accelerate", "huggingface_hub", "PIL", "gradio")
HELP = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
METAVARS = {"INT", "FLOAT", "BOOL", "TEXT", "CHOICE", "MAPPING", "PATH", "PATH_OR_ID"}


def help_of(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("argv", HELP, ids=" ".join)
def test_help_loads_none_of_the_libraries(argv):
    code = f"""
import sys
from hf_sam_adapt.cli import main
try:
    status = main({argv})
except SystemExit as ended:
    status = ended.code
assert not status, status
print("loaded:", *sorted(set({HEAVY}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"hf-sam-adapt {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_can_be_typed_and_one_word_a_type(name, capsys):
    shown = help_of(name, capsys)
    examples = re.findall(rf"^  {PROG} {name} (.*)$", shown, re.MULTILINE)
    assert examples and shown.index(examples[0]) < shown.index("everyday:")
    for example in examples:
        assert COMMANDS[name].parse(name, shlex.split(example)) is not None
    for metavar in re.findall(r"^  --\w+ (\S+|\[\S+ \.\.\.\])(?:  |$)", shown, re.MULTILINE):
        words = metavar.strip("[.]").split()[0]
        assert words in METAVARS or set(words.split("|")) <= METAVARS, metavar


def test_help_of_a_training_is_in_groups(capsys):
    shown = help_of("train", capsys)
    titles = re.findall(r"^(\w[\w ]*):$", shown, re.MULTILINE)
    assert titles == ["for example", "everyday", *GROUPS]
    assert shown.index("everyday:") < shown.index("--dataset P") < shown.index("data:") < shown.index("--mask_suffix")


def test_every_key_of_a_group_is_that_of_a_command():
    known = {
        field.name for name in COMMANDS for field in dataclasses.fields(type(COMMANDS[name].parse(name, ARGV[name])))
    }
    grouped = [key for keys in GROUPS.values() for key in keys]
    assert set(grouped) <= known and len(set(grouped)) == len(grouped)


ARGV = {name: ["--domains", "synthetic:polyp"] if name == "continual" else [] for name in COMMANDS}


def test_convert_shows_its_two_jobs_apart_and_calls_its_flag_from(capsys):
    shown = help_of("convert", capsys)
    checkpoint, annotations = shown.index("of a checkpoint:"), shown.index("of annotations:")
    assert checkpoint < shown.index("--lora_alpha") < annotations < shown.index("--images")
    assert "--from CHOICE" in shown and "--format" not in shown


@pytest.mark.parametrize("flag", ["--from", "--format"])
@pytest.mark.parametrize("joined", [False, True])
def test_from_and_its_synonym(flag, joined):
    argv = ["photos", *([f"{flag}=labelme"] if joined else [flag, "labelme"])]
    assert COMMANDS["convert"].parse("convert", argv).format == "labelme"
    with pytest.raises(UserError, match=r"^from: 'lableme' is not one of sam-adapter"):
        COMMANDS["convert"].parse("convert", [word.replace("labelme", "lableme") for word in argv])


@pytest.mark.parametrize("key", ["from", "format"])
def test_from_and_its_synonym_in_a_file(key, tmp_path):
    (tmp_path / "convert.yaml").write_text(f"{key}: coco")
    assert COMMANDS["convert"].parse("convert", ["--config", str(tmp_path / "convert.yaml")]).format == "coco"


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"]], ids=" ".join)
def test_a_reader_that_stops_early_is_no_error(argv):
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_sam_adapt.cli", *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()  # long before the first line is written
    assert process.stderr.read() == b"" and process.wait() == 141


def test_extras_are_those_of_the_package():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for extra, packages in EXTRAS.items():
        required = {re.split(r"[<>=]", text)[0] for text in project["optional-dependencies"][extra]}
        assert {name for name in required if not name.startswith("hf-sam-adapt[")} == set(packages)


@pytest.fixture
def core_only(monkeypatch):
    """As if no extra were installed."""
    monkeypatch.setattr(errors, "find_spec", lambda name: None)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.extra])
def test_a_command_names_the_extra_that_it_needs(name, core_only, capsys):
    assert main([name, *ARGV[name]]) == 2
    shown = capsys.readouterr()
    extra = COMMANDS[name].extra
    assert shown.out == "" and shown.err.count("\n") == 1
    assert shown.err.startswith(f"error: {name} needs {EXTRAS[extra][0]}")
    assert shown.err.endswith(f"run pip install 'hf-sam-adapt[{extra}]'\n")


@pytest.mark.parametrize(
    "package", ["scipy.ndimage", "tifffile", "matplotlib.figure", "gradio", "pycocotools.coco", "onnxruntime"]
)
def test_a_package_that_is_missed_late_is_named_with_its_extra(package, capsys):
    def late():
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    assert errors.exit_status(late) == 2
    root = package.partition(".")[0]
    assert f"this needs {root}, which is not installed; run pip install 'hf-sam-adapt[" in capsys.readouterr().err


def test_a_module_of_no_extra_keeps_its_traceback():
    def broken():
        raise ModuleNotFoundError("No module named 'nonsense'", name="nonsense")

    with pytest.raises(ModuleNotFoundError, match="nonsense"):
        errors.exit_status(broken)


def test_the_library_names_the_extra_too(core_only):
    with pytest.raises(UserError, match=r"reading a data set needs datasets, .*hf-sam-adapt\[train\]") as raised:
        load_segmentation_dataset("synthetic:polyp")
    assert raised.value.code == "missing-extra"


def test_names_of_metrics():
    assert METRIC_NAMES == tuple(PROMPTLESS_METRICS)


SPACED = "my runs/one"
NEXT = [
    (next_command.after_train, Recipe(output_dir=SPACED)),
    (next_command.after_evaluate, EvaluateArguments(adapter=SPACED, domain="polyp")),
    (next_command.after_evaluate, EvaluateArguments(model="tiny")),
    (next_command.after_predict, PredictArguments(adapter=SPACED)),
    (next_command.after_predict, PredictArguments(model="tiny")),
    (next_command.after_convert, ConvertArguments(format="coco", push="me/x")),
    (next_command.after_convert, ConvertArguments(format="cwsam", out=SPACED)),
    (next_command.after_convert, ConvertArguments(format="sam-pth", out=SPACED)),
    (next_command.after_export_tiny, ExportTinyArguments(folder=SPACED)),
]


@pytest.mark.parametrize(("function", "args"), NEXT)
def test_the_next_command_can_be_typed(function, args):
    name, *rest = shlex.split(shlex.join(function(args)))
    assert COMMANDS[name].parse(name, rest) is not None


@pytest.mark.parametrize("kind", [DoctorArguments, EstimateArguments])
def test_a_training_takes_the_keys_that_were_examined(kind):
    keys = {"dataset": "a b", "label_map": {1: 0, 2: 1}, "augment": ["none"], "channels": 4, "seed": 3}
    name, *rest = next_command.to_train(kind(**keys))
    recipe = COMMANDS[name].parse(name, rest)
    assert {key: getattr(recipe, key) for key in keys} == keys | {"augment": []}


def test_a_training_takes_the_recipe_that_was_examined(tmp_path):
    file = tmp_path / "recipe.yaml"
    keys = "method: cwsam\nlearning_rate: 0.001\nnum_labels: 2\nid2label: {0: red, 1: blue}\n"
    file.write_text(f"dataset: synthetic:landcover\n{keys}")
    argv = ["--config", str(file), "--seed", "3"]
    args = COMMANDS["doctor"].parse("doctor", argv)
    assert next_command.config_of(argv) == next_command.config_of([f"--config={file}"]) == str(file)
    assert next_command.to_train(args, str(file)) == ["train", "--config", str(file), "--seed", "3"]


def test_after_a_continual_run_its_pool_or_its_last_task(tmp_path):
    recipe = ContinualRecipe(domains=["synthetic:polyp"], output_dir=str(tmp_path))
    for task in ("00-a", "01-b"):
        (tmp_path / "tasks" / task).mkdir(parents=True)
    assert next_command.after_continual(recipe)[-1] == str(tmp_path / "tasks/01-b")
    (tmp_path / "pool").mkdir()
    assert next_command.after_continual(recipe)[-1] == str(tmp_path / "pool")


@pytest.mark.slow
def test_commands_print_no_chatter_and_end_with_the_next_one(tmp_path):
    recipe = [
        "--dataset",
        "synthetic:polyp",
        "--max_steps",
        "2",
        "--gradient_checkpointing",
        "--output_dir",
        "run one",
    ]
    runs = [
        ["export-tiny", "tiny"],
        ["train", "--model", "tiny", *recipe],
        ["predict", "a.png", "--adapter", "run one"],
    ]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    from PIL import Image

    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    for argv in runs:
        command = [sys.executable, "-m", "hf_sam_adapt.cli", *argv]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith("Next: hf-sam-adapt ")
        for chatter in ("Loading weights", "Writing model", "Warning", "warn("):
            assert chatter not in done.stderr + done.stdout, done.stderr
