"""Paths in files of keys: relative ones start at the file's folder, those of flags at the working directory."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError


# What a key's value may name that is no path, a regular expression in the metadata of its field; FILE: nothing.
FILE = r"(?!)"
MODEL = r"[^.].*"
DATASET = r"[\w-][\w.-]*/[\w.-]+"
NAME = r"\w+"
# Never a path, whatever lies there.
_WORD = re.compile(r"tiny|latest|none|null|synthetic:.*", re.IGNORECASE)

Change = Callable[[str, str, str], str]  # (key, value, what it may name that is no path) -> new value


def change_paths(cls: type, values: Mapping[str, Any], change: Change) -> dict[str, Any]:
    """The values of those keys of the dataclass `cls` that take paths, with `change` applied to each path.

    In mappings, as `domains` holds them, that is the value of `dataset`, or the single one of `{name: dataset}`.
    """

    def changed(value: Any, key: str, names: str) -> Any:
        if isinstance(value, str):
            return change(key, value, names) if value and not _WORD.fullmatch(value) else value
        if isinstance(value, list):
            return [changed(one, key, names) for one in value]
        if isinstance(value, dict):
            of_path = {"dataset"} if "dataset" in value else set(value) if len(value) == 1 else set()
            return {name: changed(one, key, names) if name in of_path else one for name, one in value.items()}
        return value

    kinds = {field.name: field.metadata["path"] for field in dataclasses.fields(cls) if field.metadata.get("path")}
    return {key: changed(values[key], key, names) for key, names in kinds.items() if key in values}


def found_from(file: str | Path) -> Change:
    """Paths as `file` holds them -> paths from the working directory.

    Raises:
        UserError: nothing is there beside the file, but in the working directory.
    """
    folder = os.path.dirname(file)

    def change(key: str, value: str, names: str) -> str:
        beside = os.path.normpath(os.path.join(folder, os.path.expanduser(value)))
        if names == FILE or os.path.exists(beside):
            return beside
        if os.path.exists(value):
            raise UserError(
                f"{value}: paths in {file} start at its folder, where there is none",
                key=key,
                fix=f"write {_from_folder(value, folder)} there, or give it as a flag",
            )
        return value if re.fullmatch(names, value) else beside

    return change


def stored_in(folder: str | Path) -> Change:
    """Paths from the working directory -> as a file in `folder` holds them; absolute ones stay, but for `folder`."""

    def change(key: str, value: str, names: str) -> str:
        if names == FILE and os.path.abspath(value) == os.path.abspath(folder):
            return os.curdir
        kept = os.path.isabs(os.path.expanduser(value)) or _is_name(value, names)
        return value if kept else _from_folder(value, folder)

    return change


def absolute(key: str, value: str, names: str) -> str:
    """A `Change` of paths from the working directory, for comparing them."""
    return value if _is_name(value, names) else os.path.abspath(os.path.expanduser(value))


def _is_name(value: str, names: str) -> bool:
    return re.fullmatch(names, value) is not None and not os.path.exists(os.path.expanduser(value))


def _from_folder(value: str, folder: str | Path) -> str:
    try:
        path = Path(os.path.relpath(value, folder or os.curdir)).as_posix()
    except ValueError:  # another drive of Windows
        return os.path.abspath(value)
    # With its dot it is not taken for the name of a repository.
    return path if path.split("/")[0] in (os.curdir, os.pardir) else f"./{path}"
