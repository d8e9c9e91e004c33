"""What agents are told: commands and flags that exist, files that exist, and nothing left out."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml

from hf_sam_adapt.cli import main
from hf_sam_adapt.cli.commands import COMMANDS, PROG
from hf_sam_adapt.config.recipe import Recipe


ROOT = Path(__file__).parents[2]
SKILL = ROOT / "skills/hf-sam-adapt/SKILL.md"
PAGES = [SKILL, ROOT / "AGENTS.md", ROOT / "docs/other_repositories.md", ROOT / "docs/cluster.md"]


def inline(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def typed(page):
    """Command lines of this package on a page."""
    return [code for code in inline(page) if code.startswith(f"{PROG} ") and code.split()[1] in COMMANDS]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_can_be_typed(page):
    for line in typed(page):
        name, *words = shlex.split(line.removeprefix(f"{PROG} "))
        if words != ["--help"]:
            assert COMMANDS[name].parse(name, words) is not None, line


@pytest.fixture(scope="module")
def every_flag():
    """Of all commands, as `--help` shows them."""
    import contextlib
    import io

    shown = io.StringIO()
    for name in COMMANDS:
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            main([name, "--help"])
    return set(re.findall(r"^  --(\w+)", shown.getvalue(), re.MULTILINE)) | {"config", "help"}


@pytest.mark.parametrize("page", [SKILL], ids=lambda page: page.name)
def test_flags_are_those_of_help(page, every_flag):
    named = {flag for code in inline(page) for flag in re.findall(r"--(\w+)", code)}
    assert named - every_flag - {"version"} == set()


def test_flags_of_the_right_hand_column_are_those_of_help(every_flag):
    """In the table of other repositories' commands the last cell of a row is ours."""
    rows = re.findall(r"^\| .* \| (.*) \|$", (ROOT / "docs/other_repositories.md").read_text(), re.MULTILINE)
    launch = {"num_processes"}  # accelerate's
    named = {flag for cell in rows for flag in re.findall(r"--(\w+)", cell)}
    assert len(named) > 20 and named - every_flag - launch == set()
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert {"loss", "epochs", "palette"} < named & fields


def test_the_skill_names_every_command():
    used = {line.split()[1] for line in typed(SKILL)}
    assert used == set(COMMANDS)


def test_the_head_of_the_skill_is_what_agents_read():
    head = yaml.safe_load(SKILL.read_text().split("---\n")[1])
    assert head["name"] == SKILL.parent.name == PROG
    assert 100 < len(head["description"]) <= 1024


@pytest.mark.parametrize("page", [SKILL, ROOT / "AGENTS.md"], ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert all((page.parent / link).exists() for link in links)
    if page.name == "AGENTS.md":
        folders = [code for code in inline(page) if "/" in code and re.fullmatch(r"[\w./-]+", code)]
        assert folders and all((ROOT / path).exists() for path in folders), folders
        targets = set(re.findall(r"^([\w-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert set(re.findall(r"^make ([\w-]+)", page.read_text(), re.MULTILINE)) <= targets
