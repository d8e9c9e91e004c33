"""Where `evaluate` may write: over an earlier evaluation, and over nothing else; said before anything is measured."""

import json

import pytest

from hf_sam_adapt.cli import evaluate as module
from hf_sam_adapt.cli import main


METRICS = json.dumps({"test": {}, "measured_on": "test"})
CASES = {
    "a file": ({"out": "mine"}, "out is a file"),
    "below a file": ({"out": "mine"}, "out is a file"),
    "another's files": ({"out/metrics.json": "{}", "out/worst.png": "mine"}, "metrics.json is there already"),
    "a picture": ({"out/confusion.png": "mine"}, "confusion.png is there already"),
    "a training": ({"out/metrics.json": json.dumps({**json.loads(METRICS), "train": {}})}, "is there already"),
    "a run": ({"out/recipe.yaml": ""}, "holds a run"),
    "logs": ({"run/recipe.yaml": "", "run/logs/metrics.json": METRICS}, "holds the logs of a run"),
    "below logs": ({"run/recipe.yaml": "", "run/logs/x": ""}, "holds the logs of a run"),
}
PLACES = {"below a file": "out/x/y", "logs": "run/logs", "below logs": "run/logs/deeper"}


@pytest.mark.parametrize("case", CASES)
def test_what_no_evaluation_has_written_stays(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    files, message = CASES[case]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    output = PLACES.get(case, "out")
    assert main(["evaluate", "--model", "tiny", "--dataset", "synthetic:polyp", "--output_dir", output]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.startswith("error: output_dir: ") and "IoU" not in said.out
    found = {p.relative_to(tmp_path).as_posix(): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    assert found == files


def test_an_earlier_evaluation_may_be_replaced_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "out").mkdir()
    for name, text in (("metrics.json", METRICS), ("worst.png", "earlier")):
        (tmp_path / "out" / name).write_text(text)
    arguments = module.EvaluateArguments(model="tiny", output_dir="~/out")
    assert module._checked(arguments, {"dataset": "x"}) == tmp_path / "out"
