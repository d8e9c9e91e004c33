"""Names that become part of a path, and files that a crash leaves old or new, never half written."""

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import UserError, first_line


_PLAIN = re.compile(r"[^/\\:\x00-\x1f]+")
BASE = "base"  # plain SAM, among the domains of a pool
RESERVED = ("auto", BASE, "__base__", "checkpoints", "logs")


def is_plain_name(name: object) -> bool:
    """Whether `name`, as a file holds it, is the name of an entry of a folder: no separator, no drive, no way up."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None and name.strip(". ") != ""


def plain_name(name: str) -> str:
    """`name` with `_` for whatever keeps it from being one, such as the separators of another system's path."""
    return "_".join(_PLAIN.findall(name)).lstrip(".") or "_"


def holds_run(folder: Path) -> bool:
    """Whether a folder is that of a run, an adapter or a model, which other results do not belong into."""
    return any((folder / name).exists() for name in ("recipe.yaml", "adapter_config.json", "config.json"))


def follow_umask(folder: Path) -> None:
    """Give the safetensors files of a folder the mode of any new file; safetensors itself writes them as 0600."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~umask)


def check_domain_name(name: str, taken: list[str]) -> None:
    """Raise `UserError` unless `name` can stand for a new domain, as part of keys and as a folder."""
    if name in taken:
        raise UserError(f"domain {name!r} is in the pool already", fix=f"its domains are {', '.join(taken)}")
    if not isinstance(name, str) or name in RESERVED or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}", name):
        raise UserError(
            f"domain name {name!r} is reserved, holds other than letters, digits, '-' and '_', or is longer than 100",
            fix="choose another",
        )


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path`, on disk when this returns."""
    temporary = path.with_name(f".tmp_{path.name}")
    temporary.write_text(text, encoding="utf-8")
    _sync(temporary)
    temporary.replace(path)


def publish(folder: Path, target: Path) -> None:
    """Move the files and folders in `folder` into `target`, each replacing its namesake, and remove `folder`."""
    sync_folder(folder)
    for file in sorted(folder.iterdir()):
        if file.is_dir():  # the system replaces only empty folders
            shutil.rmtree(target / file.name, ignore_errors=True)
        file.replace(target / file.name)
    sync_folder(target, files=False)
    folder.rmdir()


def sync_folder(folder: Path, files: bool = True) -> None:
    """Force the folder's entries, and the content of its files, to disk."""
    for file in folder.iterdir() if files else ():
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder, and needs no sync of one
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_path(path: Path, kind: str = "tmp") -> Path:
    """A hidden path beside `path` with its suffixes, whose name is short however long that of `path` is."""
    mark = zlib.crc32(os.fsencode(path.name))
    return path.with_name(f".{kind}_{os.getpid()}_{mark:08x}_{path.name[-24:]}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, with its suffixes, that becomes `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, *, indent: int = 2, ensure_ascii: bool = True) -> None:
    """Write JSON so that `path` holds the old or the new content at any moment, never a part of it."""
    with whole_file(path) as part:
        part.write_text(json.dumps(content, indent=indent, ensure_ascii=ensure_ascii) + "\n", encoding="utf-8")


def read_mapping(path: Path) -> dict[str, Any]:
    """The content of a JSON file. Raises `UserError` if it is damaged, or no mapping."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        raise UserError(f"not JSON ({first_line(error)})", where=path, fix="copy it again") from error
    if not isinstance(content, dict):
        raise UserError("not a JSON object of names and values", where=path)
    return content


def check_folder(folder: Path, key: str | None = None) -> None:
    """Raise `UserError` where a file stands in the way of `folder`, named by the key `key`."""
    taken = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    if taken.exists() and not taken.is_dir():
        raise UserError(f"{taken} is a file", key=key, fix="name a folder")


def check_free(folder: Path, key: str | None = None) -> None:
    """Raise `UserError` unless `folder`, named by the key `key`, can be created or is empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists and is not an empty folder", key=key, fix="name another")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` (see `check_free`) at the end and vanishes after an error."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".tmp_{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
