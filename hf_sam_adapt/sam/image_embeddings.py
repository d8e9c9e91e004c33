"""What an image encoder hands to the mask decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class ImageEmbeddings:
    """What the decoder needs of B images, or without that dimension of one.

    Attributes:
        maps: (B, 256, grid, grid), the encoder's output.
        early: (B, grid, grid, width), the output of the block that an `hq` decoder sees; None without such a decoder.
        domains: (B,) int64 of a pool of domains, each image's place in it, -1 for plain SAM; None for other models.
        router_scores: (B, T) float32, the probability that a pool's router gives each of its domains; None where no
            router has chosen.
    """

    maps: torch.Tensor
    early: torch.Tensor | None = None
    domains: torch.Tensor | None = None
    router_scores: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, rows: Any) -> ImageEmbeddings:
        return self._each(lambda value: value[rows])

    def to(self, *args: Any, **kwargs: Any) -> ImageEmbeddings:
        """On another device, as `torch.Tensor.to`."""
        return self._each(lambda value: value.to(*args, **kwargs))

    def pin_memory(self) -> ImageEmbeddings:
        return self._each(torch.Tensor.pin_memory)

    @classmethod
    def cat(cls, parts: Sequence[ImageEmbeddings]) -> ImageEmbeddings:
        """The images of all `parts`, which have all of the optional tensors or none."""
        columns = zip(*((part.maps, part.early, part.domains, part.router_scores) for part in parts))
        joined: list[Any] = [None if values[0] is None else torch.cat(values) for values in columns]
        return cls(*joined)

    def _each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> ImageEmbeddings:
        values = (self.maps, self.early, self.domains, self.router_scores)
        changed: list[Any] = [None if value is None else function(value) for value in values]
        return ImageEmbeddings(*changed)
