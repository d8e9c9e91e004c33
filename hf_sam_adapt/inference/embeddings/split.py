"""A split whose images are replaced by their embeddings."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Dataset

from ...sam.image_embeddings import ImageEmbeddings


if TYPE_CHECKING:
    from ...data import SegmentationSplit
    from .store import EmbeddingStore

MASK_BYTES = 2**26  # of compressed masks that are kept in memory


@dataclass
class EmbeddedSample:
    """One image's embedding with its mask.

    Attributes:
        embedding: as the encoder returned it, without a batch dimension and on the CPU.
        mask: uint8 (H, W) of the image's size, as in `Sample`.
        id: name without extension.
        index: position in the split.
    """

    embedding: ImageEmbeddings
    mask: np.ndarray
    id: str
    index: int


class EmbeddedSplit(Dataset):
    """A split that reads embeddings instead of images; stands for `source` in training and evaluation.

    Args:
        source: where the masks come from.
        store: holds the encoder's output for every image.
        digests: per image, what `store` finds it under.
        further: by name (`ImageEmbeddings.named`) what holds the decoder's further inputs, under the same digests.
    """

    def __init__(
        self,
        source: SegmentationSplit,
        store: EmbeddingStore,
        digests: Sequence[str] = (),
        further: Mapping[str, EmbeddingStore] | None = None,
    ) -> None:
        self.source, self.store, self.further, self.digests = source, store, dict(further or {}), list(digests)
        self.ids = source.ids
        self._masks: dict[int, tuple[tuple[int, int], bytes]] = {}
        self._mask_bytes = 0

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> EmbeddedSample:
        index = index if index >= 0 else len(self) + index
        digest = self.digests[index]
        stores = {"maps": self.store, **self.further}
        embedding = ImageEmbeddings.of_named({name: store.read(digest) for name, store in stores.items()})
        return EmbeddedSample(embedding, self.mask(index), self.ids[index], index)

    def mask(self, index: int) -> np.ndarray:
        """uint8 (H, W), without opening the image."""
        if index in self._masks:
            shape, packed = self._masks[index]
            return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(shape).copy()
        mask = self.source.mask(index)
        self.remember(index, mask)
        return mask

    def instances(self, index: int) -> np.ndarray | None:
        """As `SegmentationSplit.instances`; None for a source without it."""
        read = getattr(self.source, "instances", None)
        return None if read is None else read(index)

    def remember(self, index: int, mask: np.ndarray) -> None:
        """Keep a mask in memory, compressed to a few kilobytes, as long as there is room for it."""
        packed = zlib.compress(np.ascontiguousarray(mask).tobytes(), 1)
        if self._mask_bytes + len(packed) <= MASK_BYTES:
            self._masks[index] = mask.shape, packed
            self._mask_bytes += len(packed)
