"""Names that become part of a path, and the mode of files that others wrote."""

import os
import re
from pathlib import Path


_PLAIN = re.compile(r"[^/\\:\x00-\x1f]+")


def is_plain_name(name: object) -> bool:
    """Whether `name`, as a file holds it, is the name of an entry of a folder: no separator, no drive, no way up."""
    return isinstance(name, str) and _PLAIN.fullmatch(name) is not None and name.strip(". ") != ""


def plain_name(name: str) -> str:
    """`name` with `_` for whatever keeps it from being one, such as the separators of another system's path."""
    return "_".join(_PLAIN.findall(name)).lstrip(".") or "_"


def follow_umask(folder: Path) -> None:
    """Give the safetensors files of a folder the mode of any new file; safetensors itself writes them as 0600."""
    umask = os.umask(0)
    os.umask(umask)
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~umask)
