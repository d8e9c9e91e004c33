"""Embeddings on disk: rows of equal shape in memory-mapped files, found by the content of their image."""

from __future__ import annotations

import json
import math
import os
import time
import uuid
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from ...data.walk import is_leftover
from ...errors import UserError


PART_BYTES = 2**26  # a part's size in bytes: what an interrupted build loses at most
_ABANDONED = 24 * 3600  # seconds without a write after which a temporary file has no writer any more
# numpy has no bfloat16: every two-byte type is stored as its bits.
_STORED = {torch.float32: np.float32, torch.bfloat16: np.int16, torch.float16: np.int16}


class EmbeddingStore:
    """A folder of embeddings under the digests of their images; grows, and is shared by runs and processes.

    The rows lie in parts `<name>.bin`. A part exists once its `<name>.json` does (digests, shape and dtype), which is
    written last and renamed into place; whatever an interrupted build leaves is not read and is removed later. No file
    stays mapped between reads, so neither reading nor writing takes memory that grows with the store.

    Args:
        folder: created by the first row that is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._parts: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        self._places: dict[str, tuple[str, int]] = {}  # digest -> part, row
        self.refresh()

    def __contains__(self, digest: str) -> bool:
        return digest in self._places

    def __len__(self) -> int:
        return len(self._places)

    @property
    def num_bytes(self) -> int:
        """Size of all rows on disk."""
        return sum((self.folder / f"{part}.bin").stat().st_size for part in self._parts)

    def refresh(self) -> None:
        """Learn of the parts that this or another process has finished."""
        for index in sorted(self.folder.glob("*.json")):
            if index.stem not in self._parts and not is_leftover(index.name):
                self._add_part(index)

    def read(self, digest: str) -> torch.Tensor:
        """A copy of the embedding of one image, on the CPU. Raises `KeyError` if it is not there."""
        part, row = self._places[digest]
        dtype, shape = self._parts[part]
        offset = row * _row_bytes(dtype, shape)
        mapped = np.memmap(self.folder / f"{part}.bin", _STORED[dtype], mode="r", offset=offset, shape=shape)
        return torch.from_numpy(np.array(mapped)).view(dtype)

    def _add_part(self, index: Path) -> None:
        """Register a part, unless its file is not what its index says."""
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
            dtype, shape = getattr(torch, content["dtype"]), tuple(content["shape"])
            digests = content["digests"]
            whole = index.with_suffix(".bin").stat().st_size == len(digests) * _row_bytes(dtype, shape)
        except (OSError, ValueError, KeyError, AttributeError):
            whole = False
        if whole:
            self._parts[index.stem] = dtype, shape
            self._places.update((digest, (index.stem, row)) for row, digest in enumerate(digests))


class EmbeddingWriter:
    """Adds rows to a store; a context manager. Several writers, in any processes, do not disturb each other.

    Rows are readable from `store` once their part is finished, at the latest when the context ends. That holds for
    an exception, too: the rows written before it are kept.
    """

    def __init__(self, store: EmbeddingStore) -> None:
        self.store = store
        self._file: BinaryIO | None = None
        self._part = ""
        self._failed = False
        self._digests: list[str] = []
        self._row: tuple[torch.dtype, tuple[int, ...]] | None = None

    def __enter__(self) -> EmbeddingWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: object) -> None:
        # A failed write would fail again here.
        if not self._failed:
            self._finish_part()

    def write(self, digest: str, embedding: torch.Tensor) -> None:
        """Add one embedding, float32, bfloat16 or float16 of any shape.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        row = embedding.dtype, tuple(embedding.shape)
        if self._row is not None and row != self._row:
            self._finish_part()
        stored = embedding.detach().cpu().contiguous()
        stored = stored if stored.dtype == torch.float32 else stored.view(torch.int16)
        try:
            file = self._file or self._begin_part()
            file.write(stored.numpy().data)
        except OSError as error:
            raise self._refusal(error) from error
        self._row = row
        self._digests.append(digest)
        if file.tell() >= PART_BYTES:
            self._finish_part()

    def _begin_part(self) -> BinaryIO:
        self.store.folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(self.store.folder)
        self._part = uuid.uuid4().hex
        self._file = open(self._temporary(".bin"), "wb")
        return self._file

    def _finish_part(self) -> None:
        """Make the rows written so far a part: first the rows, then the index that declares them."""
        if self._file is None:
            return
        row, digests, file = self._row, self._digests, self._file
        self._file, self._digests, self._row = None, [], None
        try:
            with file:
                # Ctrl-C in the middle of a write may have left a piece of a row.
                file.truncate(len(digests) * _row_bytes(*row) if row else 0)
                file.flush()
                os.fsync(file.fileno())
            if row is None:
                self._temporary(".bin").unlink()
                return
            index = {"dtype": str(row[0]).removeprefix("torch."), "shape": row[1], "digests": digests}
            self._temporary(".json").write_text(json.dumps(index), encoding="utf-8")
            for suffix in (".bin", ".json"):
                self._temporary(suffix).replace(self.store.folder / f"{self._part}{suffix}")
        except OSError as error:
            raise self._refusal(error) from error
        self.store.refresh()

    def _temporary(self, suffix: str) -> Path:
        return self.store.folder / f".tmp_{self._part}{suffix}"

    def _refusal(self, error: OSError) -> UserError:
        self._failed = True
        return UserError(
            f"cannot write to {self.store.folder} ({error.strerror})",
            key="cache_embeddings",
            fix="name another folder in the environment variable HF_SAM_ADAPT_CACHE, or leave cache_embeddings out",
        )


def _row_bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return np.dtype(_STORED[dtype]).itemsize * math.prod(shape)


def _remove_abandoned(folder: Path) -> None:
    """Remove what builds have left that were killed long ago; a build under way writes often."""
    undeclared = [path for path in folder.glob("*.bin") if not path.with_suffix(".json").exists()]
    for path in {*folder.glob(".tmp_*"), *undeclared}:
        if time.time() - path.stat().st_mtime > _ABANDONED:
            path.unlink(missing_ok=True)
