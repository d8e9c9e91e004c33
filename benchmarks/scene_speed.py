"""Time and memory of a tiled prediction by the size of the scene: GeoTIFF in, GeoTIFF out.

Each scene is drawn by windows and predicted in a process of its own, after a small one that loads everything.

    python benchmarks/scene_speed.py --model tiny --sides 2048 4096 8192
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from results import publish, table


def draw(path: Path, side: int, rows: int = 1024) -> None:
    """A scene of bright squares on noise, uint8 RGB, in compressed blocks."""
    import numpy as np
    import rasterio
    from rasterio.transform import from_origin
    from rasterio.windows import Window

    profile = {"driver": "GTiff", "height": side, "width": side, "count": 3, "dtype": "uint8", "crs": "EPSG:32633"}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}
    rng = np.random.default_rng(side)
    with rasterio.open(path, "w", transform=from_origin(500_000, 5_600_000, 0.5, 0.5), **profile) as file:
        for top in range(0, side, rows):
            height = min(rows, side - top)
            squares = ((np.arange(top, top + height) // 150) % 3 == 0)[:, None] & ((np.arange(side) // 170) % 3 == 0)
            pixels = rng.integers(1, 90, (height, side), dtype=np.uint8) + 120 * squares.astype(np.uint8)
            file.write(np.stack([pixels] * 3), window=Window(0, top, side, height))


def measure(arguments: list[str]) -> None:
    """Predict `warm.tif`, then `scene.tif`; print seconds and the growth of the peak of memory in MiB as JSON."""
    import resource
    import time

    from hf_sam_adapt.reporting.results.run import predict

    model, tile, overlap, batch_size = arguments
    options = {"model": model, "tile": int(tile), "overlap": int(overlap), "batch_size": int(batch_size)}
    predict(["warm.tif"], output_dir="warm", progress=False, **options)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    predict(["scene.tif"], output_dir="out", progress=False, **options)
    seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps({"seconds": seconds, "MiB": grown}))


def main() -> None:
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="a SAM")
    parser.add_argument("--tile", type=int, default=1024)
    parser.add_argument("--overlap", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument(
        "--sides", nargs="+", type=int, default=[2048, 4096, 8192, 20_000], help="of the scenes, pixels"
    )
    args = parser.parse_args()
    rows = []
    for side in args.sides:
        with tempfile.TemporaryDirectory() as folder:
            draw(Path(folder, "warm.tif"), 512)
            draw(Path(folder, "scene.tif"), side)
            command = [sys.executable, str(Path(__file__).resolve()), "measure", args.model]
            command += [str(value) for value in (args.tile, args.overlap, args.batch_size)]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
        pixels = side * side / 1e6
        cells = [f"{pixels:.0f}", f"{found['seconds']:.1f}", f"{found['seconds'] / pixels:.3f}", f"{found['MiB']:.0f}"]
        rows.append([f"{side} x {side}", *cells])
    header = ["scene", "megapixels", "seconds", "seconds / megapixel", "memory beyond the model, MiB"]
    note = f"Model {args.model}, tiles of {args.tile} with an overlap of {args.overlap}, {args.batch_size} at once."
    publish("Scenes by their size", f"{table(header, rows)}\n\n{note}")


if __name__ == "__main__":
    main()
