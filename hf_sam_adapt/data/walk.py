"""Which files of a folder are data, and which are what systems and tools leave behind: one rule for every walk."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterator
from pathlib import Path

from ..errors import UserError


# Beside all hidden names, such as .DS_Store, ._a.jpg and .ipynb_checkpoints. Lower case.
_LEFTOVERS = {
    "__macosx",
    "__pycache__",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "@eadir",
    "@recycle",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "system volume information",
    "lost+found",
}


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name was left by a system or a tool: hidden, a thumbnail, a recycle bin."""
    return name.startswith((".", "~$")) or name.lower() in _LEFTOVERS


def walk(root: Path, *, deep: bool = True) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each folder below `root` with the names of its sub-folders and files, sorted and without leftovers.

    Args:
        root: its own name may be anything; links are followed, but not back up.
        deep: also sub-folders. As with `os.walk`, a name that is taken out of their list is not walked.

    Raises:
        UserError: a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise UserError(
            f"cannot be listed ({error.strerror})", where=error.filename, fix="check its permissions"
        ) from error

    above: dict[str, frozenset[str]] = {}  # the real paths of the folders that a folder lies in
    for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
        real, parents = os.path.realpath(folder), above.pop(folder, frozenset())
        kept = sorted(name for name in folders if not is_leftover(name))
        folders[:] = kept if deep and real not in parents else []
        if real not in parents:
            yield Path(folder), folders, [name for name in sorted(names) if not is_leftover(name)]
        above |= {os.path.join(folder, name): parents | {real} for name in folders}


def files_below(root: Path, suffixes: Collection[str] | None = None, *, deep: bool = True) -> list[Path]:
    """The files of a folder and its sub-folders as `walk` finds them, each folder's in the order of their names.

    Args:
        suffixes: wanted, in lower case; None = all.

    Raises:
        UserError: a folder that cannot be listed, or a file whose name is not UTF-8.
    """
    files = [
        folder / name
        for folder, _, names in walk(root, deep=deep)
        for name in names
        if suffixes is None or suffix_of(name) in suffixes
    ]
    for file in files:
        check_name(file)
    return files


def check_name(file: Path) -> None:
    """Raise `UserError` for a name that is not UTF-8, as archives unpacked with a wrong encoding leave it.

    No table and no JSON file could hold it.
    """
    try:
        str(file).encode()
    except UnicodeEncodeError as error:
        where = os.fsencode(file).decode("utf-8", "backslashreplace")
        raise UserError("its name is not UTF-8", where=where, fix="rename it, or unpack the archive again") from error


def suffix_of(name: str) -> str:
    """`x.JPG` -> `.jpg`."""
    return os.path.splitext(name)[1].lower()


def one_form(name: str) -> str:
    """A name in the form (Unicode's NFC) in which names are compared: macOS stores another one, NFD."""
    return unicodedata.normalize("NFC", name)
