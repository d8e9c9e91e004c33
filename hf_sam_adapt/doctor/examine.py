"""The examination of a whole data set: list its files, read each image and mask once, then look at all of it."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset
from tqdm import tqdm

from ..data.coco import CocoReader
from ..data.encoding import MaskEncoding, map_values, present_values
from ..data.folder import IMAGE_SUFFIXES, FileReader, split_lists, unread_files
from ..data.images import IGNORE
from ..data.palettes import to_labels
from ..data.reading import READ_KEYS, Reading
from ..data.scan import SCANNED, in_threads, sample_rows
from ..data.sources import Source, open_source
from ..data.splits import group_keys
from ..data.tiles import Tiles
from ..data.volumes.folder import VolumeReader, unread_in_volume_set
from ..data.walk import is_leftover
from ..distributed import SampleLoader, own_cores
from ..errors import UserError, require_extra
from .checks import (
    SplitFacts,
    check_amount,
    check_classes,
    check_foreground,
    check_label_map,
    check_objects,
    check_pixels,
    check_splits,
)
from .findings import ERROR, WARNING, Finding, Findings, from_error
from .leakage import check_groups, check_leakage
from .sample import RECORD, Examiner, SampleFacts, parts_of
from .scenes import check_places
from .volumes import check_volumes


if TYPE_CHECKING:
    import datasets

CHUNK = 16  # images that a process is given at a time
ALONE = 200  # up to so many images are read without further processes
MAX_PROCESSES = 16
SPLITS = ("train", "val", "test")
_UNPAIRED = {
    "missing-mask": "image without mask",
    "missing-image": "mask without image",
    "same-stem": "another file in its folder has the same stem",
}


@dataclass
class Diagnosis:
    """What an examination found.

    Attributes:
        findings: all of them, or as many of each cause as was asked for.
        source: the data set, None where it could not be opened.
        encoding: how its masks were read.
        facts: per split, sums over its images.
        readable: per split, bool (n,): image and mask can be trained on.
        seconds: that it took.
    """

    findings: Findings
    source: Source | None
    encoding: MaskEncoding | None
    facts: dict[str, SplitFacts]
    readable: dict[str, np.ndarray]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.findings.total(ERROR)


def examine_dataset(
    dataset: Any,
    *,
    normalization: str | None = None,
    mask_size: int = 256,
    tiles: Tiles | None = None,
    limit: int = 20,
    processes: int | None = None,
    **keys: Any,
) -> Diagnosis:
    """Read every image and mask of a data set once, the test images too, and say what is wrong.

    Memory: under 2 KB an image, most of it for the list of files.

    Args:
        dataset: see `load_segmentation_dataset`.
        normalization: see `fit_normalization`; None = that of SAM, with channels "percentile".
        mask_size: side of the mask that the decoder predicts, in pixels; SAM's is 256.
        tiles: how a training will cut the images; None = not at all.
        limit: findings kept of each cause, 0 = all.
        processes: that read; None = one per CPU, 0 = this one.
        keys: fields of `Reading`.

    Raises:
        UserError: no such data set, or keys that contradict each other or it.
    """
    require_extra("train", "examining a data set")
    start, findings = time.perf_counter(), Findings(limit)
    reading = Reading(**keys)
    group_by, channels = reading.group_by, reading.channels
    if group_by is not None:
        group_keys([], group_by)  # raises where it is no regular expression
    told: set[str] = set()
    source = _open(dataset, reading, findings, told)
    if source is None:
        return Diagnosis(findings, None, None, {}, {}, time.perf_counter() - start)
    name = os.fspath(dataset) if isinstance(dataset, (str, os.PathLike)) else type(dataset).__name__
    if isinstance(source.reader, (FileReader, VolumeReader)):
        findings.add(_odd_files(Path(dataset).expanduser(), source, told))
    if isinstance(source.reader, CocoReader):
        fix = "correct the annotations, unless that is meant"
        findings.add(Finding(WARNING, "annotations", name, text, fix, text) for text in source.left_out)
    encoding, refusal = choose_encoding(source, reading.seed)
    ignore_named = IGNORE in (source.label_map or {}).values()
    slices = isinstance(source.reader, VolumeReader)
    examiner = Examiner(
        source.reader,
        encoding,
        photographs=channels is None,
        mixed=source.mask_values == "auto" and source.palette is None and not ignore_named,
        mask_size=mask_size,
        amplitudes=normalization == "db",
        slices=slices,
        tiles=tiles,
    )
    tables = {name: source.tables[name] for name in SPLITS if name in source.tables}
    facts = {name: SplitFacts(encoding.num_labels or 2) for name in tables}
    records = np.zeros(sum(map(len, tables.values())), RECORD)
    for place, (split, sample) in enumerate(_examined(tables, examiner, processes)):
        findings.add(sample.findings)
        facts[split].add(sample)
        records[place] = sample.record
    for found in (
        check_amount(name, facts),
        check_label_map(name, facts, source.label_map),
        check_classes(name, facts, source.id2label, encoding.num_labels),
        check_foreground(name, facts),
        check_objects(name, facts, mask_size, tiles),
        check_places(name, facts),
        check_pixels(name, facts, normalization or ("imagenet" if channels is None else "percentile"), channels),
        check_splits(tables, records, source, encoding),
        check_volumes(tables, records) if slices else check_leakage(tables, records, source),
        check_groups(tables, source, group_by),
    ):
        findings.add(found)
    if refusal is not None and not findings.total(ERROR):
        findings.add([from_error(refusal, name, "refused")])
    readable = {split: records["read"][part] for split, part in parts_of(tables).items()}
    return Diagnosis(findings, source, encoding, facts, readable, time.perf_counter() - start)


def _open(dataset: Any, reading: Reading, findings: Findings, told: set[str]) -> Source | None:
    """The data set without the files that do not pair, which go to `told`; None where nothing can be trained on."""

    def problem(error: UserError, files: list[str]) -> None:
        for file in files:
            said = _UNPAIRED.get(error.code)
            findings.add(
                [from_error(error, file) if said is None else Finding(ERROR, error.code, file, said, str(error.fix))]
            )
        told.update(files)

    try:
        return open_source(dataset, reading, problem=problem)
    except UserError as error:
        unmatched = error.key == "group_by"  # it is a regular expression
        elsewhere = isinstance(dataset, (str, os.PathLike)) and not Path(dataset).expanduser().is_dir()
        if (error.key in READ_KEYS and not unmatched) or elsewhere:
            raise
        # Where files do not pair, an empty split is no other cause.
        if not told or error.key != "dataset":
            findings.add([from_error(error, str(dataset), "group-by" if unmatched else "layout")])
    if not unmatched:
        return None
    return open_source(dataset, dataclasses.replace(reading, group_by=None), problem=lambda *told: None)


def _odd_files(root: Path, source: Source, told: set[str]) -> Iterator[Finding]:
    """Files beside those of the data set that nothing reads, and with them what systems and tools have left."""
    volumes = isinstance(source.reader, VolumeReader)
    unread = unread_in_volume_set(root) if volumes else unread_files(root, source.tables)
    for path in (path for path in unread if str(path) not in told):
        value, fix = f"a file of type {path.suffix.lower() or 'none'}, which nothing reads", "remove it, or convert it"
        if path.suffix.lower() in IMAGE_SUFFIXES:
            value, fix = "an image in no folder that is read", "splits are train, val and test, with images and masks"
        yield Finding(WARNING, "odd-file", str(path), value, fix)
    for path in split_lists(root) if source.splits is not None else ():
        value = "a list of a split, which nothing reads"
        yield Finding(WARNING, "odd-file", str(path), value, "move its images into folders train, val, test")
    for folder in sorted(path for part in ("images", "masks") for path in (root / part, *root.glob(f"*/{part}"))):
        for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
            if is_leftover(name):
                value = "left there by a system or a tool, which nothing reads"
                yield Finding(WARNING, "odd-file", str(folder / name), value, "remove it")


def choose_encoding(source: Source, seed: int) -> tuple[MaskEncoding, UserError | None]:
    """What a training would decide; where it would refuse, what most of the masks are, and its error.

    Raises:
        UserError: keys that contradict each other.
    """
    by_keys = source.encoding([])[0]
    if source.reader.checked_rows == 0:
        return by_keys, None

    def look(row: dict[str, Any]) -> tuple[str, np.ndarray, bool] | None:
        try:
            (stored, lossy), name = source.reader.read_mask(row), source.reader.name(row)
            if stored.ndim == 3 and source.palette is not None:
                stored = to_labels(stored, source.palette)
            if lossy or stored.ndim == 3:
                return None
            return name, present_values(map_values(stored, source.label_map), name), lossy
        except Exception:  # is found again, and said, when all files are examined
            return None

    seen = [source.tables[name] for name in ("train", "val") if name in source.tables]
    total = sum(len(table) for table in seen)
    samples = [sample_rows(table, max(1, SCANNED * len(table) // max(total, SCANNED)), seed) for table in seen]
    masks = [found for table in samples for found in in_threads(look, table) if found is not None]
    try:
        return source.encoding(masks)[0], None
    except UserError as error:
        values = [present for _, present, _ in masks]
        pictures = sum(bool(present[IGNORE] and not present[1:IGNORE].any()) for present in values)
        indices = sum(bool(present[1 : source.num_labels or 2].any()) for present in values)
        # Soft edges of 0/255 pictures hold values between.
        soft = sum(bool(present[IGNORE] and present[source.num_labels or 2 : IGNORE].any()) for present in values)
        if source.mask_values == "auto" and source.palette is None and pictures and pictures + soft > indices:
            return MaskEncoding("binary", source.num_labels, source.label_map, exact=True), error
        return MaskEncoding("index", source.num_labels, source.label_map, palette=source.palette), error


class _Chunks(Dataset):
    """Facts of a chunk of rows at a time, with the split of each."""

    def __init__(self, tables: dict[str, datasets.Dataset], examiner: Examiner) -> None:
        self.tables, self.examiner = tables, examiner
        self.starts = [(name, start) for name, table in tables.items() for start in range(0, len(table), CHUNK)]

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> list[tuple[str, SampleFacts]]:
        split, start = self.starts[index]
        batch = self.tables[split][start : start + CHUNK]
        rows = (dict(zip(batch, values)) for values in zip(*batch.values()))
        return [(split, self.examiner(row)) for row in rows]


def _examined(
    tables: dict[str, datasets.Dataset], examiner: Examiner, processes: int | None
) -> Iterator[tuple[str, SampleFacts]]:
    """Facts of every row, in order; a bounded number of chunks is under way."""
    total = sum(len(table) for table in tables.values())
    if processes is None:
        processes = min(MAX_PROCESSES, own_cores()) if total > ALONE and own_cores() > 1 else 0
    loader = SampleLoader(_Chunks(tables, examiner), batch_size=None, num_workers=processes)
    with tqdm(total=total, unit="image", disable=not sys.stderr.isatty()) as bar:
        for chunk in loader:
            yield from chunk
            bar.update(len(chunk))
