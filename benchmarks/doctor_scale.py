"""How long `doctor` takes per 1,000 images, and how its memory grows with their number.

Draws distinct images once (JPEG, with PNG masks), then examines growing parts of them, each in a fresh process: the
peak memory is that of the main process, which collects what the readers find.

    python benchmarks/doctor_scale.py
    python benchmarks/doctor_scale.py --counts 300 600 --size 64 --processes 0
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from results import publish, table


EXAMINE = """
import json, resource, sys
from hf_sam_adapt.doctor import examine_dataset
processes = None if sys.argv[2] == "None" else int(sys.argv[2])
diagnosis = examine_dataset(sys.argv[1], processes=processes)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([diagnosis.seconds, peak, sum(diagnosis.findings.counts.values())]))
"""


def draw(folder: Path, first: int, last: int, size: int) -> None:
    """Images `first` to `last - 1`: smooth colours, an ellipse in each."""
    rows, columns = np.mgrid[:size, :size] / size
    for number in range(first, last):
        rng = np.random.default_rng(number)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        y, x = rng.uniform(0.3, 0.7, 2)
        mask = ((rows - y) ** 2 + (columns - x) ** 2 < 0.04).astype(np.uint8)
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(folder / "images" / f"{number:06d}.jpg")
        Image.fromarray(mask).save(folder / "masks" / f"{number:06d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--size", type=int, default=128, help="side of the images in pixels")
    parser.add_argument("--processes", type=int, default=None, help="that read; unset = one per CPU")
    args = parser.parse_args()
    rows, drawn = [], 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("images", "masks"):
            (Path(folder) / kind).mkdir()
        for count in sorted(args.counts):
            draw(Path(folder), drawn, count, args.size)
            drawn = count
            command = [sys.executable, "-c", EXAMINE, folder, str(args.processes)]
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, peak, findings = json.loads(result.stdout)
            numbers = f"{seconds:.1f}", f"{1000 * seconds / count:.2f}", f"{peak / 1024:.0f}", f"{findings:,}"
            rows.append([f"{count:,}", *numbers])
            print(*rows[-1], sep="\t", flush=True)
    columns = ["images", "seconds", "seconds per 1,000", "peak memory, MiB", "findings"]
    publish(f"doctor on images of {args.size}x{args.size} pixels", table(columns, rows))


if __name__ == "__main__":
    main()
