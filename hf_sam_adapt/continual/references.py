"""Images of several data sets as one split, by reference: nothing is copied or kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from ..data import Sample, SegmentationData, SegmentationSplit
from ..data.notes import Note, public


if TYPE_CHECKING:
    from ..config.continual_recipe import Domain

Reference = tuple[int, int]  # (number of the split, index in it)


class ReferenceSplit(Dataset):
    """Stands for a `SegmentationSplit` in training and evaluation.

    Args:
        splits: where the images are, by number.
        names: of the splits; an image's id is `<name>/<id>`.
        references: the images; one may occur several times.
    """

    def __init__(
        self, splits: Sequence[SegmentationSplit], names: Sequence[str], references: Sequence[Reference]
    ) -> None:
        self.splits, self.names, self.references = list(splits), list(names), list(references)
        ids = [split.ids for split in splits]
        self.ids = [f"{names[number]}/{ids[number][index]}" for number, index in references]

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> Sample:
        index = index if index >= 0 else len(self) + index
        number, place = self.references[index]
        return dataclasses.replace(self.splits[number][place], id=self.ids[index], index=index)

    def mask(self, index: int) -> np.ndarray:
        """The mask alone, uint8 (H, W), without opening the image."""
        number, place = self.references[index]
        return self.splits[number].mask(place)

    def instances(self, index: int) -> np.ndarray | None:
        """The image's instance map, as its own split returns it."""
        number, place = self.references[index]
        return self.splits[number].instances(place)


def concatenated(splits: Sequence[SegmentationSplit | None], names: Sequence[str]) -> ReferenceSplit | None:
    """All images of the splits, in their order; None where there are none."""
    present = [(split, name) for split, name in zip(splits, names, strict=True) if split is not None]
    references = [(number, index) for number, (split, _) in enumerate(present) for index in range(len(split))]
    return (
        ReferenceSplit([split for split, _ in present], [name for _, name in present], references) if present else None
    )


def joined(data: Sequence[SegmentationData], domains: Sequence[Domain]) -> SegmentationData:
    """One data set of all images of several binary ones, each image in the split that it is in."""
    names = [domain.name for domain in domains]
    # Any: they stand for the splits of one data set.
    splits: dict[str, Any] = {
        name: concatenated([getattr(one, name) for one in data], names) for name in ("train", "val", "test")
    }
    return dataclasses.replace(
        data[0],
        **splits,
        name=" + ".join(names),
        notes=[
            Note(f"{name}: {note}", f"{name}: {public(note)}") for name, one in zip(names, data) for note in one.notes
        ],
        splits=None,
    )
