"""A scene of any height in memory that does not grow with it: predicted, evaluated, and drawn as polygons."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely
from geotiffs import PLACE, UTM
from rasterio.windows import Window

import hf_sam_adapt


NODATA, HOLE = 0, 300  # pixels without data: a square in the first corner
MEASURED = """
import resource, sys
from hf_sam_adapt.data import rasters
rasters.CACHE_MB = 8  # the small scene does not fill the usual cache, the large one would
from hf_sam_adapt.cli import main

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

command, small, *rest = sys.argv[1:]
first = [word.replace("SCENE", small) for word in rest] + ["--output_dir", "warm"]
assert main([command, *first]) == 0  # the model, and whatever is imported
before = peak()
assert main([command, *[word.replace("SCENE", "scene") for word in rest], "--output_dir", command]) == 0
print("MIB", peak() - before)
"""


def draw_scene(folder: Path, size: tuple[int, int], rows: int = 1000) -> None:
    """Bright squares on noise, written by bands: an image and its mask."""
    folder.mkdir(parents=True)
    height, width = size
    profile = {"driver": "GTiff", "height": height, "width": width, "dtype": "uint8", "crs": UTM, "transform": PLACE}
    profile |= {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "zlevel": 1}
    (folder / "images").mkdir()
    (folder / "masks").mkdir()
    rng = np.random.default_rng(0)
    with (
        rasterio.Env(GDAL_CACHEMAX=64 * 2**20),
        rasterio.open(folder / "images/0.tif", "w", count=3, nodata=NODATA, **profile) as image,
        rasterio.open(folder / "masks/0.tif", "w", count=1, **profile) as mask,
    ):
        for top in range(0, height, rows):
            count = min(rows, height - top)
            squares = ((np.arange(top, top + count) // 150) % 3 == 0)[:, None] & ((np.arange(width) // 170) % 3 == 0)
            pixels = rng.integers(1, 90, (count, width), dtype=np.uint8) + 120 * squares.astype(np.uint8)
            pixels[: max(0, HOLE - top), :HOLE] = NODATA
            part = Window(0, top, width, count)
            image.write(np.stack([pixels] * 3), window=part)
            mask.write(squares.astype(np.uint8), 1, window=part)


def measured(folder: Path, command: str, small: str, *rest: str) -> float:
    """MiB by which the peak of memory grows when a scene comes after a small image."""
    arguments = [sys.executable, "-c", MEASURED, command, small, *rest]
    environment = {"PYTHONPATH": str(Path(hf_sam_adapt.__file__).parents[1]), "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return float(done.stdout.split("MIB ")[1])


@pytest.mark.parametrize(
    ("size", "warm", "limit"),
    [
        # Three times as high as the one before. Its logits alone would take 39 MiB more, its pixels 29 MiB.
        ((12_300, 1250), (4100, 1250), 40),
        pytest.param((20_000, 20_000), (800, 800), 2000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)]),
    ],
)
def test_a_scene_takes_little_memory(tmp_path, sam_folder, size, warm, limit):
    whole = size[1] > 10_000
    draw_scene(tmp_path / "scene/test", size)
    draw_scene(tmp_path / "warm_scene/test", warm)
    for folder in ("scene/train", "warm_scene/train"):
        draw_scene(tmp_path / folder, (400, 800))
    options = ["--model", sam_folder, "--tile", "1024", "--overlap", "128"]
    formats = ["--format", "geotiff", *["gpkg"] * whole]
    used = measured(tmp_path, "predict", "warm_scene", "SCENE/test/images/0.tif", *options, *formats)
    assert used < limit
    (record,) = json.loads((tmp_path / "predict/predictions.json").read_text())["predictions"]
    with rasterio.open(tmp_path / "scene/test/images/0.tif") as source:
        with rasterio.open(tmp_path / "predict" / record["geotiff"]) as mask:
            assert mask.crs == source.crs and mask.transform == source.transform and mask.shape == source.shape
            if not whole:
                return
            shapes = shapely.from_wkb(pyogrio.raw.read(tmp_path / "predict" / record["gpkg"])[2])
            tree, shared, union = shapely.STRtree(shapes), 0, 0
            for top in range(0, size[0], 1000):  # the polygons drawn again, band by band
                part = Window(0, top, size[1], min(1000, size[0] - top))
                found, known = mask.read(1, window=part), source.read(1, window=part) != NODATA
                assert ((found == 255) == ~known).all()
                bounds = rasterio.windows.bounds(part, source.transform)
                near = shapes[tree.query(shapely.box(*bounds))]
                drawn = np.zeros(found.shape, np.uint8)
                if len(near):
                    place = rasterio.windows.transform(part, source.transform)
                    drawn = rasterio.features.rasterize(near, found.shape, transform=place, dtype="uint8")
                shared, union = (
                    shared + ((drawn == 1) & (found == 1)).sum(),
                    union + ((drawn | (found == 1)) > 0).sum(),
                )
            assert shared >= 0.99 * union > 0
    scored = measured(tmp_path, "evaluate", "warm_scene", "--dataset", "SCENE", *options)
    assert scored < limit
    scores = json.loads((tmp_path / "evaluate/metrics.json").read_text())
    assert scores["measured_on"] == "test" and 0 <= scores["test"]["none"]["zero_shot"]["iou"] < 1
    print(f"{size}: predict {used:.0f} MiB, evaluate {scored:.0f} MiB")


def test_the_drawn_scene_is_what_the_test_takes_it_for(tmp_path):
    draw_scene(tmp_path / "a", (1300, 1100))
    with rasterio.open(tmp_path / "a/images/0.tif") as image, rasterio.open(tmp_path / "a/masks/0.tif") as mask:
        pixels, truth = image.read(1), mask.read(1)
    assert (pixels[:HOLE, :HOLE] == 0).all() and (pixels[HOLE:] > 0).all() and 0.05 < truth.mean() < 0.2
    assert (pixels[HOLE:][truth[HOLE:] == 1] > 100).all()
