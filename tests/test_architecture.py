"""The house: lower layers never import higher ones, lazily neither, and no module imports itself by a detour."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest


PACKAGE = "hf_sam_adapt"
ROOT = Path(__file__).parents[1]
LAYERS = [  # lowest first; what stands beside one another imports none of the others
    ["errors"],
    ["files", "distributed"],
    ["repository"],
    ["data"],
    ["prompts"],
    ["metrics", "losses"],
    ["sam"],
    ["upload"],
    ["config"],
    ["tuners"],
    ["inference"],
    ["evaluation"],
    ["reporting"],
    ["hub"],
    ["training"],
    ["continual", "estimate", "convert", "doctor", "demo"],
    ["cli"],
]
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
# Loaded by `evaluate` as scripts of their own.
SCRIPTS = "evaluate_modules"


def modules(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    named = {}
    for path in sorted((root / PACKAGE).rglob("*.py")):
        if SCRIPTS not in path.parts:
            parts = path.relative_to(root).with_suffix("").parts
            named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return named


def imported(name: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """The package's modules that a module imports, and whether it does so when it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    at_once = {id(node) for node in tree.body}
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        targets: list[str] = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            inside = [f"{base}.{alias.name}" for alias in node.names]
            targets = [full if full in known else base for full in inside]
        for target in targets:
            if target in known and target != name:
                yield target, id(node) in at_once


def wrong_ways(root: Path) -> list[str]:
    """Imports from a lower layer to a higher one, or to one beside it."""
    known, wrong = modules(root), []
    for name, path in known.items():
        if name == PACKAGE:
            continue
        layer = name.split(".")[1]
        for target, _ in imported(name, path, known):
            if target == PACKAGE:  # its version; everything else of it is lazy
                continue
            other = target.split(".")[1]
            if other != layer and HEIGHT[other] >= HEIGHT[layer]:
                wrong.append(f"{name} imports {target}")
    return wrong


def cycle(root: Path) -> list[str] | None:
    """Modules that import one another in a circle, lazy imports counted; None where there is no such circle."""
    known = modules(root)
    # A package that gathers names imports its modules; a module's import of its own package is that of a neighbour.
    edges = {
        name: {target for target, _ in imported(name, path, known) if not name.startswith(f"{target}.")}
        for name, path in known.items()
    }
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str] | None:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return None
        for target in sorted(edges[name]):
            found = visit(target, [*way, name])
            if found is not None:
                return found
        done.add(name)
        return None

    return next(filter(None, (visit(name, []) for name in sorted(edges))), None)


def test_lower_layers_never_import_higher_ones():
    assert wrong_ways(ROOT) == []


def test_every_part_has_a_layer_and_there_are_few():
    top = [path for path in (ROOT / PACKAGE).iterdir() if path.name not in ("__pycache__", "py.typed")]
    folders = {path.name for path in top if path.is_dir()}
    files = {path.stem for path in top if path.suffix == ".py"} - {"__init__"}
    assert folders | files == set(HEIGHT)
    assert len(folders) <= 18 and len(files) <= 6


def test_no_module_imports_itself_by_a_detour():
    assert cycle(ROOT) is None


PLANTED = {
    "at the top": "from ..training.run import train\n",
    "lazily": "def late():\n    from ..training import run\n",
    "absolutely": "import hf_sam_adapt.cli\n",
    "beside": "from ..losses.points import x\n",
}


@pytest.mark.parametrize("how", PLANTED)
def test_a_wrong_import_is_noticed(how, tmp_path):
    for name in ("metrics/planted", "training/__init__", "training/run", "cli/__init__", "losses/points"):
        path = tmp_path / PACKAGE / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    assert wrong_ways(tmp_path) == []
    (tmp_path / PACKAGE / "metrics/planted.py").write_text(PLANTED[how])
    assert len(wrong_ways(tmp_path)) == 1
    typed = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..training.run import train\n"
    (tmp_path / PACKAGE / "metrics/planted.py").write_text(typed)
    assert wrong_ways(tmp_path) == []


def test_a_circle_is_noticed(tmp_path):
    folder = tmp_path / PACKAGE / "data"
    folder.mkdir(parents=True)
    (folder / "first.py").write_text("def late():\n    from .second import x\n")
    (folder / "second.py").write_text("from .third import y\n")
    (folder / "third.py").write_text("")
    assert cycle(tmp_path) is None
    (folder / "third.py").write_text("from . import first\n")
    assert cycle(tmp_path) == [f"{PACKAGE}.data.{name}" for name in ("first", "second", "third", "first")]
