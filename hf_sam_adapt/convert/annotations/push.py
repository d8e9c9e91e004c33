"""A folder of images and masks as a `datasets` data set: Parquet files, here or on the Hub."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ...config.arguments import read_yaml
from ...data import SegmentationData, load_segmentation_dataset
from ...data.encoding import parse_label_map
from ...data.folder import FileReader
from ...data.images import IGNORE
from ...data.reading import READ_KEYS, Reading
from ...data.sources import open_source
from ...errors import UserError
from ...names import read_id2label
from ...upload import check_can_push, push_again, upload
from .writing import RECIPE


if TYPE_CHECKING:
    import datasets
    import pyarrow

SHARD_BYTES, GROUP_BYTES = 400_000_000, 32_000_000
_HUB_NAMES = {"train": "train", "val": "validation", "test": "test"}


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
    reading = reading_of(folder, group_by)
    with tempfile.TemporaryDirectory() as stage:
        counts = write_parquet(folder, Path(stage), reading)
        data = load_segmentation_dataset(folder, **vars(reading))

        def files(name: str) -> dict[str, Path]:
            keys = _recipe_keys(reading)
            if keys:
                recipe = yaml.safe_dump({"dataset": name, **keys}, sort_keys=False, allow_unicode=True)
                (Path(stage) / RECIPE).write_text(recipe, encoding="utf-8")
            card = _card(name, counts, _mask_sentence(data, reading), bool(keys))
            (Path(stage) / "README.md").write_text(card, encoding="utf-8")
            return {
                path.relative_to(stage).as_posix(): path for path in sorted(Path(stage).rglob("*")) if path.is_file()
            }

        try:
            return upload(files, repo, repo_type="dataset")
        except UserError as error:
            raise push_again(error, again or push_command(folder, repo, group_by)) from error


def push_command(folder: Path, repo: str, group_by: str | None = None) -> str:
    """The command that publishes a folder, for a shell."""
    grouped = [] if group_by is None else ["--group_by", group_by]
    return shlex.join(["hf-sam-adapt", "convert", "--from", "folder", str(folder), "--push", repo, *grouped])


def save_dataset(folder: Path, out: Path, group_by: str | None = None) -> None:
    """What `datasets.load_from_disk(out)` reads, with the splits of `push_dataset`."""
    import datasets

    with tempfile.TemporaryDirectory() as stage:
        counts = write_parquet(folder, Path(stage), reading_of(folder, group_by))
        files = {split: sorted(map(str, Path(stage).glob(f"data/{split}-*"))) for split in counts}
        datasets.load_dataset("parquet", data_files=files, cache_dir=f"{stage}/cache").save_to_disk(out)


def reading_of(folder: Path, group_by: str | None = None) -> Reading:
    """How the `recipe.yaml` in a folder says that its images and masks are read; `group_by` goes before its own."""
    file = folder / RECIPE
    keys = {key: value for key, value in (read_yaml(file) if file.is_file() else {}).items() if key in READ_KEYS}
    keys["id2label"] = read_id2label(keys.get("id2label"))
    return Reading(**keys | ({} if group_by is None else {"group_by": group_by}))


def write_parquet(folder: Path, stage: Path, reading: Reading) -> dict[str, int]:
    """Write `data/<split>-<number>.parquet` under `stage`; images per split. At most 32 MB are in memory."""
    source = open_source(folder, reading)
    if not isinstance(source.reader, FileReader):
        raise UserError(
            "no folder of images and masks", where=folder, fix="convert it with --from coco or another format"
        )
    (stage / "data").mkdir()
    for note in (*source.left_out, *source.notes):
        print(note)
    counts = {}
    for split, table in source.tables.items():
        name = _HUB_NAMES[split]
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


def _recipe_keys(reading: Reading) -> dict[str, Any]:
    """The keys by which the published masks are read; their splits and names are settled."""
    settled = {"mask_suffix", "group_by", "seed"}
    defaults = vars(Reading())
    return {key: one for key, one in vars(reading).items() if key not in settled and one != defaults[key]}


def _mask_sentence(data: SegmentationData, reading: Reading) -> str:
    """What the values of the published masks mean."""
    if data.palette is not None:
        colours = ", ".join(f"{name} = {tuple(colour)}" for name, colour in data.palette.plain().items())
        return f"Mask colours: {colours}; others are ignored."
    if reading.label_map:
        mapped = ", ".join(
            f"{old} = {_class_name(data, new)}" for old, new in (parse_label_map(reading.label_map) or {}).items()
        )
        return f"Mask values: {mapped}; others as they are, 255 = ignore."
    if data.mask_values == "binary":
        if data.train.encoding.exact:
            return "Mask values: 0 = background, 255 = foreground."
        above = f"{reading.mask_threshold or 0:g}"
        opacity = "opacity" if reading.mask_values == "alpha" else "value"
        return f"Masks: pixels of {'an' if opacity == 'opacity' else 'a'} {opacity} above {above} are foreground."
    listed = ", ".join(f"{value} = {label}" for value, label in sorted(data.id2label.items()))
    return f"Mask values: {listed}, 255 = ignore."


def _class_name(data: SegmentationData, label: int) -> str:
    return "ignore" if label == IGNORE else data.id2label.get(label, f"class {label}")


def _card(name: str, counts: dict[str, int], masks: str, has_recipe: bool) -> str:
    data_files = [{"split": split, "path": f"data/{split}-*"} for split in counts]
    metadata = {
        "task_categories": ["image-segmentation"],
        "tags": ["hf-sam-adapt"],
        "configs": [{"config_name": "default", "data_files": data_files}],
    }
    images = ", ".join(f"{count} {split}" for split, count in counts.items())
    config = f" --config {RECIPE}" if has_recipe else ""
    lines = [
        f"# {name.split('/')[-1]}",
        f"Images with masks ({images}). {masks}",
        f"```bash\nhf-sam-adapt train --dataset {name}{config}\n```",
    ]
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n" + "\n\n".join(lines) + "\n"
