"""What every benchmark writes: a section of RESULTS.md with date, machine, versions and command."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch


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


def publish(title: str, body: str) -> None:
    """Prints a section and appends it to RESULTS.md."""
    command = shlex.join([Path(sys.executable).name, *sys.argv])
    facts = f"{datetime.date.today().isoformat()}, {machine()}. {versions()}."
    section = f"## {title}\n\n{facts}\n\n`{command}`\n\n{body}\n"
    print(section)
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Measurements\n"
    RESULTS.write_text(f"{old.rstrip()}\n\n{section}", encoding="utf-8")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
