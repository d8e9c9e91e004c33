"""Annotations of other tools become the folder of images and masks that everything here reads."""

from __future__ import annotations

import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...data.splits import group_keys
from ...data.walk import is_leftover
from ...errors import UserError
from ...files import check_free, whole_folder
from ...upload import check_can_push
from .coco import read_coco
from .cvat import read_cvat
from .geojson import read_geojson
from .labelme import read_labelme
from .push import push_command, push_dataset, save_dataset
from .regions import Annotations
from .volumes import GROUP, read_volumes
from .writing import describe, write_folder, write_recipe
from .yolo import read_yolo


__all__ = ["convert_annotations"]

VOLUMES = "volumes"
READERS = {
    "labelme": read_labelme,
    "coco": read_coco,
    "yolo": read_yolo,
    "cvat": read_cvat,
    "geojson": read_geojson,
}


def convert_annotations(
    format: str,
    source: str | Path,
    out: str | Path | None = None,
    *,
    images: str | Path | None = None,
    classes: list[str] | None = None,
    layout: str = "folder",
    push: str | None = None,
    group_by: str | None = None,
    encoding: str | None = None,
    slices: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write the masks that annotations describe; of overlapping areas the later one (YOLO: the smaller) is on top.

    Args:
        format: "labelme", "coco", "yolo", "cvat", "geojson"; "folder" is the package's own layout, to be pushed;
            "volumes" unpacks the slices of NIfTI files and DICOM series.
        source: folder, zip archive, or the annotation file itself.
        out: folder to create, whole or not at all, with a `recipe.yaml` for `--config`; may be None with `push`.
        images: folder of the images, where they are not beside the annotations.
        classes: names of the classes 1, 2, … in this order; None = the source's order, or by name.
        layout: "folder" of images and masks, or "datasets", for `datasets.load_from_disk`.
        push: repository of the Hub, `owner/name`.
        group_by: keeps a group in one split where splits are drawn: by `push`, `datasets`, or what reads `out`.
        encoding: of annotation texts that are not Unicode, such as "gbk"; None = guessed, and said.
        slices: of "volumes", how they are cut, see `SliceKeys.of`.

    Returns:
        Sentences on what was taken and left out.

    Raises:
        UserError: bad annotations, an `out` that holds something, or a push that failed.
    """
    if format not in (*READERS, "folder", VOLUMES):
        known = ", ".join((*READERS, VOLUMES))
        raise UserError(f"{format!r} is unknown", key="format", fix=f"use one of {known} or folder")
    if out is None and push is None:
        raise UserError("convert needs --out, the folder to create, or --push owner/name", code="out")
    place = Path(source).expanduser()
    if not place.exists():
        raise UserError("does not exist", where=source, fix="name the folder or file of the annotations")
    if out is not None:
        check_free(Path(out), "out")
    if group_by is not None:
        group_keys([], group_by)  # raises where it is no regular expression
    if repeated := [name for name, count in Counter(classes).items() if count > 1]:
        raise UserError(f"{repeated[0]} is named twice", key="classes", fix="name each class once")
    if push is not None:
        check_can_push(push)
    with _unpacked(place) as root, tempfile.TemporaryDirectory() as scratch:
        if format == "folder":
            if push is None or out is not None:
                raise UserError("--from folder only pushes", fix="give --push owner/name, and no --out")
            push_dataset(root, push, group_by, push_command(place, push, group_by))
            return []
        pictures = None if images is None else Path(images).expanduser()
        if format == VOLUMES:
            annotations, group_by = read_volumes(root, slices or {}), group_by or GROUP
        else:
            annotations = READERS[format](root, pictures, encoding)
        if root != place:
            _check_inside(annotations, [root] + ([pictures] if pictures else []), place)
        if group_by is not None:
            group_keys([image.stem for image in annotations.images], group_by)
        target = Path(out) if out is not None else Path(scratch) / "data"
        with whole_folder(target) as part:
            paired = part if layout == "folder" else Path(scratch) / "paired"
            paired.mkdir(exist_ok=True)
            names = write_folder(annotations, paired, classes)
            for folder in {paired, part}:
                write_recipe(folder, ".", names, group_by)
            if layout == "datasets":
                save_dataset(paired, part, group_by)
        if push is not None:
            kept = out is not None and layout == "folder"
            push_dataset(
                target if layout == "folder" else paired, push, group_by, None if kept else "the same command"
            )
    return describe(annotations, names)


def _check_inside(annotations: Annotations, folders: list[Path], archive: Path) -> None:
    """Refuse an archive of which an annotation names an image elsewhere on this machine."""
    roots = [folder.resolve() for folder in folders]
    for image in annotations.images:
        path = image.image
        if isinstance(path, Path) and not any(path.resolve().is_relative_to(root) for root in roots):
            raise UserError(f"names {path}, which is not in the archive", where=image.name, fix="add it there")


def _of_archive(error: UserError, root: Path, archive: Path) -> UserError:
    """An error about a file below `root`, as one about a file in the archive that is unpacked there."""
    where = Path(error.where or "")
    return error.replace(where=archive / where.relative_to(root)) if where.is_relative_to(root) else error


@contextmanager
def _unpacked(source: Path) -> Iterator[Path]:
    """The folder in a zip archive, for as long as it is needed; any other path as it is."""
    if source.suffix.lower() != ".zip":
        yield source
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / source.stem  # the name that messages show
        try:
            with zipfile.ZipFile(source) as archive:
                archive.extractall(root)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"not a readable zip archive ({error})", where=source, fix="export it again") from error
        inside = [path for path in root.iterdir() if not is_leftover(path.name)]
        try:
            yield inside[0] if len(inside) == 1 and inside[0].is_dir() else root
        except UserError as error:
            raise _of_archive(error, root, source) from error
