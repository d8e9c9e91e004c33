"""Images that a user names: files, folders and patterns, and a name for what is written of each."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .channels import ARRAY_SUFFIX
from .folder import IMAGE_SUFFIXES
from .volumes import dicom
from .volumes.folder import volumes_in
from .volumes.stack import volume_stem
from .walk import check_name, files_below, is_leftover, one_form


def find_images(inputs: Sequence[str], arrays: bool = False) -> list[Path]:
    """The images and volumes that `inputs` name, in their order, each once; of folders also `.npy` arrays if `arrays`.

    A folder that itself holds DICOM files is a volume.

    Raises:
        UserError: nothing is named, or an input is missing, matches nothing, or is a folder without images; or a name
            is not UTF-8.
    """
    if not inputs:
        raise UserError("none given", key="inputs", fix="name image files, folders or glob patterns")
    suffixes = IMAGE_SUFFIXES | {ARRAY_SUFFIX} if arrays else IMAGE_SUFFIXES
    found: dict[Path, Path] = {}
    for text in map(str, inputs):
        path = Path(text)
        if dicom.is_series(path):
            matches, problem = [path], ""
        elif path.is_dir():
            matches = files_below(path, suffixes, deep=False) + volumes_in(path)
            problem = "is a folder without images"
            if not matches and (below := files_below(path, suffixes)):
                problem += f" of its own; its sub-folders hold {len(below)}, such as {below[0]}"
        elif path.exists():
            matches, problem = [path] * (not is_leftover(path.name)), "is not an image but was left there by a tool"
        else:
            named = set(Path(text).parts)  # a hidden folder that is spelt out is meant
            globbed = [Path(match) for match in sorted(glob.glob(text, recursive=True))]
            matches = [
                match
                for match in globbed
                if (match.is_file() or dicom.is_series(match))
                and not any(is_leftover(part) for part in match.parts if part not in named)
            ]
            problem = "matches no file" if glob.has_magic(text) else "does not exist"
        if not matches:
            raise UserError(
                f"{text} {problem}", key="inputs", fix="name image files, folders of images or glob patterns"
            )
        for match in matches:
            check_name(match)
            found.setdefault(match.resolve(), match)
    return list(found.values())


def output_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file, its stem where that is unique (also on file systems that ignore case or Unicode forms)."""
    stems = Counter(_plain(volume_stem(path)) for path in paths)
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem = volume_stem(path)
        wanted = stem if stems[_plain(stem)] == 1 else f"{path.resolve().parent.name}_{stem}"
        name, number = wanted, 2
        while _plain(name) in taken:
            name, number = f"{wanted}_{number}", number + 1
        taken.add(_plain(name))
        names.append(name)
    return names


def _plain(name: str) -> str:
    """What a file system may take names to be equal by."""
    return one_form(name).casefold()
