"""What every benchmark writes: a section of RESULTS.md with date, machine, versions and command."""

from __future__ import annotations

import datetime
import fcntl
import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from hf_sam_adapt.sam.base_names import tiny_folder


RESULTS = Path(__file__).with_name("RESULTS.md")


def machine() -> str:
    """Processor, cores and threads, and the GPU if there is one."""
    parts = [f"{_processor()}, {os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def versions() -> str:
    names = ("torch", "transformers", "peft", "accelerate")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; every column after the first is right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tiny_weights() -> str:
    """The first digits of the hash of the embedded SAM's weights, which scores rest on."""
    return hashlib.sha256((tiny_folder() / "model.safetensors").read_bytes()).hexdigest()[:10]


def sections(path: Path) -> dict[str, str]:
    """Title -> text of the sections of a file of measurements; the newest of those with the same title."""
    parts = path.read_text(encoding="utf-8").split("\n## ")[1:] if path.exists() else []
    return {part.partition("\n")[0]: part.partition("\n")[2] for part in parts}


def publish(title: str, body: str, command: str | None = None) -> None:
    """Write a section into RESULTS.md in place of those with its title, and print it.

    Args:
        title: says what was measured, and on what where a script measures several things.
        body: the table and what has to be said of it.
        command: that made it; None takes this process's.
    """
    command = command or shlex.join([Path(sys.executable).name, *sys.argv])
    facts = f"{datetime.date.today().isoformat()}, {machine()}. {versions()}, tiny {tiny_weights()}."
    section = f"{title}\n\n{facts}\n\n`{command}`\n\n{body}\n"
    with open(RESULTS, "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # benchmarks that end at the same time write one after the other
        file.seek(0)
        head, *parts = (part.rstrip() + "\n" for part in (file.read() or "# Measurements").split("\n## "))
        places = [number for number, part in enumerate(parts) if part.partition("\n")[0] == title]
        kept = [part for number, part in enumerate(parts) if number not in places]
        kept.insert(places[0] if places else len(kept), section)
        file.seek(0)
        file.truncate()
        file.write("\n## ".join([head, *kept]))
    print(f"## {section}")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
