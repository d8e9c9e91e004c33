"""PEFT's own tests as an importable package, with our methods in the places of PEFT's."""

import importlib
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
from cases import CLASS_WISE, NOT_APPLICABLE, POOL, PROMPTS, PRUNED, RESIZED

from hf_sam_adapt import L2pConfig


PACKAGE = "peft_upstream_tests"


def import_upstream(*names: str) -> list[ModuleType]:
    """Import modules of PEFT's tests from the folder in `PEFT_TESTS_DIR`.

    The folder is no package (no `__init__.py`), yet its modules import each other relatively, hence the synthetic one.

    Raises:
        RuntimeError: if the folder does not belong to the installed version of PEFT.
    """
    folder = Path(os.environ["PEFT_TESTS_DIR"])
    if folder.parent.name != f"peft-{version('peft')}" or not (folder / "test_custom_models.py").is_file():
        raise RuntimeError(f"PEFT_TESTS_DIR={folder} does not hold the tests of the installed peft {version('peft')}")
    if PACKAGE not in sys.modules:
        pytest.register_assert_rewrite(PACKAGE)
        package = ModuleType(PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[PACKAGE] = package
    with_stub = find_spec("diffusers") is None
    if with_stub:
        sys.modules["diffusers"] = _diffusers_stub()
    try:
        return [importlib.import_module(f"{PACKAGE}.{name}") for name in names]
    finally:
        if with_stub:
            del sys.modules["diffusers"]


def _diffusers_stub() -> ModuleType:
    """What PEFT's tests import from diffusers: one class, for an `isinstance`."""
    stub = ModuleType("diffusers")
    stub.__spec__ = ModuleSpec("diffusers", None)
    stub.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})
    return stub


def adopt(test_class: type, old: list | tuple, new: list[tuple], keep: tuple[str, ...] = ()) -> None:
    """Leave in a class of PEFT's the tests that are parametrised with the list `old`, and give them `new`.

    Args:
        test_class: the class, changed in place.
        old: the list in PEFT's module.
        new: our rows; those that do not fit a test, by `cases.py`, are skipped with the reason.
        keep: names of tests to leave as they are, though they are not parametrised.

    Raises:
        RuntimeError: if there is no such test, i.e. PEFT has changed its tests and nothing would be tested.
    """
    names = [name for name in vars(test_class) if name.startswith("test_")]
    adopted = [name for name in names if _replace_parameters(vars(test_class)[name], old, new)]
    if not adopted:
        raise RuntimeError(f"no test of PEFT's {test_class.__name__} is parametrised with the expected list")
    for name in set(names).difference(adopted, keep):
        delattr(test_class, name)


def _replace_parameters(function: Callable, old: list | tuple, new: list[tuple]) -> bool:
    marks = getattr(function, "pytestmark", [])
    for index, mark in enumerate(marks):
        if mark.name == "parametrize" and mark.args[1] is old:
            rows = [_with_reason(function.__name__, row) for row in new]
            marks[index] = pytest.mark.parametrize(mark.args[0], rows, *mark.args[2:], **mark.kwargs).mark
            return True
    return False


def _with_reason(test_name: str, row: tuple) -> tuple:
    reason = NOT_APPLICABLE.get(test_name)
    if row[-2] is L2pConfig:
        reason = PROMPTS.get(test_name, reason)
    if "domains" in row[-1]:
        reason = POOL.get(test_name, reason)
    if "image_size" in row[-1]:
        reason = RESIZED.get(test_name, reason)
    if "num_labels" in row[-1]:
        reason = CLASS_WISE.get(test_name, reason)
    if row[-1].keys() & {"num_mask_tokens", "num_labels"} or row[-1].get("decoder") == "hq":
        reason = PRUNED.get(test_name, reason)
    return pytest.param(*row, marks=pytest.mark.skip(reason=reason)) if reason else row
