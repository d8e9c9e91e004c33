"""What a prediction does not replace: its inputs, and files that no prediction has written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ...errors import UserError
from ...files import check_folder, holds_run
from .index import Index, files_of
from .polygons import LabelmeWriter, YoloWriter, checked_annotations


_NAME_LIMIT = 255  # bytes of a file's name on the usual file systems


def check_output_dir(folder: Path) -> None:
    """Raise `UserError` where results cannot go."""
    check_folder(folder, "output_dir")
    if holds_run(folder):
        raise UserError(
            f"{folder} holds a run, with which your images would be published",
            key="output_dir",
            fix="name another folder",
        )


def check_targets(index: Index, targets: Mapping[Path, Sequence[str]], names: Mapping[Path, str]) -> None:
    """Refuse to replace an input, and any file in the output folder that no earlier prediction has written.

    Args:
        targets: the files that are written of each image, as paths in the folder.
        names: of all inputs.
    """
    folder, inputs = index.folder, {path.resolve() for path in names}
    places = {path.parent for path in inputs}
    for path, output in ((path, folder / file) for path, files in targets.items() for file in files):
        if len(os.fsencode(output.name)) > _NAME_LIMIT:
            raise UserError(f"its name is too long for that of its result, {output.name}", where=path, fix="rename it")
        if output.resolve() in inputs or (output.parent.resolve() in places and output.parent != folder):
            raise UserError(
                f"{output} is an input or lies beside one, and would be overwritten",
                key="output_dir",
                fix="name another folder",
            )
    own = earlier_files(index, names)
    index.planned = {file for files in targets.values() for file in files}
    index.planned |= {file for writer in index.writers for file in writer.common}
    foreign = [file for file in sorted(index.planned - own) if (folder / file).exists()]
    for writer in index.writers:
        if isinstance(writer, LabelmeWriter):
            foreign += writer.drawn(sorted(index.planned), {names[path] for path in targets}, own)
    if foreign:
        raise UserError(
            f"{folder / foreign[0]} is there already, and no prediction has written it",
            key="output_dir",
            fix="name another folder, or move it away",
        )
    index.planned |= own


def earlier_files(index: Index, names: Mapping[Path, str]) -> set[str]:
    """The files in the output folder that earlier calls have written, as far as their list names them."""
    if "written" in index.before:
        return set(index.before["written"])
    known = {str(path): name for path, name in names.items()}
    files = (files_of(record, known.get(record["file"])) for record in index.before["predictions"])
    return set().union(*files)


def other_labels(index: Index, names: Mapping[Path, str]) -> list[str]:
    """What to say of labels of other images, which stay beside those of this call, and under its `data.yaml`."""
    notes = []
    for writer in index.writers:
        if isinstance(writer, YoloWriter):
            own = {index.folder / file for name in names.values() for file in writer.files(name)}
            others = [path for path in (index.folder / "yolo/labels").glob("*.txt") if path not in own]
            if others:
                notes.append(f"{index.folder / 'yolo'}: {len(others)} labels of other images are there, too")
    return notes


def check_checked(index: Index) -> None:
    """Refuse to replace annotations that a person has checked."""
    if not any(isinstance(writer, LabelmeWriter) for writer in index.writers):
        return
    kept = {index.folder / record[LabelmeWriter.key] for record in index.pieces() if LabelmeWriter.key in record}
    checked = [path for path in checked_annotations(index.folder) if path not in kept]
    if checked:
        raise UserError(
            f"{len(checked)} annotations in it are checked, such as {checked[0].name}, and would be replaced",
            key="output_dir",
            fix="name another folder, or give --skip_existing with the settings of before",
        )
