"""Folders of images and masks with equal names, also in sub-folders."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .channels import ARRAY_SUFFIX, load_header, load_image
from .images import Header, MaskContent, array_header, load_array, read_mask_file, read_mask_header
from .scenes import (
    StoredMask,
    by_windows,
    check_grid,
    mask_by_windows,
    mask_valid_of,
    open_mask,
    raster_header,
)
from .tiles import Window
from .walk import files_below, one_form


if TYPE_CHECKING:
    import datasets


SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
# Told what is wrong in a folder, and the files that it is about: raises it, or takes note of it.
Problem = Callable[[UserError, list[str]], None]
IMAGE_SUFFIXES = {".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


class FileReader:
    """Reads rows with the columns `image` and `mask`, both paths.

    Args:
        channels: of the images; None = RGB photographs.
        content: what of the masks is read, see `read_mask`.
    """

    checked_rows: int | None = None
    draws_ignored = False

    def __init__(self, channels: int | None = None, content: MaskContent = "values") -> None:
        self.channels, self.content = channels, content

    def name(self, row: dict[str, Any]) -> str:
        return row["mask"]

    def path(self, row: dict[str, Any]) -> str | None:
        return row["image"]

    def headers(self, row: dict[str, Any]) -> tuple[Header, Header]:
        mask, raster = row["mask"], by_windows(row["image"])
        image = load_header(row["image"], self.channels) if raster is None else raster_header(raster, self.channels)
        if mask.endswith(ARRAY_SUFFIX):
            return image, array_header(load_array(mask))
        check_grid(row["image"], mask)
        if (raster := mask_by_windows(mask)) is not None:
            return image, Header(*raster.size, raster.lossy, coloured=raster.shape[2] >= 3)
        return image, read_mask_header(mask, content=self.content)

    def read_image(self, row: dict[str, Any]) -> np.ndarray:
        return load_image(row["image"], self.channels)

    def read_mask(self, row: dict[str, Any]) -> tuple[np.ndarray, bool]:
        mask = row["mask"]
        if mask_by_windows(mask) is not None:
            with open_mask(mask, self.content) as opened:
                if opened is not None:
                    return opened.read(Window(0, 0, *opened.size)), opened.lossy
        return read_mask_file(load_array(mask) if mask.endswith(ARRAY_SUFFIX) else mask, mask, content=self.content)

    def mask_valid(self, row: dict[str, Any]) -> np.ndarray | None:
        """Where the mask has data, bool (H, W); None = everywhere."""
        return mask_valid_of(row["mask"])

    def open_mask(self, row: dict[str, Any]) -> AbstractContextManager[StoredMask | None]:
        return open_mask(row["mask"], self.content)


def split_folders(root: Path) -> dict[str, Path]:
    """The folders of splits in `root`, by split; `Test` is one as `test` is."""
    found = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()} if root.is_dir() else {}
    named = {split: [found[name] for name in names if name in found] for split, names in SPLIT_NAMES.items()}
    return {split: folders[0] for split, folders in named.items() if folders}


def split_lists(root: Path) -> list[Path]:
    """Files such as `train.csv` or `splits/test.txt`, by which other programs deal images to splits."""
    names = "|".join(name for names in SPLIT_NAMES.values() for name in names)
    wanted = re.compile(rf"([a-z]+[_-])*({names})([_-][a-z]+)*\.(csv|tsv|txt|lst|json)", re.IGNORECASE)
    return [path for path in files_below(root) if wanted.fullmatch(path.name)]


def has_images(root: Path) -> bool:
    """Whether `root` has a folder `images` or `train/images`."""
    return any((folder / "images").is_dir() for folder in (root, split_folders(root).get("train", root)))


def has_masks(root: Path) -> bool:
    """Whether `root` has a folder `masks` or `train/masks`."""
    return any((folder / "masks").is_dir() for folder in (root, split_folders(root).get("train", root)))


def refuse(error: UserError, files: list[str]) -> None:
    """The `Problem` that raises."""
    raise error


def find_pairs(
    root: Path, mask_suffix: str | None = None, arrays: bool = False, problem: Problem = refuse
) -> dict[str, datasets.Dataset]:
    """Tables with the columns id, image and mask for the splits of `root`.

    Args:
        root: holds images and masks, or a folder of them for each split.
        mask_suffix: what the masks' names have at their end.
        arrays: whether `.npy` files count, too.
        problem: told of errors "missing-mask", "missing-image" and "same-stem"; if it returns, these files are left
            out.

    Returns:
        "train" and what there is of "val" and "test"; or "all" when `root` has no split folders, neither at its top
        nor in `images`.

    Raises:
        UserError: images without masks or the reverse, two files of one stem, or an empty folder.
    """
    folders = split_folders(root)
    in_train = "train" in folders and (folders["train"] / "images").is_dir()
    if (root / "images").is_dir() and ((root / "masks").is_dir() or not in_train):
        return split_by_top_folders(_pair_folder(root, mask_suffix, arrays, problem), root / "images")
    return {split: _pair_folder(folder, mask_suffix, arrays, problem) for split, folder in folders.items()}


def split_by_top_folders(table: datasets.Dataset, where: Path) -> dict[str, datasets.Dataset]:
    """A table by split where the ids begin with the folder of one, such as `test/x`; "all" where none does.

    Raises:
        UserError: what lies beside such folders.
    """
    tops = [name.partition("/")[0].lower() if "/" in name else "" for name in table["id"]]
    splits = {top: split for split, names in SPLIT_NAMES.items() for top in names if top in tops}
    if not splits:
        return {"all": table}
    other = next((name for name, top in zip(table["id"], tops) if top not in splits), None)
    if other is not None:
        raise UserError(f"{other} lies beside the folder {min(splits)}", where=where, fix="move it into a split")
    places = {split: [i for i, top in enumerate(tops) if splits[top] == split] for split in splits.values()}
    return {split: table.select(found) for split, found in places.items()}


def unread_files(root: Path, tables: Mapping[str, datasets.Dataset]) -> list[Path]:
    """The images below `root` that are in none of the tables, and all else that lies among images and masks."""
    paired = all("mask" in table.column_names for table in tables.values())
    columns = ("image", "mask") if paired else ("image",)
    read = {path for table in tables.values() for column in columns for path in table[column]}
    return [
        path
        for path in files_below(root)
        if str(path) not in read
        and (
            path.suffix.lower() in IMAGE_SUFFIXES
            or (paired and {"images", "masks"} & set(path.relative_to(root).parts[:-1]))
        )
    ]


def _pair_folder(folder: Path, mask_suffix: str | None, arrays: bool, problem: Problem) -> datasets.Dataset:
    import datasets

    suffix = one_form(Path(mask_suffix).stem if mask_suffix and "." in mask_suffix else mask_suffix or "")
    images, masks = folder / "images", folder / "masks"
    for part in (images, masks):
        if not part.is_dir():
            raise UserError(
                "missing folder", where=part, fix=f"expected images/ and masks/ with equal file names in {folder}"
            )
    suffixes = IMAGE_SUFFIXES | {ARRAY_SUFFIX} if arrays else IMAGE_SUFFIXES
    image_files, mask_files = _by_stem(images, suffixes, problem), _by_stem(masks, suffixes, problem)
    if not image_files and files_below(images, {ARRAY_SUFFIX}):
        raise UserError(
            f"only {ARRAY_SUFFIX} arrays", where=images, fix="set channels to the number of their channels"
        )
    if not image_files:
        raise UserError("no images in it", where=images, fix="the data set is empty")
    wanted = {stem + suffix: stem for stem in image_files}
    hint = "" if mask_suffix else " (or set mask_suffix if the masks' names end differently)"
    images_alone = [image_files[stem] for name, stem in wanted.items() if name not in mask_files]
    masks_alone = [path for name, path in mask_files.items() if name not in wanted]
    check_alone(folder, images_alone, "image", "mask", hint, problem)
    check_alone(folder, masks_alone, "mask", "image", hint, problem)
    stems = sorted(stem for name, stem in wanted.items() if name in mask_files)
    return datasets.Dataset.from_dict(
        {
            "id": stems,
            "image": [image_files[stem] for stem in stems],
            "mask": [mask_files[stem + suffix] for stem in stems],
        }
    )


def _by_stem(folder: Path, suffixes: set[str], problem: Problem) -> dict[str, str]:
    """Path below `folder` without extension -> path, of every file with one of the suffixes."""
    files: dict[str, str] = {}
    below = len(str(folder)) + 1
    for path in map(str, files_below(folder, suffixes)):
        stem = one_form(os.path.splitext(path[below:])[0]).replace(os.sep, "/")
        if stem in files:
            same = f"{files[stem][below:]} and {path[below:]} have the same stem"
            fix = "remove or rename one of them"
            problem(UserError(same, where=folder, fix=fix, code="same-stem"), [path])
            continue
        files[stem] = path
    return files


def check_alone(folder: Path, paths: list[str], kind: str, other: str, hint: str, problem: Problem) -> None:
    """Tell `problem` of images without masks, or the reverse; `kind` and `other` say which."""
    if paths:
        paths = sorted(paths)
        shown = ", ".join(os.path.relpath(path, folder) for path in paths[:5]) + (", …" if len(paths) > 5 else "")
        plural = "s" * (len(paths) > 1)
        alone = f"{len(paths)} {kind}{plural} without {other}: {shown}"
        problem(UserError(alone, where=folder, fix=f"add the {other}{hint}", code=f"missing-{other}"), paths)
