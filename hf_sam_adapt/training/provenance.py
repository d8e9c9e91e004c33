"""What `metrics.json` says beside the scores: the data set, the machine, the versions."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..data.notes import bare_name, public
from ..names import DRAWN


if TYPE_CHECKING:
    from ..data import SegmentationData

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "huggingface-hub")


def data_facts(data: SegmentationData) -> dict[str, Any]:
    """Where the images are from and how many there are.

    Returns:
        `name`; `source` "drawn", "folder", "hub" or "memory"; `revision`, the commit of a data set of the Hub, None
        where it is not recorded; `images`, a number per split; `notes`; `classes`, their names in order, None for one.
    """
    source = _source(data.name)
    splits = {name: getattr(data, name) for name in ("train", "val", "test")}
    classes = None if data.num_labels is None else [data.id2label[label] for label in range(data.num_labels)]
    return {
        "name": bare_name(data.name),
        "source": source,
        "revision": _revision(data) if source == "hub" else None,
        "images": {name: len(split) for name, split in splits.items() if split is not None},
        "notes": [public(note) for note in data.notes],
        "classes": classes,
    }


def environment_facts(device: torch.device, processes: int) -> dict[str, Any]:
    """`hardware` and `versions` of a training in `processes` processes on devices like `device`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_cpu()}, {os.cpu_count()} cores"
    packages = {"hf-sam-adapt": __version__} | {name: version(name) for name in _PACKAGES}
    return {
        "hardware": name if processes == 1 else f"{processes} processes, each on {name}",
        "versions": {"python": platform.python_version(), **packages},
    }


def _source(name: str) -> str:
    if name.startswith(DRAWN):
        return "drawn"
    if Path(name).expanduser().is_dir():
        return "folder"
    return "hub" if "/" in name else "memory"


def _revision(data: SegmentationData) -> str | None:
    """The commit that `datasets` has read the files of."""
    table = getattr(data.train, "table", None)  # a mixture of data sets has none
    files = (table.info.download_checksums if table is not None else None) or {}
    commits = {found[1] for file in files if (found := re.match(r"hf://datasets/[^@]+@([0-9a-f]{40})/", file))}
    return commits.pop() if len(commits) == 1 else None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, None) or platform.processor() or platform.machine()
