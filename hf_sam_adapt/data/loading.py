"""From what the user names as `dataset` to checked splits."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..class_names import check_id2label, read_id2label
from ..errors import UserError
from . import coco, columns, folder, generated
from .dataset import Reader, SegmentationData, SegmentationSplit, size_message
from .encoding import check_threshold, lossy_message, parse_label_map, resolve_encoding
from .images import MaskContent
from .palettes import Palette, resolve_palette
from .scan import in_threads, palette_notes, sample_rows, scan_masks, soft_notes
from .splits import split_indices


if TYPE_CHECKING:
    import datasets


# What decides, beside the data set itself, how it is read and split: arguments here, keys of a recipe.
READ_KEYS = (
    "mask_suffix",
    "mask_values",
    "mask_threshold",
    "label_map",
    "num_labels",
    "id2label",
    "group_by",
    "channels",
    "palette",
    "seed",
)


def load_segmentation_dataset(
    dataset: Any,
    *,
    mask_suffix: str | None = None,
    mask_values: str = "auto",
    mask_threshold: float | None = None,
    label_map: Mapping[int, int] | None = None,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
    group_by: str | None = None,
    channels: int | None = None,
    palette: str | Mapping[str, Any] | Palette | None = None,
    seed: int = 0,
) -> SegmentationData:
    """Load, check and split a segmentation data set.

    The headers of all files are read. The mask values of the training and validation data are read up to 2,000
    images, beyond that of a seeded sample of 2,000; each mask is checked again when it is used. No pixel of the test
    split is read.

    Args:
        dataset: a folder `{train,val?,test?}/{images,masks}` or `{images,masks}`, a COCO folder, a folder written by
            `save_to_disk`, `synthetic:<domain>` (`synthetic:landcover@looks=1` sets the speckle), a Hub id, or a
            `datasets.Dataset` or `DatasetDict` with the columns image and mask.
        mask_suffix: what the masks' names have at their end: `_mask` for `x.jpg` and `x_mask.png`.
        mask_values: "auto", "binary" (above 0, lossy files above 127), "index" (as stored, 255 = ignore) or "alpha"
            (what is drawn on a transparent layer is foreground).
        mask_threshold: "binary" and "alpha" take values above it for foreground, in place of 0 and 127.
        label_map: stored value -> value, applied before everything else.
        num_labels: number of classes with the background, None = binary.
        id2label: class to name.
        group_by: regular expression on the ids; images whose group is equal stay in one split.
        channels: read images with exactly so many channels, float32 (H, W, C) of the stored values, also from `.npy`;
            None = as RGB photographs, uint8 (H, W, 3).
        palette: colours of the classes of RGB masks, see `resolve_palette`. Other colours become 255 = ignore and are
            counted in the notes; masks of one value a pixel are read as indices.
        seed: of the split and of the sample that is scanned.

    Raises:
        UserError: whatever would end a training later, in one line.
    """
    source = open_source(
        dataset,
        mask_suffix=mask_suffix,
        mask_values=mask_values,
        mask_threshold=mask_threshold,
        label_map=label_map,
        num_labels=num_labels,
        id2label=id2label,
        group_by=group_by,
        channels=channels,
        palette=palette,
        seed=seed,
    )
    tables, reader, palette = source.tables, source.reader, source.palette
    headers = [
        header for table in tables.values() for header in _check_headers(table, reader, source.mask_values, seed)
    ]
    if palette is not None:
        _check_colours(headers)
    seen = [tables[name] for name in ("train", "val") if name in tables]
    binary = palette is None and source.mask_values in ("binary", "alpha")
    scanned = scan_masks(seen, reader, palette, source.label_map, binary, seed)
    stored = [(mask.name, mask.values, mask.lossy) for mask in scanned]
    colours = [] if palette is None else palette_notes(scanned)
    choice = source.mask_values, source.num_labels, source.label_map, palette, reader.draws_ignored
    encoding, found_notes = resolve_encoding(stored, *choice, source.mask_threshold)
    parts = {name: SegmentationSplit(table, reader, encoding) for name, table in tables.items()}
    return SegmentationData(
        train=parts["train"],
        val=parts.get("val"),
        test=parts.get("test"),
        num_labels=source.num_labels,
        id2label=source.id2label,
        mask_values=encoding.mask_values,
        name=os.fspath(dataset) if isinstance(dataset, (str, os.PathLike)) else type(dataset).__name__,
        notes=colours + (soft_notes(scanned) if mask_threshold is None else []) + found_notes + source.notes,
        splits=source.splits,
        palette=palette,
    )


@dataclass
class Source:
    """A data set of which no pixel has been read.

    Attributes:
        tables: per split, what `reader` takes, with the column "id".
        mask_values, mask_threshold, label_map, num_labels, id2label, palette: as given, completed by what the source
            itself says.
        splits: ids per split where they were drawn by seed, else None.
        notes: sentences about the splits.
    """

    tables: dict[str, datasets.Dataset]
    reader: Reader
    mask_values: str
    mask_threshold: float | None
    label_map: dict[int, int] | None
    num_labels: int | None
    id2label: dict[int, str]
    palette: Palette | None
    splits: dict[str, list[str]] | None
    notes: list[str]


def open_source(
    dataset: Any,
    *,
    mask_suffix: str | None = None,
    mask_values: str = "auto",
    mask_threshold: float | None = None,
    label_map: Mapping[int, int] | None = None,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | None = None,
    group_by: str | None = None,
    channels: int | None = None,
    palette: str | Mapping[str, Any] | Palette | None = None,
    seed: int = 0,
    problem: folder.Problem = folder.refuse,
) -> Source:
    """Find and split what `load_segmentation_dataset` then checks; the arguments are the same.

    Args:
        problem: told of files that do not pair; see `find_pairs`.

    Raises:
        UserError: no such data set, keys that contradict each other or it, or no training images.
    """
    label_map = parse_label_map(label_map)
    mask_values = check_threshold(mask_threshold, mask_values)
    if num_labels is not None and not 2 <= num_labels <= 255:
        raise UserError(
            f"num_labels: {num_labels} is not in 2..255; it counts the background, leave it out for binary masks"
        )
    if channels is not None and channels < 1:
        raise UserError(f"channels: {channels} is below 1; leave it out for RGB photographs")
    palette = resolve_palette(palette)
    if palette is not None and label_map is None:
        num_labels, id2label = _labels_of(palette, num_labels, id2label)
    content: MaskContent = "colours" if palette is not None else "alpha" if mask_values == "alpha" else "values"
    tables, reader, found_labels = _open(dataset, mask_suffix, channels, content, problem)
    for key, given in (("palette", palette is not None), ("mask_values: alpha", mask_values == "alpha")):
        if found_labels is not None and given:
            raise UserError(f"{key}: {dataset} says its classes itself; leave it out")
    if found_labels is not None and mask_values != "binary":
        mask_values = "index"
        # With a label_map the values are classes of the user's own.
        if label_map is None:
            id2label = id2label or found_labels
            num_labels = num_labels or (len(found_labels) if len(found_labels) > 2 else None)
    tables, splits, notes = _split(tables, group_by, seed)
    if "train" not in tables or not len(tables["train"]):
        raise UserError(f"dataset: {dataset} has no training images")
    names = _id2label(id2label, num_labels)
    return Source(tables, reader, mask_values, mask_threshold, label_map, num_labels, names, palette, splits, notes)


def _open(
    dataset: Any, mask_suffix: str | None, channels: int | None, content: MaskContent, problem: folder.Problem
) -> tuple[dict[str, datasets.Dataset], Reader, dict[int, str] | None]:
    """Tables per split (or "all"), their reader, and the class names where the source says them."""
    if not isinstance(dataset, (str, os.PathLike)):
        return columns.column_tables(dataset), columns.ColumnReader(channels, content), None
    name = os.fspath(dataset)
    if name.startswith(generated.PREFIX):
        return generated.generated_tables(name, channels)
    root = Path(name).expanduser()
    if not root.is_dir():
        # A path into an existing folder is a misspelt path rather than a Hub id.
        if root.exists() or root.parent.is_dir() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
            kind = "is not a folder" if root.exists() else "missing folder"
            raise UserError(f"dataset: {name}: {kind}; give a folder, a Hub id owner/name, or synthetic:<domain>")
        return columns.column_tables(columns.load_hub(name)), columns.ColumnReader(channels, content), None
    if columns.is_saved_dataset(root):
        return columns.column_tables(columns.load_saved(root)), columns.ColumnReader(channels, content), None
    files = coco.find_annotations(root)
    if files and not folder.has_masks(root):
        tables, id2label = coco.coco_tables(root, files)
        return tables, coco.CocoReader(channels), id2label
    if folder.has_images(root):
        tables = folder.find_pairs(root, mask_suffix, arrays=channels is not None, problem=problem)
        return tables, folder.FileReader(channels, content), None
    raise UserError(
        f"dataset: {name}: the folder has neither images/ and masks/, nor train/images and train/masks, nor a COCO "
        "annotations.json"
    )


def _split(
    tables: dict[str, datasets.Dataset], group_by: str | None, seed: int
) -> tuple[dict[str, datasets.Dataset], dict[str, list[str]] | None, list[str]]:
    """Draw the splits that the source does not name; (tables, ids per drawn split or None, notes)."""
    source = "all" if "all" in tables else "train"
    names = ("train", "val", "test") if source == "all" else ("train", "val")
    if source not in tables or (source == "train" and "val" in tables):
        return tables, None, [] if "test" in tables else [_no_test(tables)]
    table = tables[source]
    ids = list(table["id"])
    drawn = {name: part for name, part in split_indices(ids, names, group_by=group_by, seed=seed).items() if part}
    splits = {name: [ids[index] for index in part] for name, part in drawn.items()}
    result = {name: part for name, part in tables.items() if name != source}
    result |= {name: table.select(part) for name, part in drawn.items()}
    counts = ", ".join(f"{len(part)} {name}" for name, part in drawn.items())
    if "val" in drawn:
        notes = [f"images dealt by seed {seed}: {counts}"]
    else:
        notes = ["one image: nothing is held out" if len(ids) == 1 else "one group of images: nothing is held out"]
    if "test" not in result:
        notes.append(_no_test(result))
    return result, splits, notes


def _no_test(tables: dict[str, Any]) -> str:
    instead = "validation images, which also choose the checkpoint" if "val" in tables else "training images"
    return f"no test split: the final evaluation uses the {instead}"


def _check_headers(table: datasets.Dataset, reader: Reader, mask_values: str, seed: int) -> list[tuple[str, bool]]:
    """Name of each mask, and whether it holds colours.

    Raises:
        UserError: the first unreadable file, mask of another size, or lossy mask not read as binary.
    """

    def check(row: dict[str, Any]) -> tuple[str, bool]:
        image, mask = reader.headers(row)
        name = reader.name(row)
        if mask.lossy and mask_values not in ("binary", "alpha"):
            raise UserError(lossy_message(name))
        sizes = (mask.height, mask.width), (image.height, image.width)
        if sizes[0] != sizes[1]:
            # A header may hide a rotation; the pixels decide.
            stored, pixels = reader.read_mask(row)[0].shape[:2], reader.read_image(row).shape[:2]
            if stored != pixels:
                raise UserError(size_message(name, stored, pixels))
        return name, mask.coloured

    if reader.checked_rows is not None:
        table = sample_rows(table, reader.checked_rows, seed)
    return in_threads(check, table)


def _check_colours(masks: list[tuple[str, bool]]) -> None:
    """Refuse colours beside indices: a black mask without colours would be another class than black."""
    named = {coloured: name for name, coloured in reversed(masks)}
    if len(named) == 2:
        raise UserError(
            f"two mask encodings are mixed: {named[True]} holds colours, {named[False]} one value a pixel; store all "
            "masks alike"
        )


def _labels_of(
    palette: Palette, num_labels: int | None, id2label: Mapping[int, str] | None
) -> tuple[int | None, Mapping[int, str]]:
    """num_labels and id2label of a palette whose indices are the classes; a palette of two is binary."""
    if num_labels not in (None, len(palette)):
        raise UserError(f"num_labels: {num_labels}, but the palette holds {len(palette)} classes; leave it out")
    return num_labels or (len(palette) if len(palette) > 2 else None), id2label or palette.id2label


def _id2label(id2label: Mapping | None, num_labels: int | None) -> dict[int, str]:
    count = num_labels or 2
    names = read_id2label(id2label) or {}
    if num_labels is not None and names:
        check_id2label(names, num_labels)
    wrong = [key for key in names if not 0 <= key < count]
    if wrong:
        raise UserError(f"id2label: {len(names)} classes are named, but num_labels is unset; set it to their number")
    default = {0: "background"} | {i: "foreground" if count == 2 else f"class_{i}" for i in range(1, count)}
    return default | names
