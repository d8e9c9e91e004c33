"""The forge's files: workflows call the Makefile alone, actions are pinned, permissions are few."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([\w-]+):(?!=)", MAKEFILE, re.MULTILINE))
MAY_WRITE = {("release.yml", "publish"): {"id-token"}, ("pages.yml", "deploy"): {"id-token", "pages"}}


def load(path):
    # YAML 1.1 reads the key `on` as true.
    return {("on" if key is True else key): value for key, value in yaml.safe_load(path.read_text()).items()}


def steps(path):
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def test_the_workflows_that_there_are():
    assert [path.stem for path in WORKFLOWS] == ["ci", "nightly", "pages", "release"]
    called = {step["run"].split()[1] for path in WORKFLOWS for step in steps(path) if "run" in step}
    assert {"lint", "test", "test-slow", "documents", "conformance", "docs", "dist", "main-branches"} == called


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_steps_call_the_makefile_and_nothing_else(path):
    for command in (step["run"] for step in steps(path) if "run" in step):
        matched = re.fullmatch(r'make ([\w-]+)((?: [A-Z]+=(?:\w+|"\$\w+"|\$\{\{ matrix\.\w+ \}\}))*)', command)
        assert matched, command
        assert matched[1] in TARGETS, command
        for variable in re.findall(r" ([A-Z]+)=", matched[2]):
            assert re.search(rf"\$\({variable}\)", MAKEFILE), variable


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_actions_are_pinned_by_commit_with_their_version_beside(path):
    lines = re.findall(r"^\s*(?:- )?uses: (.*)$", path.read_text(), re.MULTILINE)
    assert len(lines) == sum("uses" in step for step in steps(path)) > 0
    for line in lines:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line), line
    for step in steps(path):
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_an_action_has_one_version():
    used = {line for path in WORKFLOWS for line in re.findall(r"uses: (.*)$", path.read_text(), re.MULTILINE)}
    assert len({line.split("@")[0] for line in used}) == len(used)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_permissions_are_minimal_and_jobs_end(path):
    content = load(path)
    assert content["permissions"] == {"contents": "read"}
    for name, job in content["jobs"].items():
        given = {key for key, value in job.get("permissions", {}).items() if value == "write"}
        assert given == MAY_WRITE.get((path.name, name), set())
        assert job["timeout-minutes"] <= 180
        # Text from outside reaches a shell through the environment only.
        assert not any("${{ github." in step.get("run", "") for step in job["steps"])
    assert "secrets." not in path.read_text()


def test_every_python_is_tested_with_oldest_and_newest_dependencies():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    supported = {text.rpartition(" ")[2] for text in project["classifiers"] if "Python :: 3." in text}
    matrix = load(ROOT / ".github/workflows/ci.yml")["jobs"]["tests"]["strategy"]["matrix"]["include"]
    assert {entry["python"] for entry in matrix} == supported
    constraints = {entry["constraints"] for entry in matrix}
    assert constraints == {"constraints.txt", "constraints-oldest.txt", ""}
    assert all((ROOT / name).is_file() for name in constraints if name)


def test_actionlint_agrees():
    program = shutil.which("actionlint")
    if program is None:
        pytest.skip("actionlint is not installed")
    done = subprocess.run([program, *map(str, WORKFLOWS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_hooks_are_those_of_make_lint():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1]
    for hook in hooks:
        program, *words = hook["entry"].replace(" --force-exclude", "").removeprefix(".venv/bin/").split()
        assert f"$(BIN)/{program} {' '.join(words)} ." in lint


def test_the_other_files_parse():
    for path in [*(ROOT / ".github").glob("*.yml"), *(ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")]:
        assert isinstance(yaml.safe_load(path.read_text()), dict), path
    for name in ("bug", "feature"):
        form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
        assert {"name", "description", "body"} <= form.keys()
        identifiers = [field["id"] for field in form["body"]]
        assert len(set(identifiers)) == len(identifiers)
    ecosystems = yaml.safe_load((ROOT / ".github/dependabot.yml").read_text())["updates"]
    assert {entry["package-ecosystem"] for entry in ecosystems} == {"github-actions", "pip"}
