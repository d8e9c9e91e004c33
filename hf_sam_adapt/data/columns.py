"""`datasets` data sets with an image and a mask column: in memory, saved to disk, or on the Hub."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError, first_line
from .channels import load_header, load_image
from .folder import SPLIT_NAMES
from .images import Header, MaskContent, array_header, read_mask_file, read_mask_header


if TYPE_CHECKING:
    import datasets


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
        raise UserError(f"{root}: cannot be loaded as a saved data set ({first_line(error)})") from error


def load_hub(name: str) -> datasets.Dataset | datasets.DatasetDict:
    """The data set `owner/name` of the Hub (or of its cache)."""
    import datasets

    try:
        return datasets.load_dataset(name)
    except Exception as error:  # the Hub client, loaders and parsers raise types of many libraries
        raise UserError(
            f"{name}: neither a folder here nor a data set that the Hub gives ({first_line(error)}); check the name"
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
            f"dataset: {type(data).__name__} is not supported; pass a folder, a Hub id or a datasets.Dataset"
        )
    tables = {}
    for split, names in SPLIT_NAMES.items():
        found = next((name for name in names if name in data), None)
        if found:
            tables[split] = _prepare(data[found])
    if "train" not in tables:
        raise UserError(f"dataset: no split named train, only {', '.join(data)}; rename one of them")
    return tables


def _prepare(table: datasets.Dataset) -> datasets.Dataset:
    import datasets

    missing = [name for name in ("image", "mask") if name not in table.column_names]
    if missing:
        raise UserError(
            f"dataset: no column {missing[0]!r}, only {', '.join(table.column_names)}; rename the columns to image "
            "and mask"
        )
    has_ids = "id" in table.column_names
    table = table.select_columns(["image", "mask"] + ["id"] * has_ids)
    for name in ("image", "mask"):
        if isinstance(table.features[name], datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    if has_ids:
        ids = [str(value) for value in table["id"]]
        table = table.remove_columns("id")
    else:
        ids = _ids_from_paths(table)
    return table.add_column("id", ids)


def _ids_from_paths(table: datasets.Dataset) -> list[str]:
    """File stems of the image column where every row has its own, running numbers otherwise."""
    import datasets
    import pyarrow.compute as pc

    numbers = [f"{index:06d}" for index in range(len(table))]
    if not isinstance(table.features["image"], datasets.Image):
        return numbers
    stems: list[str] = []
    for batch in table.select_columns(["image"]).with_format("arrow").iter(1000):
        paths = pc.struct_field(batch["image"], "path").to_pylist()
        stems += [Path(path).stem for path in paths if path]
    return stems if len(set(stems)) == len(numbers) else numbers


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
