"""`datasets` data sets with an image and a mask column: in memory, saved to disk, or on the Hub."""

from __future__ import annotations

import hashlib
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError, first_line
from .channels import load_header, load_image
from .folder import SPLIT_NAMES
from .images import Header, MaskContent, array_header, read_mask_file, read_mask_header
from .walk import one_form


if TYPE_CHECKING:
    import datasets


BATCH = 1000  # rows whose paths are looked at together


class ColumnReader:
    """Reads rows with the columns `image` and `mask`: encoded bytes, paths, or arrays.

    Args:
        channels: of the images; None = RGB photographs.
        content: what of the masks is read, see `read_mask`.
    """

    # A header lies inside the cell's bytes: looking at all of them would read the whole table.
    checked_rows: int | None = 2000
    draws_ignored = False

    def __init__(self, channels: int | None = None, content: MaskContent = "values") -> None:
        self.channels, self.content = channels, content

    def name(self, row: dict[str, Any]) -> str:
        return f"row {row['id']}, column mask"

    def path(self, row: dict[str, Any]) -> str | None:
        return None

    def headers(self, row: dict[str, Any]) -> tuple[Header, Header]:
        mask, name = _cell(row["mask"]), self.name(row)
        if isinstance(mask, np.ndarray):
            stored = array_header(mask)
        else:
            stored = read_mask_header(mask, name, self.content)
        return load_header(_cell(row["image"]), self.channels, _image_name(row)), stored

    def read_image(self, row: dict[str, Any]) -> np.ndarray:
        return load_image(_cell(row["image"]), self.channels, _image_name(row))

    def read_mask(self, row: dict[str, Any]) -> tuple[np.ndarray, bool]:
        return read_mask_file(_cell(row["mask"]), self.name(row), content=self.content)


def is_saved_dataset(root: Path) -> bool:
    """Whether `root` was written by `save_to_disk`."""
    return (root / "dataset_dict.json").is_file() or (root / "state.json").is_file()


def load_saved(root: Path) -> datasets.Dataset | datasets.DatasetDict:
    """The memory-mapped data set in `root`."""
    import datasets

    try:
        return datasets.load_from_disk(str(root))
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot be loaded as a saved data set ({first_line(error)})", where=root) from error


def load_hub(name: str) -> datasets.Dataset | datasets.DatasetDict:
    """The data set `owner/name` of the Hub (or of its cache)."""
    import datasets

    try:
        return datasets.load_dataset(name)
    except Exception as error:  # the Hub client, loaders and parsers raise types of many libraries
        raise UserError(
            f"neither a folder here nor a data set that the Hub gives ({first_line(error)})",
            where=name,
            fix="check the name",
        ) from error


def column_tables(data: Any) -> dict[str, datasets.Dataset]:
    """Tables with the columns id, image and mask, cells still encoded.

    Returns:
        "train" and what there is of "val" and "test"; or "all" for a single `datasets.Dataset`.
    """
    import datasets

    if isinstance(data, datasets.Dataset):
        return {"all": _prepare(data)}
    if not isinstance(data, datasets.DatasetDict):
        raise UserError(
            f"{type(data).__name__} is not supported",
            key="dataset",
            fix="pass a folder, a Hub id or a datasets.Dataset",
        )
    tables = {}
    for split, names in SPLIT_NAMES.items():
        stored = next((name for name in names if name in data), None)
        if stored:
            tables[split] = _prepare(data[stored])
    if "train" not in tables:
        raise UserError(f"no split named train, only {', '.join(data)}", key="dataset", fix="rename one of them")
    return tables


def unread_splits(data: datasets.Dataset | datasets.DatasetDict) -> list[str]:
    """Sentences on the splits that `column_tables` leaves out."""
    if not hasattr(data, "keys"):
        return []
    read = {next((name for name in names if name in data), None) for names in SPLIT_NAMES.values()}
    left = [name for name in data if name not in read]
    return [f"split {name} is not read ({len(data[name])} images): rename it to train, val or test" for name in left]


def _prepare(table: datasets.Dataset) -> datasets.Dataset:
    import datasets

    missing = [name for name in ("image", "mask") if name not in table.column_names]
    if missing:
        raise UserError(
            f"no column {missing[0]!r}, only {', '.join(table.column_names)}",
            key="dataset",
            fix="rename the columns to image and mask",
        )
    has_ids = "id" in table.column_names
    table = table.select_columns(["image", "mask"] + ["id"] * has_ids)
    for name in ("image", "mask"):
        if isinstance(table.features[name], datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
        _check_filled(table, name)
    if has_ids:
        ids = [one_form(str(value)) for value in table["id"]]
        return table.remove_columns("id").add_column("id", ids)
    # A path names a row where every row has its own; else rows are called by their places.
    stems = _stems(table)
    if isinstance(table.features["image"], datasets.Image) and None not in stems and len(set(stems)) == len(stems):
        return table.add_column("id", stems)
    table = table.add_column("stem", stems)
    return table.add_column("id", [f"{index:06d}" for index in range(len(table))])


def with_keys(table: datasets.Dataset) -> datasets.Dataset:
    """The table with the column "key" where its ids are places, which change when rows come and go.

    The key is the stem of the image's file where no other row has it, else a hash of the image, which is read for it.
    """
    if "stem" not in table.column_names:
        return table
    stems, counts = table["stem"], Counter(table["stem"])
    digests = {index: "" for index, stem in enumerate(stems) if stem is None or counts[stem] > 1}
    for index in digests:
        digests[index] = _digest(_cell(table[index]["image"]))
    keys = [digests.get(index) or str(stem) for index, stem in enumerate(stems)]
    return table.remove_columns("stem").add_column("key", keys)


def _digest(cell: str | BytesIO | np.ndarray) -> str:
    if isinstance(cell, np.ndarray):
        content = f"{cell.shape} {cell.dtype} ".encode() + np.ascontiguousarray(cell).tobytes()
    else:
        content = Path(cell).read_bytes() if isinstance(cell, str) else cell.getvalue()
    return hashlib.sha256(content).hexdigest()[:20]


def _check_filled(table: datasets.Dataset, name: str) -> None:
    """Raise `UserError` where cells of a column are empty."""
    import pyarrow
    import pyarrow.compute as pc

    empty: list[int] = []
    for start in range(0, len(table), BATCH):
        column = table.select_columns([name]).with_format("arrow")[start : start + BATCH][name]
        nothing = pc.is_null(column)
        if pyarrow.types.is_struct(column.type):  # an image: bytes, or a path
            parts = [pc.is_null(pc.struct_field(column, part)) for part in ("bytes", "path")]
            nothing = pc.or_(nothing, pc.and_(*parts))
        empty += [start + index for index, cell in enumerate(nothing.to_pylist()) if cell]
    if empty:
        raise UserError(
            f"{len(empty)} of {len(table)} rows have no {name}, such as row {empty[0]}",
            key="dataset",
            fix="fill them, or leave them out with the data set's filter",
        )


def _stems(table: datasets.Dataset) -> list[str | None]:
    """The file stem of each row's image, None where it has no path."""
    import datasets
    import pyarrow
    import pyarrow.compute as pc

    paths: list[str | None] = []
    for batch in table.select_columns(["image"]).with_format("arrow").iter(BATCH):
        column = batch["image"]
        if isinstance(table.features["image"], datasets.Image):
            paths += pc.struct_field(column, "path").to_pylist()
        else:
            paths += column.to_pylist() if pyarrow.types.is_string(column.type) else [None] * len(column)
    return [one_form(Path(path).stem) if path else None for path in paths]


def _image_name(row: dict[str, Any]) -> str:
    return f"row {row['id']}, column image"


def _cell(value: Any) -> str | BytesIO | np.ndarray:
    """What a cell holds: a path, encoded bytes, or an array."""
    if isinstance(value, dict):
        return BytesIO(value["bytes"]) if value.get("bytes") is not None else value["path"]
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    # Nested lists arrive as int64.
    fits = array.dtype.kind in "iu" and array.dtype != np.uint16 and array.min(initial=0) >= 0
    return array.astype(np.uint8) if fits and array.max(initial=0) <= 255 else array
