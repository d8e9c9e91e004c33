"""`predictions.json`: what is known of every input, and what an earlier call has left."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ...data.folder import IMAGE_SUFFIXES
from ...errors import UserError
from ...files import write_json
from ...inference.uncertainty import rank_key
from .result import ImageResult, Writer, named_files


INDEX = "predictions.json"


@dataclass
class Index:
    """What is known of every input, and `predictions.json` with it.

    Attributes:
        folder: of the results.
        head: adapter, model, digest of the weights, and settings, which a later call compares.
        paths: of the inputs, in their order.
        writers: of the formats.
        rank: whether the least sure come first.
        records: of the images that are done.
        failed: why others are not.
        planned: the files in `folder` that this call or an earlier one may have written.
        before: the list of the earlier call.
        sources: what tells each input's file from another, see `source_of`.

    Raises:
        UserError: `predictions.json` is there and is not such a list.
    """

    folder: Path
    head: dict[str, Any]
    paths: list[Path]
    writers: list[Writer]
    rank: str | None
    records: dict[Path, dict[str, Any]] = field(default_factory=dict)
    failed: dict[Path, UserError] = field(default_factory=dict)
    planned: set[str] = field(default_factory=set)
    before: dict[str, Any] = field(init=False)
    sources: dict[Path, dict[str, Any]] = field(init=False)
    _begun: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.before = _earlier(self.folder / INDEX)
        self.sources = {path: source_of(path) for path in self.paths}

    def take_over(self, names: Mapping[Path, str]) -> list[Path]:
        """The images whose results an earlier call has written, with their records.

        Raises:
            UserError: that call had other settings.
        """
        file = self.folder / INDEX
        if not file.is_file():
            return []
        if unsaid := [key for key in self.head if key not in self.before]:
            problem = f"it does not say {', '.join(unsaid)}, as an older version wrote it"
            raise UserError(problem, where=file, fix="leave skip_existing out")
        earlier = {record["file"]: record for record in self.before["predictions"] if "error" not in record}
        head = {key: self.before[key] for key in self.head}
        if head != json.loads(json.dumps(self.head)):
            changed = _differences(head, self.head)
            fix = "leave it out, or name another output_dir"
            raise UserError(f"the results in {self.folder} have other {changed}", key="skip_existing", fix=fix)
        for path in self.paths:
            record = earlier.get(str(path))
            if record is None or "slices" in record or (self.rank is not None and "uncertainty" not in record):
                continue
            same = record.get("source") == self.sources[path]
            if same and all(writer.is_done(record, names[path]) for writer in self.writers):
                self.records[path] = record | {"skipped": True}
        for writer in self.writers if self.records else ():
            writer.keep(list(self.records.values()))
        return list(self.records)

    def begin(self) -> None:
        """Before the first result: a list without what it may replace, for whoever comes after a killed process."""
        if not self._begun:
            self._begun = True
            self._store(self.planned)

    def add(self, path: Path, result: ImageResult, record: dict[str, Any]) -> None:
        """Write an image's results, and keep what is to be said of it."""
        self.begin()
        written: dict[str, Any] = {}
        for writer in self.writers:
            written |= writer.write(result)
        self.note(path, {**written, **record})

    def note(self, path: Path, record: Mapping[str, Any]) -> None:
        """Keep what is to be said of an image whose results are written."""
        self.records[path] = {"file": str(path), "source": self.sources[path], **record}

    def pieces(self) -> list[dict[str, Any]]:
        """The records of all images, and of volumes those of their slices, in the order of `listed`."""
        parts = [part for record in self.listed() if "error" not in record for part in record.get("slices", [record])]
        if self.rank is not None:
            parts.sort(key=lambda record: rank_key(record["uncertainty"]), reverse=True)
        return parts

    def listed(self) -> list[dict[str, Any]]:
        """A record for each image that was reached; ranked where that was asked for, those with an error last."""
        if self.rank is not None:
            done = sorted(self.records.values(), key=lambda record: rank_key(record["uncertainty"]), reverse=True)
            return done + [{"file": str(path), "error": str(error)} for path, error in self.failed.items()]
        known = (path for path in self.paths if path in self.records or path in self.failed)
        return [self.records.get(path) or {"file": str(path), "error": str(self.failed[path])} for path in known]

    def write(self) -> None:
        """The files for all images."""
        for writer in self.writers:
            writer.finish(self.pieces())
        files = self.planned.union(*(files_of(record) for record in self.records.values()))
        self._store({file for file in files if (self.folder / file).is_file()})

    def _store(self, written: Iterable[str]) -> None:
        content = {**self.head, "predictions": self.listed(), "written": sorted(written)}
        write_json(self.folder / INDEX, content)

    def first_failure(self) -> UserError:
        """The error where no image could be read."""
        first = next(iter(self.failed.values()))
        count = f" (and so {len(self.failed) - 1} further images)" if len(self.failed) > 1 else ""
        return first.replace(problem=f"{first.problem}{count}")


def source_of(path: Path) -> dict[str, Any]:
    """What tells an input from another under its name, and from what it is after a change: its absolute `path`,
    `size` and `mtime_ns`, of a folder the sums of those of its files."""
    files = [path] if path.is_file() else [file for file in path.iterdir() if file.is_file()]
    stats = [file.stat() for file in files]
    sums = {"size": sum(stat.st_size for stat in stats), "mtime_ns": sum(stat.st_mtime_ns for stat in stats)}
    return {"path": str(path.resolve()), **sums}


def files_of(record: Mapping[str, Any], name: str | None = None) -> set[str]:
    """The files of results that a record names, and those that were written beside them.

    Args:
        name: of the image, where it is known.
    """
    files = named_files(record).union(*(files_of(part) for part in record.get("slices", ())))
    for file in map(PurePosixPath, tuple(files)):
        if file.match("labelme/*.json"):
            files |= {f"labelme/{file.stem}{suffix}" for suffix in IMAGE_SUFFIXES}
        if file.match("yolo/labels/*.txt"):
            files |= {"yolo/data.yaml", *(f"yolo/images/{file.stem}{suffix}" for suffix in IMAGE_SUFFIXES)}
    if "instances" in record:
        files |= {"instances.json"} | ({f"{name}_instances.png"} if name is not None else set())
    return files


def _earlier(file: Path) -> dict[str, Any]:
    """The content of the list of an earlier call; without records where there is none."""
    if not file.exists():
        return {"predictions": []}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        files = [record["file"] for record in content["predictions"]] + content.get("written", [])
        if not all(isinstance(file, str) for file in files):
            raise TypeError("a file without a name")
        return content
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        fix = "name another output_dir, or move it away"
        raise UserError(f"not the list of an earlier prediction ({error!r})", where=file, fix=fix) from error


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The keys that differ, in words."""
    old, new = ({**head, **head["settings"]} for head in (before, after))
    return ", ".join(key for key in new if key != "settings" and old.get(key) != json.loads(json.dumps(new[key])))
