"""A folder of images and masks as a `datasets` data set: Parquet files, here or on the Hub."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ...data.folder import FileReader
from ...data.reading import Reading
from ...data.sources import open_source
from ...errors import UserError
from ...upload import check_can_push, push_again, upload
from .writing import RECIPE, write_recipe


if TYPE_CHECKING:
    import datasets
    import pyarrow

SHARD_BYTES, GROUP_BYTES = 400_000_000, 32_000_000
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}


def push_dataset(folder: Path, repo: str, group_by: str | None = None, again: str | None = None) -> str:
    """Publish a folder of images and masks in a private repository, in one commit.

    Its files become Parquet with the columns id, image and mask, encoded as they are. A folder without splits gets
    those that a training with seed 0 would draw.

    Args:
        folder: `{train,val?,test?}/{images,masks}` or `{images,masks}`.
        repo: `owner/name`.
        group_by: see `load_segmentation_dataset`.
        again: how to try again, said when the push fails; None = the `convert` command on this folder.

    Returns:
        Address of the commit.

    Raises:
        UserError: no such folder, or the Hub refused it or could not be reached.
    """
    check_can_push(repo)
    id2label = _recipe_of(folder).get("id2label") or {}
    names = [name for label, name in sorted(id2label.items()) if label]
    with tempfile.TemporaryDirectory() as stage:
        counts = write_parquet(folder, Path(stage), group_by)

        def files(name: str) -> dict[str, Path]:
            (Path(stage) / "README.md").write_text(_card(name, counts, names), encoding="utf-8")
            if names:
                write_recipe(Path(stage), name, names)
            return {
                path.relative_to(stage).as_posix(): path for path in sorted(Path(stage).rglob("*")) if path.is_file()
            }

        try:
            return upload(files, repo, repo_type="dataset")
        except UserError as error:
            raise push_again(error, again or f"hf-sam-adapt convert --from folder {folder} --push {repo}") from error


def save_dataset(folder: Path, out: Path, group_by: str | None = None) -> None:
    """What `datasets.load_from_disk(out)` reads, with the splits of `push_dataset`."""
    import datasets

    with tempfile.TemporaryDirectory() as stage:
        counts = write_parquet(folder, Path(stage), group_by)
        files = {split: sorted(map(str, Path(stage).glob(f"data/{split}-*"))) for split in counts}
        datasets.load_dataset("parquet", data_files=files, cache_dir=f"{stage}/cache").save_to_disk(out)


def write_parquet(folder: Path, stage: Path, group_by: str | None = None) -> dict[str, int]:
    """Write `data/<split>-<number>.parquet` under `stage`; images per split. At most 32 MB are in memory."""
    source = open_source(folder, Reading(group_by=group_by))
    if not isinstance(source.reader, FileReader):
        raise UserError(
            "no folder of images and masks", where=folder, fix="convert it with --from coco or another format"
        )
    (stage / "data").mkdir()
    for note in (*source.left_out, *source.notes):
        print(note)
    counts = {}
    for split, table in source.tables.items():
        name = SPLIT_NAMES[split]
        counts[name] = len(table)
        _write_shards(table, stage / "data", name)
    return counts


def _write_shards(table: datasets.Dataset, folder: Path, split: str) -> None:
    import datasets
    import pyarrow.parquet as parquet

    features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(), "mask": datasets.Image()})
    writer, shard, written = None, 0, 0
    for group, size in _groups(table, features.arrow_schema):
        if writer is not None and written + size > SHARD_BYTES:
            writer.close()
            writer, shard, written = None, shard + 1, 0
        if writer is None:
            writer = parquet.ParquetWriter(folder / f"{split}-{shard:05d}.parquet", features.arrow_schema)
        writer.write_table(group)
        written += size
    if writer is not None:
        writer.close()


def _groups(table: datasets.Dataset, schema: pyarrow.Schema) -> Iterator[tuple[pyarrow.Table, int]]:
    """Rows with the content of their files, about 32 MB at a time, and their size."""
    import pyarrow

    rows: list[dict[str, Any]] = []
    size = 0
    for number, row in enumerate(table, start=1):
        cells = {
            name: {"bytes": Path(row[name]).read_bytes(), "path": Path(row[name]).name} for name in ("image", "mask")
        }
        rows.append({"id": row["id"], **cells})
        size += sum(len(cell["bytes"]) for cell in cells.values())
        if size >= GROUP_BYTES or number == len(table):
            yield pyarrow.Table.from_pylist(rows, schema=schema), size
            rows, size = [], 0


def _recipe_of(folder: Path) -> dict[str, Any]:
    file = folder / RECIPE
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}


def _card(name: str, counts: dict[str, int], classes: list[str]) -> str:
    data_files = [{"split": split, "path": f"data/{split}-*"} for split in counts]
    metadata = {
        "task_categories": ["image-segmentation"],
        "tags": ["hf-sam-adapt"],
        "configs": [{"config_name": "default", "data_files": data_files}],
    }
    listed = ", ".join(f"{value} = {label}" for value, label in enumerate(classes, start=1)) or "1 = foreground"
    images = ", ".join(f"{count} {split}" for split, count in counts.items())
    config = f" --config {RECIPE}" if classes else ""
    lines = [
        f"# {name.split('/')[-1]}",
        f"Images with masks ({images}). Mask values: 0 = background, {listed}, 255 = ignore.",
        f"```bash\nhf-sam-adapt train --dataset {name}{config}\n```",
    ]
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n" + "\n\n".join(lines) + "\n"
