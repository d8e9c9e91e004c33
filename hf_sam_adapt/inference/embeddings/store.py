"""Embeddings on disk: a safetensors file an image, found by the content of the image."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from ...errors import UserError


NAME = "embedding"  # of the tensor in each file
SUFFIX = ".safetensors"
_TEMPORARY = ".tmp_"
_ABANDONED = 24 * 3600  # seconds without a write after which a temporary file has no writer any more


class EmbeddingStore:
    """A folder of embeddings under the digests of their images; grows, and is shared by runs and processes.

    A file is renamed into place once it is whole, so an interrupted build loses the one that it was writing. No file
    stays open between reads.

    Args:
        folder: created by the first embedding that is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._sizes: dict[str, int] = {}  # digest -> bytes of its file
        self._cleaned = False
        self.refresh()

    def __contains__(self, digest: str) -> bool:
        return digest in self._sizes

    def __len__(self) -> int:
        return len(self._sizes)

    @property
    def num_bytes(self) -> int:
        """Size of all files."""
        return sum(self._sizes.values())

    def refresh(self) -> None:
        """Learn of the embeddings that this or another process has written."""
        for path in self.folder.glob(f"*{SUFFIX}"):
            if path.stem not in self._sizes and not path.name.startswith(_TEMPORARY) and _is_whole(path):
                self._sizes[path.stem] = path.stat().st_size

    def read(self, digest: str) -> torch.Tensor:
        """The embedding of one image, on the CPU. Raises `KeyError` if it is not there."""
        if digest not in self:
            raise KeyError(digest)
        return load_file(self._path(digest))[NAME]

    def write(self, digest: str, embedding: torch.Tensor) -> None:
        """Add one embedding of any shape and dtype.

        Raises:
            UserError: the folder cannot be written, or the disk is full.
        """
        content = save({NAME: embedding.detach().cpu().contiguous()})
        temporary = self.folder / f"{_TEMPORARY}{uuid.uuid4().hex}{SUFFIX}"
        try:
            if not self._cleaned:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._remove_abandoned()
            temporary.write_bytes(content)
            temporary.replace(self._path(digest))
        except OSError as error:
            raise UserError(
                f"cannot write to {self.folder} ({error.strerror})",
                key="cache_embeddings",
                fix="name another folder in the environment variable HF_SAM_ADAPT_CACHE, or leave cache_embeddings "
                "out",
            ) from error
        self._sizes[digest] = len(content)

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}{SUFFIX}"

    def _remove_abandoned(self) -> None:
        """Remove what builds have left that were killed long ago."""
        for path in self.folder.glob(f"{_TEMPORARY}*"):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)
        self._cleaned = True


def _is_whole(path: Path) -> bool:
    """Whether a file is as long as its header says; a machine that failed may have left half of one."""
    try:
        with safe_open(path, framework="pt") as file:
            return NAME in file.keys()
    except (OSError, SafetensorError):
        return False
