"""How long `--help` takes, of the program and of each command: the median of several fresh processes.

python benchmarks/help_time.py --repeats 9
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from results import publish, table

from hf_sam_adapt.cli.commands import COMMANDS


def seconds(argv: list[str], repeats: int) -> list[float]:
    """Wall-clock time of each of `repeats` processes, after one that fills the file system's cache."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hf_sam_adapt.cli", *argv], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - start)
    return times[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    rows = []
    for argv in (["--help"], *([name, "--help"] for name in COMMANDS)):
        times = seconds(argv, args.repeats)
        rows.append([" ".join(argv), f"{statistics.median(times):.2f}", f"{min(times):.2f}", f"{max(times):.2f}"])
    publish("Time of --help", table(["hf-sam-adapt", "median, s", "fastest", "slowest"], rows))


if __name__ == "__main__":
    main()
