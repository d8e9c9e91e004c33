"""Experience replay: images of earlier domains among those of the current one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...data import SegmentationData
from ...errors import UserError
from ..references import Reference, ReferenceSplit
from .naive import Naive


@dataclass(frozen=True)
class ErArgs:
    """Attributes:
    buffer_size: images of all earlier domains together that are kept.
    replay: share of the training images that come from the buffer, 0 to below 1.
    """

    buffer_size: int = 100
    replay: float = 0.5

    def __post_init__(self) -> None:
        if self.buffer_size < 1 or not 0 <= self.replay < 1:
            raise UserError(
                f"buffer_size {self.buffer_size} must be at least 1 and replay {self.replay} in [0, 1)",
                key="protocol_args",
            )


class Er(Naive):
    """Naive, with a fixed share of replayed images; which ones follows from the seed and the sizes of the data sets.

    An epoch holds each current image once and the replayed ones in addition; `max_steps` is a task's budget as it is.
    """

    args_cls = ErArgs

    def data(self, task: int) -> SegmentationData:
        run, args = self.run, self.args
        current = run.data[task]
        replayed = round(len(current.train) * args.replay / (1 - args.replay)) if task else 0
        if not replayed:
            return current
        sizes = [len(data.train) for data in run.data[:task]]
        buffer = reservoir(sizes, args.buffer_size, run.recipe.seed)
        order = np.random.default_rng([run.recipe.seed, task]).permutation(len(buffer))
        references = [(task, index) for index in range(len(current.train))]
        references += [buffer[place] for place in np.resize(order, replayed)]
        splits = [data.train for data in run.data[: task + 1]]
        names = [domain.name for domain in run.domains]
        train: Any = ReferenceSplit(splits, names, references)  # stands for a split of one data set
        return dataclasses.replace(current, train=train)


def reservoir(sizes: Sequence[int], capacity: int, seed: int) -> list[Reference]:
    """A uniform sample of a stream of images, as it is kept while they go by (Vitter's algorithm R).

    Args:
        sizes: images of each data set, in the order of the stream.
        capacity: images kept.

    Returns:
        At most `capacity` pairs of data set and index, each image at most once.
    """
    rng = np.random.default_rng(seed)
    kept: list[Reference] = []
    stream = ((number, index) for number, size in enumerate(sizes) for index in range(size))
    for seen, reference in enumerate(stream):
        if len(kept) < capacity:
            kept.append(reference)
        elif (place := rng.integers(seen + 1)) < capacity:
            kept[place] = reference
    return kept
