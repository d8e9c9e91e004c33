"""`predictions.json`: what is known of every input, and what an earlier call has left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import write_json
from ...inference.uncertainty import rank_key
from .result import ImageResult, Writer


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
    """

    folder: Path
    head: dict[str, Any]
    paths: list[Path]
    writers: list[Writer]
    rank: str | None
    records: dict[Path, dict[str, Any]] = field(default_factory=dict)
    failed: dict[Path, UserError] = field(default_factory=dict)

    def take_over(self, names: Mapping[Path, str]) -> list[Path]:
        """The images whose results an earlier call has written, with their records.

        Raises:
            UserError: that call had other settings, or its file is damaged.
        """
        file = self.folder / INDEX
        if not file.is_file():
            return []
        fix = "leave skip_existing out"
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            earlier = {record["file"]: record for record in before["predictions"] if "error" not in record}
            unsaid = [key for key in self.head if key not in before]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"not the list of an earlier prediction ({error!r})", where=file, fix=fix) from error
        if unsaid:
            raise UserError(f"it does not say {', '.join(unsaid)}, as an older version wrote it", where=file, fix=fix)
        head = {key: before[key] for key in self.head}
        if head != json.loads(json.dumps(self.head)):
            changed = _differences(head, self.head)
            fix = "leave it out, or name another output_dir"
            raise UserError(f"the results in {self.folder} have other {changed}", key="skip_existing", fix=fix)
        since = file.stat().st_mtime_ns
        for path in self.paths:
            record = earlier.get(str(path))
            if record is None or "slices" in record or (self.rank is not None and "uncertainty" not in record):
                continue
            done = all(writer.is_done(record, names[path]) for writer in self.writers)
            if done and path.exists() and path.stat().st_mtime_ns <= since:
                self.records[path] = record | {"skipped": True}
        for writer in self.writers if self.records else ():
            writer.keep(list(self.records.values()))
        return list(self.records)

    def earlier_inputs(self) -> set[str]:
        """The files that the list of an earlier call names; none where there is no such list."""
        file = self.folder / INDEX
        try:
            return {record["file"] for record in json.loads(file.read_text(encoding="utf-8"))["predictions"]}
        except (OSError, ValueError, KeyError, TypeError):
            return set()

    def add(self, path: Path, result: ImageResult, record: dict[str, Any]) -> None:
        """Write an image's results, and keep what is to be said of it."""
        written: dict[str, Any] = {}
        for writer in self.writers:
            written |= writer.write(result)
        self.records[path] = {"file": str(path), **written, **record}

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
        write_json(self.folder / INDEX, {**self.head, "predictions": self.listed()})

    def first_failure(self) -> UserError:
        """The error where no image could be read."""
        first = next(iter(self.failed.values()))
        count = f" (and so {len(self.failed) - 1} further images)" if len(self.failed) > 1 else ""
        return first.replace(problem=f"{first.problem}{count}")


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """The keys that differ, in words."""
    old, new = ({**head, **head["settings"]} for head in (before, after))
    return ", ".join(key for key in new if key != "settings" and old.get(key) != json.loads(json.dumps(new[key])))
