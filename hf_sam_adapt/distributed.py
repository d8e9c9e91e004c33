"""A split dealt to the processes of a distributed run, and what they have found put together."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import parse_flag_from_env
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert
from tqdm.auto import tqdm

from .errors import UserError


_MOST_WORKERS = 8  # at 20 ms of a core for an image they feed 400 images a second


class SampleLoader(DataLoader):
    """A `DataLoader` from whose worker processes a `UserError` arrives as it was raised.

    Torch itself would put the text of the worker's traceback in the place of the message.

    Args:
        num_workers: None = `usual_workers`, but no more than there are batches.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int | None = 1,
        collate_fn: Callable | None = None,
        num_workers: int | None = 0,
        **options: Any,
    ) -> None:
        alone = batch_size is None and options.get("batch_sampler") is None
        collate = collate_fn or (default_convert if alone else default_collate)
        super().__init__(
            _Caught(dataset),
            batch_size=batch_size,
            collate_fn=partial(_collated, collate, alone),
            num_workers=usual_workers() if num_workers is None else num_workers,
            **options,
        )
        if num_workers is None:
            self.num_workers = min(self.num_workers, len(self))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return map(_raised, super().__iter__())


class _Caught(Dataset):
    """Another data set's samples, or in their place the errors that reading them raised."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except UserError as error:
            return error


def _collated(collate: Callable, alone: bool, samples: Any) -> Any:
    errors = (sample for sample in ([samples] if alone else samples) if isinstance(sample, UserError))
    return next(errors, None) or collate(samples)


def _raised(batch: Any) -> Any:
    if isinstance(batch, UserError):
        raise batch
    return batch


def own_cores() -> int:
    """CPUs of this process; systems other than Linux tell only those of the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_workers() -> int:
    """Processes that load images where nobody says how many: beside a GPU this process's share of the cores, less the
    one that launches the kernels, at most 8; none on a CPU, whose cores compute.
    """
    if parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available():
        return 0
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of torchrun and accelerate launch
    return min(_MOST_WORKERS, max(1, own_cores() // beside - 1))


def rank_and_world() -> tuple[int, int]:
    """This process's number and the number of processes; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def own_batches(
    split: Dataset, batch_size: int, num_workers: int | None, *, title: str = "evaluate", progress: bool = True
) -> Iterator[list[Any]]:
    """Every `world`-th sample of a split, from this process's rank on, in lists, under a bar of all processes."""
    rank, world = rank_and_world()
    rows = range(rank, len(split), world)  # type: ignore[arg-type]
    loader = SampleLoader(split, batch_size=batch_size, sampler=rows, num_workers=num_workers, collate_fn=list)
    total = len(split)  # type: ignore[arg-type]
    with tqdm(total=total, desc=title, unit="image", disable=not progress or rank > 0, leave=False) as bar:
        for batch in loader:
            yield batch
            # The other ranks advance alike.
            bar.update(min(len(batch) * world, bar.total - bar.n))


def of_all_ranks(found: Any) -> list[Any]:
    """What each process has found, by rank."""
    _, world = rank_and_world()
    if world == 1:
        return [found]
    parts: list[Any] = [None] * world
    dist.all_gather_object(parts, found)
    return parts
