"""Dataclasses as command-line arguments: a YAML file, flags over it, dotted flags for nested keys, clear errors."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import os
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from ..errors import UserError, one_line
from .help import GROUPS, help_parser
from .hints import members, takes_many
from .paths import change_paths, found_from


T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML's safe loader as YAML 1.2 has it: 1e-3 is a number, which YAML 1.1 takes for text, and keys are unique."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def option(default: Any, help: str, path: str | None = None, flag: str | None = None) -> Any:
    """A field of such a dataclass with its help; a list or dictionary is copied for each object.

    Args:
        path: of a field that takes paths, what else it may name: `FILE`, `MODEL`, `DATASET` or `NAME` of `paths`.
        flag: its name to users where Python reserves that, such as `from`; the field's own is a synonym.
    """
    metadata = {"help": help, "path": path, "flag": flag}
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def parse_arguments(
    cls: type[T],
    argv: list[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
    positional: str | None = None,
    also_in_config: type | None = None,
    examples: Sequence[str] = (),
    groups: Mapping[str, Sequence[str]] = GROUPS,
) -> T:
    """Build the dataclass `cls` from `--config file.yaml` and `--key value` flags; flags win.

    Lists are space-separated (`--prompts none box`), nested keys dotted (`--method_args.r 8`). Relative paths in the
    file start at its folder, those of flags at the working directory.

    Args:
        cls: dataclass whose fields carry `metadata={"help": ...}`.
        argv: arguments without the program's name, `sys.argv[1:]` when None.
        prog, description: shown by `--help`.
        positional: field that takes the arguments without a flag.
        also_in_config: another dataclass whose keys the file may hold too; they are left out.
        examples, groups: command lines, and the keys under each heading, that `--help` shows.

    Raises:
        UserError: unreadable file, unknown key or flag (with the nearest name), one that is given twice, a value of
            another type than expected.
    """
    argv = sys.argv[1:] if argv is None else argv
    if "-h" in argv or "--help" in argv:
        parser = help_parser(cls, prog, description, positional=positional, examples=examples, groups=groups)
        print(parser.format_help(), end="")
        raise SystemExit(0)
    hints = typing.get_type_hints(cls)
    fields = {flag: name for name, flag in _flags(cls).items()}
    given = _split(argv, hints, positional, fields)
    values: dict[str, Any] = {}
    for path in given.pop("config", []):
        values = {fields.get(key, key): value for key, value in read_yaml(path).items()}
        if also_in_config is not None:
            elsewhere = {field.name for field in dataclasses.fields(also_in_config)} - hints.keys()
            values = {key: value for key, value in values.items() if key not in elsewhere}
            if "adapter" in hints and "adapter" not in given:
                _check_no_run(Path(path))
        _check_keys(values, hints, path)
        flags = {key.partition(".")[0] for key in given}
        values |= change_paths(cls, {k: v for k, v in values.items() if k not in flags}, found_from(path))
    for key, strings in given.items():
        name, _, inner = key.partition(".")
        if inner:
            values[name] = _with_nested(name, values.get(name), inner, _nested_value(key, strings))
        else:
            text_too = len(strings) == 1 and str in members(hints[name])
            values[name] = strings if takes_many(hints[name]) and not text_too else strings[0]
    # A shell leaves the ~ of `--adapter=~/runs/polyp` as it is.
    values |= change_paths(cls, values, lambda key, value, names: os.path.expanduser(value))
    return from_values(cls, values)


def from_values(cls: type[T], values: dict[str, Any], source: str = "arguments") -> T:
    """The dataclass `cls` from untyped values, as a YAML file holds them; `source` names them in errors.

    A class method `complete(values)` of `cls` adds what one value implies for others.
    """
    hints = typing.get_type_hints(cls)
    _check_keys(values, hints, source)
    complete = getattr(cls, "complete", None)
    values = values if complete is None else complete(values)
    flags = _flags(cls)
    return cls(**{name: coerce(flags.get(name, name), value, hints[name]) for name, value in values.items()})


def from_file(cls: type[T], path: str | Path) -> T:
    """The dataclass `cls` out of a YAML file of its keys, with paths as `parse_arguments` reads them."""
    values = read_yaml(path)
    return from_values(cls, values | change_paths(cls, values, found_from(path)), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; a `UserError` where there is none."""
    try:
        content = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"{error.strerror or error}", where=f"--config {path}", code="config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"not valid YAML ({one_line(error)})", where=f"--config {path}", code="config") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(
            f"must hold keys and values, not {type(content).__name__}", where=f"--config {path}", code="config"
        )
    return {str(key): value for key, value in content.items()}


def coerce(key: str, value: Any, hint: Any) -> Any:
    """`value` (from YAML, or the strings of a flag) as the type `hint`; a `UserError` names key, value and type."""
    try:
        return _coerce(value, hint)
    except (TypeError, ValueError, yaml.YAMLError):
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        raise UserError(f"'{shown}' is not {_describe(hint)}", key=key) from None


def _flags(cls: type) -> dict[str, str]:
    """Field -> the flag by which users know it, where the two differ."""
    return {field.name: field.metadata["flag"] for field in dataclasses.fields(cls) if field.metadata.get("flag")}


def _split(
    argv: list[str], hints: dict[str, Any], positional: str | None, fields: dict[str, str]
) -> dict[str, list[str]]:
    """argv -> {field: its strings}, by `fields` of flags; what follows no flag is given to `positional`."""
    given: dict[str, list[str]] = {}
    bare: set[str | None] = set()  # `positional`, where it is given without its flag
    index = 0
    while index < len(argv):
        token = argv[index]
        index += 1
        if not token.startswith("--"):
            if positional is None or (positional in given and (not bare or not takes_many(hints[positional]))):
                raise UserError(
                    f"unexpected argument '{token}'", fix="a value follows its --key", code="unexpected-argument"
                )
            given.setdefault(positional, []).append(token)
            bare.add(positional)
            continue
        key, attached, text = token[2:].partition("=")
        key = fields.get(key, key)
        name, _, inner = key.partition(".")
        if name not in hints and key != "config":
            nearest = _nearest(name, [*hints, *fields, "config"])
            raise UserError(f"unknown flag --{key}", fix=nearest, code="unknown-key")
        hint = str if key == "config" else hints[name]
        values = [text] if attached else []
        many = bool(inner) or takes_many(hint)
        while not attached and index < len(argv) and not argv[index].startswith("--") and (many or not values):
            values.append(argv[index])
            index += 1
        if not values and not many and bool in members(hint):
            values = ["true"]
        if not values:
            raise UserError(f"--{key} needs a value", code="no-value")
        if key in given or (not inner and any(other.startswith(f"{key}.") for other in given)):
            also = f", also as '{' '.join(given[key])}' without it" if key in bare else ""
            fix = "put the keys into one file, flags come after it" if key == "config" else "give it once"
            raise UserError(f"{token.partition('=')[0]} is given twice{also}", fix=fix, code="given-twice")
        given[key] = values
    return given


def _with_nested(name: str, value: Any, dotted_key: str, entry: Any) -> dict:
    """Copy of the mapping `value` with `entry` at `dotted_key`."""
    result = copy.deepcopy(value) if value is not None else {}
    target, path = result, name
    *parents, last = dotted_key.split(".")
    for parent in parents:
        if isinstance(target, dict):
            target, path = target.setdefault(parent, {}), f"{path}.{parent}"
    if not isinstance(target, dict):
        raise UserError(f"--{name}.{dotted_key}: {path} is '{target}', not a mapping")
    target[last] = entry
    return result


def _nested_value(key: str, strings: list[str]) -> Any:
    """One string as YAML reads it, several as a list of such."""
    if len(strings) > 1:
        return [_nested_value(key, [string]) for string in strings]
    try:
        return yaml.load(strings[0], _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML ({one_line(error)})", key=key) from error


def _check_keys(values: dict[str, Any], hints: dict[str, Any], source: str | Path) -> None:
    for key in values:
        if key not in hints:
            raise UserError(f"unknown key '{key}'", where=source, fix=_nearest(key, hints), code="unknown-key")


def _check_no_run(file: Path) -> None:
    """Refuse the recipe of a run, which names the model before the training, in place of the run."""
    if file.name == "recipe.yaml" and any(
        (file.parent / name).is_file() for name in ("adapter_config.json", "config.json")
    ):
        fix = f"name the run by --adapter {file.parent}, or the plain SAM by --adapter none"
        raise UserError(f"not given, and {file} is that of a run", key="adapter", fix=fix)


def _nearest(name: str, known: typing.Iterable[str]) -> str | None:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else None


def _coerce(value: Any, hint: Any) -> Any:
    alternatives = members(hint)
    if value is None or (isinstance(value, str) and value.lower() in ("none", "null") and type(None) in alternatives):
        if type(None) in alternatives:
            return None
        raise TypeError
    for member in alternatives:
        if member is type(None):
            continue
        try:
            return _coerce_one(value, member)
        except (TypeError, ValueError):
            continue
    raise TypeError


def _coerce_one(value: Any, hint: Any) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        # YAML reads a bare `no` as false.
        value = "no" if value is False and "no" in inner else value
        if value in inner:
            return value
        raise ValueError
    if origin is list:
        items = value if isinstance(value, (list, tuple)) else [value]
        return [_coerce(item, inner[0]) for item in items]
    if hint is dict or origin is dict:
        value = yaml.load(value, _Loader) if isinstance(value, str) else value
        if not isinstance(value, dict):
            raise TypeError
        return {_coerce(k, inner[0]): _coerce(v, inner[1]) for k, v in value.items()} if inner else value
    if hint is bool:
        value = yaml.safe_load(value) if isinstance(value, str) else value
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(value, (bool, dict, list)):
        raise TypeError
    if hint is int and isinstance(value, float):
        raise TypeError
    return hint(value)


def _describe(hint: Any) -> str:
    return " or ".join(_describe_member(member) for member in members(hint))


def _describe_member(hint: Any) -> str:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin is list:
        return f"a list, each item {_describe(inner[0])}"
    if hint is dict or origin is dict:
        return "a mapping such as {key: value}"
    return {int: "an integer", float: "a number", bool: "true or false", str: "text", type(None): "empty"}[hint]
