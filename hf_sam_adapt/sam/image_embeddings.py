"""What an image encoder hands to the mask decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class SharedMaps:
    """Maps of R rows, of which several show one image: row i has `maps[owner[i]]`.

    They stand for the rows' maps where transformers repeats them and adds them to a tensor, without a copy for each
    row; and what an `hq` head makes of an image is computed once for all of its rows.

    Attributes:
        maps: (B, …), a map an image.
        owner: int64 (R,).
        runs: where they are known, the images and the number of rows of each, in the order of the rows.
    """

    maps: torch.Tensor
    owner: torch.Tensor
    runs: tuple[tuple[int, int], ...] | None = None

    def __len__(self) -> int:
        return len(self.owner)

    def __getitem__(self, rows: Any) -> SharedMaps:
        if isinstance(rows, slice) and rows.indices(len(self)) == (0, len(self), 1):
            return self
        return SharedMaps(self.maps, self.owner[rows])

    def __radd__(self, values: torch.Tensor) -> torch.Tensor:
        """`values + self.rows`, with `values` (R, …) overwritten, as the output of a convolution may be."""
        if values.dtype != torch.promote_types(values.dtype, self.maps.dtype):
            return values + self.rows
        runs, start = self.runs, 0
        if runs is None:
            images, counts = torch.unique_consecutive(self.owner, return_counts=True)
            runs = tuple(zip(images.tolist(), counts.tolist()))
        for image, count in runs:
            values[start : start + count] += self.maps[image]
            start += count
        return values

    @property
    def rows(self) -> torch.Tensor:
        """(R, …), with a copy for each row."""
        return self.maps[self.owner]

    def repeat_interleave(self, repeats: int, dim: int = 0) -> SharedMaps:
        """As `torch.Tensor.repeat_interleave` along the rows."""
        return self if repeats == 1 else SharedMaps(self.maps, self.owner.repeat_interleave(repeats))

    def to(self, *args: Any, **kwargs: Any) -> SharedMaps:
        """The maps as `torch.Tensor.to`."""
        return SharedMaps(self.maps.to(*args, **kwargs), self.owner, self.runs)


@dataclass(frozen=True)
class ImageEmbeddings:
    """What the decoder needs of B images, or without that dimension of one.

    Attributes:
        maps: (B, 256, grid, grid), the encoder's output.
        early: (B, grid, grid, width), the output of the block that an HQ head sees; None without such a head.
        domains: (B,) int64 of a pool of domains, each image's place in it, -1 for plain SAM; None for other models.
        router_scores: (B, T) float32, the probability that a pool's router gives each of its domains; None where no
            router has chosen.
        skips: the maps that SAM 2 and 3 add while they upscale, (B, 32, 4 grid, 4 grid) and (B, 64, 2 grid, 2 grid);
            empty for SAM.
    """

    maps: torch.Tensor
    early: torch.Tensor | None = None
    domains: torch.Tensor | None = None
    skips: tuple[torch.Tensor, ...] = ()
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

    @property
    def named(self) -> dict[str, torch.Tensor]:
        """The tensors that there are: `maps`, `early`, `domains`, `router_scores`, `skip_0`, `skip_1`."""
        some = {"maps": self.maps, "early": self.early, "domains": self.domains, "router_scores": self.router_scores}
        found = {name: value for name, value in some.items() if value is not None}
        return found | {f"skip_{place}": value for place, value in enumerate(self.skips)}

    @classmethod
    def of_named(cls, tensors: Mapping[str, torch.Tensor]) -> ImageEmbeddings:
        """The inverse of `named`."""
        skips = tuple(tensors[name] for name in sorted(tensors) if name.startswith("skip_"))
        early, domains, scores = (tensors.get(name) for name in ("early", "domains", "router_scores"))
        return cls(tensors["maps"], early, domains, skips, scores)

    @classmethod
    def cat(cls, parts: Sequence[ImageEmbeddings]) -> ImageEmbeddings:
        """The images of all `parts`, which have all of the optional tensors or none."""
        return cls.of_named({name: torch.cat([part.named[name] for part in parts]) for name in parts[0].named})

    def _each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> ImageEmbeddings:
        return self.of_named({name: function(value) for name, value in self.named.items()})
