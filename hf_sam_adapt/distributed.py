"""A split dealt to the processes of a distributed run, and what they have found put together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm


def rank_and_world() -> tuple[int, int]:
    """This process's number and the number of processes; (0, 1) outside a distributed run."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def own_batches(
    split: Dataset, batch_size: int, num_workers: int, *, title: str = "evaluate", progress: bool = True
) -> Iterator[list[Any]]:
    """Every `world`-th sample of a split, from this process's rank on, in lists, under a bar of all processes."""
    rank, world = rank_and_world()
    rows = range(rank, len(split), world)  # type: ignore[arg-type]
    loader = DataLoader(split, batch_size=batch_size, sampler=rows, num_workers=num_workers, collate_fn=list)
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
