"""`predict --tile`: GeoTIFFs in, maps out; what is lost is said, and bad input is refused before anything exists."""

import json
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
from geotiffs import UTM, write_geotiff
from PIL import Image

from hf_sam_adapt.cli import main
from hf_sam_adapt.data import rasters
from hf_sam_adapt.reporting.results import scene as scenes


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name, size in (("a", (150, 170)), ("b", (70, 200))):
        values = np.random.randint(1, 256, (*size, 3), dtype=np.uint8)
        values[:9, :11] = 0
        write_geotiff(images / f"{name}.tif", values, nodata=0)
    return images


def run(folder, sam_folder, output, *options):
    tile = [] if "--tile" in options else ["--tile", "64"]
    status = main(["predict", str(folder), "--model", sam_folder, "--output_dir", str(output), *tile, *options])
    index = output / "predictions.json"
    return status, json.loads(index.read_text())["predictions"] if index.is_file() else None


def test_geotiffs_stay_on_the_map(folder, sam_folder, tmp_path, capsys):
    status, records = run(folder, sam_folder, tmp_path / "out", "--overlap", "16")
    assert status == 0 and "geotiff" in capsys.readouterr().out
    for record in records:
        with rasterio.open(tmp_path / "out" / record["geotiff"]) as file, rasterio.open(record["file"]) as source:
            assert file.crs == source.crs and file.transform == source.transform and file.shape == source.shape
            assert np.array_equal(file.dataset_mask(), source.dataset_mask())
        assert record["tiles"] > 1 and 0 < record["foreground"] < 1 and "note" not in record
    # With pictures beside them all is in memory, and the same.
    both = run(folder, sam_folder, tmp_path / "both", "--overlap", "16", "--format", "png", "geotiff", "gpkg")[1]
    for record, other in zip(records, both, strict=True):
        read = [
            rasterio.open(tmp_path / path).read(1) for path in (f"out/{record['geotiff']}", f"both/{other['geotiff']}")
        ]
        assert np.array_equal(*read)
        mask = np.asarray(Image.open(tmp_path / "both" / other["mask"]))
        assert np.array_equal(mask[read[0] != 255] > 0, read[0][read[0] != 255] == 1)
        assert pyogrio.read_info(tmp_path / "both" / other["gpkg"])["features"] == other["polygons"] > 0


def test_what_is_lost_is_said(folder, sam_folder, tmp_path, capsys, monkeypatch):
    _, records = run(folder, sam_folder, tmp_path / "png", "--format", "png")
    assert "its coordinates are lost; format geotiff keeps them" in records[0]["note"]
    assert records[0]["note"] in capsys.readouterr().out
    for module in (rasters, scenes):
        monkeypatch.setattr(module, "has_rasterio", lambda: False)
    _, records = run(folder, sam_folder, tmp_path / "without")
    assert "mask" in records[0] and "pip install 'hf-sam-adapt[geo]'" in records[0]["note"]


@pytest.mark.parametrize("formats", [("geotiff",), ("cog", "png")])
def test_an_image_that_lies_nowhere_gives_a_map_without_a_place_and_says_so(
    folder, sam_folder, tmp_path, capsys, formats
):
    pixels = np.random.randint(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "c.png")
    Image.fromarray(pixels).save(folder / "d.tif")
    status, records = run(folder, sam_folder, tmp_path / "out", "--format", *formats)
    assert status == 0
    notes = {Path(record["file"]).name: record.get("note") for record in records}
    assert notes["a.tif"] is None and notes["b.tif"] is None
    ending = "tif" if formats[0] == "geotiff" else "cog.tif"
    printed = capsys.readouterr().out
    for name in ("c", "d"):
        note = next(notes[file] for file in notes if file.startswith(name))
        assert note.endswith(f"no place on a map is read from it; without one: {name}_mask.{ending}")
        assert note in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlap", "64"], "overlap: 64 is not"),
        (["--overlap", "-1"], "overlap: -1"),
        (["--route", "anywhere"], "route"),
        (["--format", "gpkg"], "no coordinate system"),
    ],
)
def test_bad_input_leaves_nothing(folder, sam_folder, tmp_path, capsys, options, message):
    if "gpkg" in options:
        write_geotiff(folder / "c.tif", np.ones((40, 50), np.uint8), crs=None)
    status, records = run(folder, sam_folder, tmp_path / "out", *options)
    error = capsys.readouterr().err
    assert status == 2 and message in error and error.count("\n") == 1, error
    assert records is None and not (tmp_path / "out").exists()


def test_a_tile_that_is_no_multiple_of_the_patch_is_rounded(folder, sam_folder, tmp_path, capsys):
    run(folder, sam_folder, tmp_path / "out", "--tile", "60")
    assert "tile: 60 is rounded up to 64" in capsys.readouterr().out


def test_a_truncated_file_is_reported_and_the_others_are_written(folder, sam_folder, tmp_path, capsys):
    path = folder / "a.tif"
    path.write_bytes(path.read_bytes()[:-3000])
    status, records = run(folder, sam_folder, tmp_path / "out")
    assert status == 1 and "a.tif: cut short" in capsys.readouterr().err
    assert "error" in records[0] and (tmp_path / "out" / records[1]["geotiff"]).is_file()
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]


def test_a_scene_too_large_to_be_read_at_once_names_the_way(folder, sam_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # of which Pillow takes twice as many
    status, _ = run(folder, sam_folder, tmp_path / "out", "--format", "png")
    assert status == 2 and "a.tif" in (error := capsys.readouterr().err) and "formats of maps" in error
    status, records = run(folder, sam_folder, tmp_path / "out")
    assert status == 0 and len(records) == 2
    with rasterio.open(tmp_path / "out" / records[0]["geotiff"]) as file:
        assert file.crs == rasterio.crs.CRS.from_string(UTM)
