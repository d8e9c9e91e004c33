"""From what the user names as `dataset` to checked splits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError, require_extra
from ..names import DRAWN, check_id2label, compare_names, read_id2label
from . import coco, columns, folder
from . import drawn_domains as generated
from .dataset import Reader, SegmentationData, SegmentationSplit, size_mismatch
from .degenerate import degenerate, unused_map_notes
from .encoding import MaskEncoding, check_threshold, lossy_mask, parse_label_map, resolve_encoding
from .images import MaskContent
from .notes import Note
from .palettes import Palette, resolve_palette
from .reading import Reading
from .scan import ScannedMask, in_threads, palette_notes, sample_rows, scan_masks, soft_notes
from .splits import draw_splits, no_test_note
from .volumes.folder import VolumeReader, find_volumes, has_volumes, slice_tables, unread_in_volume_set
from .volumes.slices import SliceKeys


if TYPE_CHECKING:
    import datasets
    import numpy as np


_HINT = "the masks, mask_values and label_map"
_UNREAD = "files of the folder are not read"


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
    slice_axis: str | None = None,
    window: Sequence[float] | None = None,
    neighbours: int | None = None,
    seed: int = 0,
    known: Mapping[str, Sequence[str]] | None = None,
) -> SegmentationData:
    """Load, check and split a segmentation data set.

    The headers of all files are read. The mask values of the training and validation data are read up to 2,000
    images, beyond that of a seeded sample of 2,000; each mask is checked again when it is used. No pixel of the test
    split is read. Where splits are drawn, the name of an image (or of its group) and the seed alone decide its side,
    so it stays when others come or go. Validation images without foreground choose no checkpoint.

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
        slice_axis, window, neighbours: how volumes are cut into images, see `SliceKeys`; of volumes alone.
        seed: of the split and of the sample that is scanned.
        known: ids per split of an earlier run on this data set, its `splits.json`; where splits are drawn these images
            keep their sides.

    Raises:
        UserError: whatever would end a training later, or teach it nothing, in one line.
    """
    require_extra("train", "reading a data set")
    reading = Reading(
        mask_suffix,
        mask_values,
        mask_threshold,
        label_map,
        num_labels,
        id2label,
        group_by,
        channels,
        palette,
        slice_axis,
        window,
        neighbours,
        seed,
    )
    source = open_source(dataset, reading, known=known)
    tables, reader, palette = source.tables, source.reader, source.palette
    headers = [
        header for table in tables.values() for header in _check_headers(table, reader, source.mask_values, seed)
    ]
    if palette is not None:
        _check_colours(headers)
    parts: dict[str, Any] = {name: tables[name] for name in ("train", "val") if name in tables}
    asked = source.encoding([])[0]
    fixed = asked if palette is None and source.mask_values in ("binary", "alpha") else None
    scanned = scan_masks(parts, reader, palette, source.label_map, fixed, seed)
    masks = [mask for found in scanned.values() for mask in found]
    stored = [(mask.name, mask.values, mask.lossy) for mask in masks]
    colours = [] if palette is None else palette_notes(masks)
    encoding, notes = source.encoding(stored)
    notes += unused_map_notes(source.label_map, [mask.mapped for mask in masks])
    if mask_threshold is None:
        notes = soft_notes(masks) + notes
    val_chooses = True

    def trouble(found: list[ScannedMask]) -> str | None:
        classes = [mask.values if fixed else encoding.classes(mask.values, mask.lossy, mask.name) for mask in found]
        return degenerate(classes, encoding)

    for name, found in scanned.items():
        problem = trouble(found)
        if problem and len(found) < len(tables[name]):  # the sample may have missed the others
            every = {name: tables[name]}
            problem = trouble(
                scan_masks(every, reader, palette, source.label_map, fixed, seed, limit=len(tables[name]))[name]
            )
        if problem and name == "train":
            raise UserError(
                f"{problem} in {len(tables[name])} training masks", key="dataset", where=dataset, fix=f"check {_HINT}"
            )
        if problem:
            val_chooses = False
            notes.append(f"{problem} in the validation masks: they choose no checkpoint, the last one is kept")
            if "test" not in tables:
                source.notes[-1] = no_test_note(())
    splits = {name: SegmentationSplit(table, reader, encoding) for name, table in tables.items()}
    return SegmentationData(
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        num_labels=source.num_labels,
        id2label=source.id2label,
        mask_values=encoding.mask_values,
        name=os.fspath(dataset) if isinstance(dataset, (str, os.PathLike)) else type(dataset).__name__,
        notes=colours + notes + source.left_out + source.notes,
        splits=source.splits,
        palette=palette,
        val_chooses=val_chooses,
        slices=reader.keys.plain() if isinstance(reader, VolumeReader) else None,
    )


@dataclass
class Source:
    """A data set of which no pixel has been read.

    Attributes:
        tables: per split, what `reader` takes, with the column "id".
        mask_values, mask_threshold, label_map, num_labels, id2label, palette: as given, completed by what the source
            itself says.
        splits: keys per split where they were drawn by seed, else None.
        left_out: sentences about what is not read, or otherwise than written.
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
    left_out: list[str]
    notes: list[str]

    def encoding(self, masks: Iterable[tuple[str, np.ndarray, bool]]) -> tuple[MaskEncoding, list[str]]:
        """How such masks are read, and notes; see `resolve_encoding`."""
        told = self.mask_values, self.num_labels, self.label_map, self.palette
        return resolve_encoding(masks, *told, self.reader.draws_ignored, self.mask_threshold)


def open_source(
    dataset: Any,
    reading: Reading = Reading(),  # noqa: B008, frozen
    *,
    known: Mapping[str, Sequence[str]] | None = None,
    problem: folder.Problem = folder.refuse,
) -> Source:
    """Find and split what `load_segmentation_dataset` then checks.

    Args:
        dataset, known: as there.
        problem: told of files that do not pair; see `find_pairs`.

    Raises:
        UserError: no such data set, keys that contradict each other or it, or no training images.
    """
    num_labels, id2label, channels = reading.num_labels, reading.id2label, reading.channels
    label_map = parse_label_map(reading.label_map)
    mask_values = check_threshold(reading.mask_threshold, reading.mask_values)
    if num_labels is not None and not 2 <= num_labels <= 255:
        raise UserError(
            f"{num_labels} is not in 2..255",
            key="num_labels",
            fix="it counts the background, leave it out for binary masks",
        )
    if channels is not None and channels < 1:
        raise UserError(f"{channels} is below 1", key="channels", fix="leave it out for RGB photographs")
    palette = resolve_palette(reading.palette)
    if palette is not None and label_map is None:
        num_labels, id2label = _labels_of(palette, num_labels, id2label)
    content: MaskContent = "colours" if palette is not None else "alpha" if mask_values == "alpha" else "values"
    slices = {key: getattr(reading, key) for key in ("slice_axis", "window", "neighbours")}
    tables, reader, found_labels, left_out = _open(dataset, reading.mask_suffix, channels, content, problem, slices)
    given = next((key for key, value in slices.items() if value is not None), None)
    if given is not None and not isinstance(reader, VolumeReader):
        raise UserError("it is for volumes, and the data set has none", key=given, fix="leave it out")
    if found_labels is not None and content != "values":
        key, value = ("palette", None) if palette is not None else ("mask_values", "alpha")
        raise UserError(f"{dataset} says its classes itself", key=key, where=value, fix="leave it out")
    stated = found_labels if palette is None else palette.id2label
    if stated is not None and mask_values != "binary" and label_map is None:
        left_out += compare_names(read_id2label(id2label) or {}, stated, str(dataset))
    if found_labels is not None and mask_values != "binary":
        mask_values = "index"
        # With a label_map the values are classes of the user's own.
        if label_map is None:
            id2label = id2label or found_labels
            num_labels = num_labels or (len(found_labels) if len(found_labels) > 2 else None)
    empty = next((name for name in ("val", "test") if name in tables and not len(tables[name])), None)
    if empty is not None:
        raise UserError(
            f"no images in its split {empty}", key="dataset", where=dataset, fix="add some, or remove the split"
        )
    tables, splits, notes = draw_splits(tables, reading.group_by, reading.seed, known)
    if "train" not in tables or not len(tables["train"]):
        raise UserError("no training images", key="dataset", where=dataset)
    if isinstance(reader, VolumeReader):
        tables = slice_tables(tables)
    told = mask_values, reading.mask_threshold, label_map, num_labels, _id2label(id2label, num_labels), palette
    return Source(tables, reader, *told, splits, left_out, notes)


def _open(
    dataset: Any,
    mask_suffix: str | None,
    channels: int | None,
    content: MaskContent,
    problem: folder.Problem,
    slices: Mapping[str, Any],
) -> tuple[dict[str, datasets.Dataset], Reader, dict[int, str] | None, list[str]]:
    """Tables per split (or "all"), their reader, class names where the source says them, and what is left out."""
    if not isinstance(dataset, (str, os.PathLike)):
        return _column_source(dataset, channels, content)
    name = os.fspath(dataset)
    if name.startswith(DRAWN):
        return *generated.generated_tables(name, channels), []
    root = Path(name).expanduser()
    if not root.is_dir():
        # A path into an existing folder is a misspelt path rather than a Hub id.
        if root.exists() or root.parent.is_dir() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
            kind = "is not a folder" if root.exists() else "missing folder"
            raise UserError(
                kind, key="dataset", where=name, fix="give a folder, a Hub id owner/name, or synthetic:<domain>"
            )
        return _column_source(columns.load_hub(name), channels, content)
    if columns.is_saved_dataset(root):
        return _column_source(columns.load_saved(root), channels, content)
    files = coco.find_annotations(root)
    if files and not folder.has_masks(root):
        source = coco.read_coco_source(root, files, channels=channels)
        unread = folder.unread_files(root, source.tables)
        left_out = source.lines() + _left_out(root, unread, "images that no annotation file lists")
        return source.tables, coco.CocoReader(channels), source.id2label, left_out
    if folder.has_images(root) and has_volumes(root):
        if content != "values":
            key = "palette" if content == "colours" else "mask_values"
            raise UserError("masks of volumes hold one value a voxel", key=key, fix="leave it out")
        keys = SliceKeys.of(slices, channels)
        tables, notes = find_volumes(root, keys, mask_suffix, problem)
        return tables, VolumeReader(keys), None, notes + _left_out(root, unread_in_volume_set(root), _UNREAD)
    if folder.has_images(root):
        tables = folder.find_pairs(root, mask_suffix, arrays=channels is not None, problem=problem)
        left_out = _left_out(root, folder.unread_files(root, tables), _UNREAD)
        if "all" in tables and (lists := folder.split_lists(root)):
            count = f"{len(lists)} lists of splits are not read"
            fix = "the splits are folders train, val and test with images and masks"
            left_out.append(Note(f"{count}, such as {lists[0].relative_to(root)}: {fix}", count))
        return tables, folder.FileReader(channels, content), None, left_out
    raise UserError(
        "the folder has neither images/ and masks/, nor train/images and train/masks, nor a COCO annotations.json",
        key="dataset",
        where=name,
        fix="rename its folders and give an image and its mask one name (parquet: save it by datasets' save_to_disk)",
    )


def _column_source(data: Any, channels: int | None, content: MaskContent) -> Any:
    """What `_open` returns of a data set of the library `datasets`."""
    tables = columns.column_tables(data)
    return tables, columns.ColumnReader(channels, content), None, columns.unread_splits(data)


def _left_out(root: Path, unread: list[Path], what: str) -> list[str]:
    count = f"{len(unread)} {what}"
    return [Note(f"{count}, such as {unread[0].relative_to(root)}", count)] if unread else []


def _check_headers(table: datasets.Dataset, reader: Reader, mask_values: str, seed: int) -> list[tuple[str, bool]]:
    """Name of each mask, and whether it holds colours.

    Raises:
        UserError: the first unreadable file, mask of another size, or lossy mask not read as binary.
    """

    def check(row: dict[str, Any]) -> tuple[str, bool]:
        image, mask = reader.headers(row)
        name = reader.name(row)
        if mask.lossy and mask_values not in ("binary", "alpha"):
            raise lossy_mask(name)
        sizes = (mask.height, mask.width), (image.height, image.width)
        if sizes[0] != sizes[1]:
            # A header may hide a rotation; the pixels decide.
            stored, pixels = reader.read_mask(row)[0].shape[:2], reader.read_image(row).shape[:2]
            if stored != pixels:
                raise size_mismatch(name, stored, pixels)
        return name, mask.coloured

    if reader.checked_rows is not None:
        table = sample_rows(table, reader.checked_rows, seed)
    return in_threads(check, table)


def _check_colours(masks: list[tuple[str, bool]]) -> None:
    """Refuse colours beside indices: a black mask without colours would be another class than black."""
    named = {coloured: name for name, coloured in reversed(masks)}
    if len(named) == 2:
        raise UserError(
            f"two mask encodings are mixed: {named[True]} holds colours, {named[False]} one value a pixel",
            fix="store all masks alike",
            code="mixed-encoding",
        )


def _labels_of(
    palette: Palette, num_labels: int | None, id2label: Mapping[int, str] | None
) -> tuple[int | None, Mapping[int, str]]:
    """num_labels and id2label of a palette whose indices are the classes; a palette of two is binary."""
    if num_labels not in (None, len(palette)):
        raise UserError(
            f"{num_labels}, but the palette holds {len(palette)} classes", key="num_labels", fix="leave it out"
        )
    return num_labels or (len(palette) if len(palette) > 2 else None), id2label or palette.id2label


def _id2label(id2label: Mapping | None, num_labels: int | None) -> dict[int, str]:
    count = num_labels or 2
    names = read_id2label(id2label) or {}
    if num_labels is not None and names:
        check_id2label(names, num_labels)
    wrong = [key for key in names if not 0 <= key < count]
    if wrong:
        raise UserError(
            f"{len(names)} classes are named, but num_labels is unset", key="id2label", fix="set it to their number"
        )
    default = {0: "background"} | {i: "foreground" if count == 2 else f"class_{i}" for i in range(1, count)}
    return default | names
