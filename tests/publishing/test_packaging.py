"""The distributions: one version, a page that PyPI can show, headers for job runners, an installation from nothing."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from hf_sam_adapt import __version__
from hf_sam_adapt.errors import EXTRAS


ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "recipes").glob("*.py"))
HEADER = re.compile(r"^# /// script\n((?:#(?:| .*)\n)+)# ///\n", re.MULTILINE)
MOST_BYTES = 25 * 2**20
QUICKSTART = [  # README's own commands, on drawn images
    ["doctor", "synthetic:speckle"],
    ["train", "--dataset", "synthetic:speckle", "--max_steps", "2", "--output_dir", "runs/quickstart"],
    ["evaluate", "runs/quickstart"],
    ["predict", "photo.png", "--adapter", "runs/quickstart", "--output_dir", "masks"],
]


@pytest.fixture(scope="module")
def tomllib():
    return pytest.importorskip("tomllib")


@pytest.fixture(scope="module")
def project(tomllib):
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_distributions", ROOT / ".ci/build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_version_stands_in_one_place(project, build):
    assert project["dynamic"] == ["version"] and "version" not in project
    assert build.version() == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" and __version__ in headings


def test_names_and_addresses(project, build):
    assert project["name"] == "hf-sam-adapt" and list(project["scripts"]) == ["hf-sam-adapt"]
    assert project["urls"]["Homepage"] == build.REPOSITORY
    assert build.REPOSITORY.endswith("/hf-sam-adapt")  # `hf extensions install OWNER/hf-sam-adapt`
    for path in [*ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.yml")]:
        for address in re.findall(r"https://github\.com/[\w-]+/hf-sam-adapt", path.read_text()):
            assert address == build.REPOSITORY, path


@pytest.mark.parametrize(
    ("tag", "date", "reason"),
    [
        (f"v{__version__}", "2026-12-01", None),
        (f"v{__version__}", "not released", "has no heading"),
        ("v99.0.0", "2026-12-01", "is not v"),
        (__version__, "2026-12-01", "is not v"),
    ],
)
def test_a_tag_that_version_or_changelog_contradicts_is_not_built(build, tag, date, reason):
    found = build.what_forbids(tag, f"# Changelog\n\n## [{__version__}] - {date}\n")
    assert found is None if reason is None else reason in found


def test_readme_on_pypi_has_absolute_links(build):
    readme = (ROOT / "README.md").read_text()
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", readme)
    shown = build.absolute(readme, "v1.2.3")
    assert targets and re.findall(r"\]\((?!https?:|#)", shown) == []
    for target in targets:
        kind = "raw" if target.endswith(".png") else "blob"
        assert f"]({build.REPOSITORY}/{kind}/v1.2.3/{target}" in shown


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_say_what_they_need(path, tomllib, project):
    """PEP 723, which `uv run` and job runners read."""
    (block,) = HEADER.findall(path.read_text())
    header = tomllib.loads("".join(line.removeprefix("#").removeprefix(" ") for line in block.splitlines(True)))
    assert header["requires-python"] == project["requires-python"]
    (needed,) = header["dependencies"]
    name, extra = re.fullmatch(r"([\w-]+)\[(\w+)\]", needed).groups()
    assert name == project["name"] and extra in EXTRAS
    known = set(project["optional-dependencies"][extra]) | set(project["dependencies"])
    known = {re.split(r"[<>=\[]", text)[0].replace("-", "_") for text in known} | {"PIL", "yaml", "hf_sam_adapt"}
    beside = {other.stem for other in (ROOT / "recipes").iterdir()}
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - known - beside - set(sys.stdlib_module_names) == set()


@pytest.fixture(scope="module")
def distributions(tmp_path_factory, build):
    """Folder with the wheel and the source distribution, built as `make dist` does."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run([sys.executable, ROOT / ".ci/build.py", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("distributions")
def test_the_wheel_holds_the_package_and_nothing_else(distributions):
    wheel, sdist = distributions / f"hf_sam_adapt-{__version__}-py3-none-any.whl", next(distributions.glob("*.tar.gz"))
    assert sdist.name == f"hf_sam_adapt-{__version__}.tar.gz"
    assert max(wheel.stat().st_size, sdist.stat().st_size) <= MOST_BYTES
    inside = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    tracked = subprocess.run(["git", "ls-files", "hf_sam_adapt"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert inside == set(tracked.stdout.splitlines())
    metadata = zipfile.ZipFile(wheel).read(f"hf_sam_adapt-{__version__}.dist-info/METADATA").decode()
    assert "Typing :: Typed" in metadata and "](docs/" not in metadata


@pytest.mark.slow
@pytest.mark.xdist_group("distributions")
@pytest.mark.timeout(3000)
def test_a_stranger_installs_the_wheel_and_follows_the_quickstart(distributions, tmp_path):
    """In an empty folder and an empty environment, without the checkout."""
    from PIL import Image

    work = tmp_path / "work"
    work.mkdir()
    Image.new("RGB", (60, 40), (90, 120, 60)).save(work / "photo.png")
    shutil.copy(ROOT / "recipes/train.py", work)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    programs = tmp_path / "venv/bin"
    (wheel,) = distributions.glob("*.whl")
    install = [programs / "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", f"{wheel}[train]"]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HF_"))}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    commands = [[programs / "hf-sam-adapt", *argv] for argv in (["--version"], *QUICKSTART)]
    commands.append([programs / "python", "train.py", *QUICKSTART[1][1:], "--output_dir", "runs/script"])
    for command in commands:
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-3000:])
    assert (work / "runs/script/adapter_model.safetensors").is_file()
    assert (work / "masks/photo_mask.png").is_file()
