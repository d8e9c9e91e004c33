"""Writing files so that a crash leaves the old content or the new, never half of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


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
