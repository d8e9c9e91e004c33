"""Folders of volumes and their masks, whose slices are the images of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import UserError
from ..folder import IMAGE_SUFFIXES, Problem, check_alone, refuse, split_by_top_folders, split_folders
from ..images import Header, read_mask
from ..walk import check_name, files_below, one_form, walk
from . import dicom
from .slices import SliceKeys
from .stack import KEPT_BYTES, Grid, open_grid, open_stack, volume_stem, volume_suffix


if TYPE_CHECKING:
    import datasets


class VolumeReader:
    """Reads rows with the columns image and mask (paths of volumes), slice, height and width.

    Args:
        keys: how volumes are cut.
    """

    checked_rows: int | None = None
    draws_ignored = False

    def __init__(self, keys: SliceKeys) -> None:
        self.keys = keys

    def name(self, row: dict[str, Any]) -> str:
        return f"{row['mask']}, slice {row['slice']}"

    def path(self, row: dict[str, Any]) -> str | None:
        return row["image"]

    def headers(self, row: dict[str, Any]) -> tuple[Header, Header]:
        header = Header(row["height"], row["width"], lossy=False)
        return header, header

    def read_image(self, row: dict[str, Any]) -> np.ndarray:
        return self.keys.image(open_stack(row["image"], row["axis"]), row["slice"])

    def read_mask(self, row: dict[str, Any]) -> tuple[np.ndarray, bool]:
        return read_mask(open_stack(row["mask"], row["axis"]).read(row["slice"]), self.name(row)), False


def is_volume_set(dataset: Any) -> bool:
    """Whether a data set that a user names is a folder of volumes."""
    return isinstance(dataset, (str, os.PathLike)) and has_volumes(Path(dataset).expanduser())


def has_volumes(root: Path) -> bool:
    """Whether the images of a data set's folder are volumes."""
    return any(next(_volumes(folder), None) is not None for folder in _image_folders(root))


def find_volumes(
    root: Path, keys: SliceKeys, mask_suffix: str | None = None, problem: Problem = refuse
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Tables of a row a volume for the splits of `root`, and sentences on what is to be said.

    Columns: id, image, mask, count (of slices), height, width, spacing (mm, of slices, rows and columns) and axis.

    Args:
        root: holds `images` and `masks`, or a folder of them for each split. A volume is a `.nii` or `.nii.gz` file or
            the folder of a DICOM series; its mask has the same name, and is either.
        keys: how they are cut.
        mask_suffix: what the masks' names have at their end.
        problem: told of volumes without mask, without image, with a mask on another grid, or unreadable; if it
            returns, these are left out.

    Raises:
        UserError: as `problem`, or images among the volumes.
    """
    import datasets

    tables: dict[str, datasets.Dataset] = {}
    unpacked = 0
    for split, folder in _splits(root).items():
        rows = []
        for stem, image, mask in _pairs(folder, mask_suffix, problem):
            try:
                row, size = _row(stem, image, mask, keys)
            except UserError as error:
                problem(error, [str(mask if error.code == "affine-mismatch" else image)])
                continue
            rows.append(row)
            unpacked += size
        columns = {key: [row[key] for row in rows] for key in _COLUMNS}
        tables[split] = datasets.Dataset.from_dict(columns)
    if "all" in tables:
        tables = split_by_top_folders(tables["all"], root / "images")
    notes = []
    if unpacked > KEPT_BYTES:
        notes.append(
            f"the volumes are {unpacked / 1e9:.1f} GB unpacked, of which a process keeps {KEPT_BYTES / 1e9:.1f}: "
            "stored as .nii they are read in place"
        )
    return tables, notes


_COLUMNS = ("id", "image", "mask", "count", "height", "width", "spacing", "axis")


def slice_tables(tables: dict[str, datasets.Dataset]) -> dict[str, datasets.Dataset]:
    """A row a slice for tables of a row a volume; `key` is the volume, which splits go by."""
    import datasets

    expanded = {}
    for split, table in tables.items():
        rows = [
            row | {"id": f"{row['id']}/{number:04d}", "key": row["id"], "slice": number}
            for row in table
            for number in range(row["count"])
        ]
        columns = {key: [row[key] for row in rows] for key in (*_COLUMNS, "key", "slice")}
        expanded[split] = datasets.Dataset.from_dict(columns)
    return expanded


def _row(stem: str, image: Path, mask: Path, keys: SliceKeys) -> tuple[dict[str, Any], int]:
    """A row of `find_volumes`, and the bytes that image and mask take in memory."""
    grid = open_grid(image, keys.slice_axis)
    of_mask = open_grid(mask, axis := _axis_of(grid))
    different = grid.differs(of_mask)
    if different is not None:
        raise UserError(
            different, where=mask, fix="resample the mask to the grid of its image", code="affine-mismatch"
        )
    n, height, width = grid.shape
    row = {"id": stem, "image": str(image), "mask": str(mask), "count": n, "height": height, "width": width}
    row |= {"spacing": list(grid.spacing), "axis": axis}
    return row, grid.unpacked_bytes + of_mask.unpacked_bytes


def _axis_of(grid: Grid) -> str:
    """The axis across which a grid is cut, for that of its mask."""
    through = grid.affine[:3, 0]
    return ("sagittal", "coronal", "axial")[int(np.abs(through).argmax())]


def _splits(root: Path) -> dict[str, Path]:
    """Folder with `images` and `masks` per split, "all" for one without."""
    if (root / "images").is_dir():
        return {"all": root}
    return split_folders(root)


def _image_folders(root: Path) -> list[Path]:
    return [folder / "images" for folder in _splits(root).values() if (folder / "images").is_dir()]


def _walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str], list[str]]]:
    """Folders with the names of their series, which are not looked into, of their volumes and of their other files."""
    for place, folders, names in walk(folder):
        series = [name for name in folders if dicom.is_series(place / name)]
        folders[:] = [name for name in folders if name not in series]
        files = [name for name in names if volume_suffix(name)]
        yield place, series, files, [name for name in names if name not in files]


def _volumes(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of each volume below a folder."""
    for place, series, files, _ in _walk(folder):
        for name in sorted([*series, *files]):
            path = place / name
            check_name(path)
            stem = volume_stem(path) if name in files else name
            relative = path.parent.relative_to(folder) / stem
            yield one_form(relative.as_posix()), path


def unread_in_volume_set(root: Path) -> list[Path]:
    """The files among images and masks that are no volumes: of another format, or in the folder of no series."""
    parts = [folder / part for folder in _splits(root).values() for part in ("images", "masks")]
    return [place / name for part in parts if part.is_dir() for place, *_, others in _walk(part) for name in others]


def volumes_in(folder: Path) -> list[Path]:
    """The volumes of a folder itself, not of its sub-folders."""
    return [path for _, path in _volumes(folder) if path.parent == folder]


def _pairs(folder: Path, mask_suffix: str | None, problem: Problem) -> list[tuple[str, Path, Path]]:
    """Name, image and mask of each volume of a split."""
    suffix = one_form(mask_suffix[: -len(volume_suffix(mask_suffix) or "") or None] if mask_suffix else "")
    found: dict[str, dict[str, Path]] = {}
    for part in ("images", "masks"):
        if not (folder / part).is_dir():
            raise UserError("missing folder", where=folder / part, fix="expected images/ and masks/ with equal names")
        found[part] = {}
        for stem, path in _volumes(folder / part):
            if stem in found[part]:
                same = f"{found[part][stem].name} and {path.name} have the same name"
                problem(UserError(same, where=folder / part, fix="rename one of them", code="same-stem"), [str(path)])
                continue
            found[part][stem] = path
    pictures = files_below(folder / "images", IMAGE_SUFFIXES)
    if pictures:
        problem_text = f"{len(pictures)} images among volumes, such as {pictures[0].name}"
        raise UserError(problem_text, where=folder / "images", fix="keep volumes and images in folders of their own")
    images, masks = found["images"], found["masks"]
    hint = "" if mask_suffix else " (or set mask_suffix if the masks' names end differently)"
    alone = [str(path) for stem, path in images.items() if stem + suffix not in masks]
    check_alone(folder, alone, "image", "mask", hint, problem)
    used = {stem + suffix for stem in images}
    check_alone(folder, [str(p) for stem, p in masks.items() if stem not in used], "mask", "image", hint, problem)
    return [(stem, images[stem], masks[stem + suffix]) for stem in sorted(images) if stem + suffix in masks]
