"""Scenes on the map: coordinates, pixels without data, polygons, and what is left of a file that failed."""

import json

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
import shapely
from geotiffs import PLACE, UTM, write_geotiff
from sams import perturb

from hf_sam_adapt import SamAdaptPredictor
from hf_sam_adapt.data.tiles import Tiles
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import build_model, load_base
from hf_sam_adapt.reporting.results import WriteOptions, make_writers
from hf_sam_adapt.reporting.results.map_files import MapFile, check_place, write_polygons
from hf_sam_adapt.reporting.results.scene import predict_scene


TILES = Tiles(64, 16)


def write(predictor, path, folder, formats, tiles=TILES, probability=False):
    options = WriteOptions(predictor.classes, probability)
    writers = make_writers(formats, folder, options)
    return predict_scene(predictor, path, "out", writers, options, tiles, 0.0, 1)


@pytest.fixture(scope="module", params=["sam_adapter", "cwsam"])
def predictor(request, sam_folder):
    base, processor = load_base(sam_folder)
    options = {"num_labels": 3} if request.param == "cwsam" else {}
    model = perturb(build_model(request.param, options, base), std=0.2).eval()
    return SamAdaptPredictor(model, processor, classes=["soil", "crop", "weed"] if options else None)


def scene(tmp_path, **options):
    values = np.random.randint(1, 256, (190, 230, 3), dtype=np.uint8)
    values[:70, :80] = 0
    return write_geotiff(tmp_path / "scene.tif", values, nodata=0, **options), values


def test_a_scene_keeps_its_place_and_its_holes(predictor, tmp_path):
    path, values = scene(tmp_path)
    record = write(predictor, path, tmp_path, ["geotiff", "gpkg", "map_geojson"], probability=True)
    (whole,) = predictor.predict([path], tile=64, overlap=16, batch_size=1)
    with rasterio.open(path) as source, rasterio.open(tmp_path / record["geotiff"]) as file:
        mask = file.read(1)
        assert file.crs == source.crs and file.transform == source.transform and file.nodata == 255
        assert np.array_equal(file.read_masks(1), source.dataset_mask())
        assert file.profile["tiled"] and file.profile["compress"] == "deflate"
    valid = (values != 0).any(axis=2)
    assert np.array_equal(mask[valid], whole.mask[valid].astype(np.uint8)) and (mask[~valid] == 255).all()
    names = [record["geotiff_probability"]] if predictor.classes is None else record["geotiff_probability"]
    logits = whole.logits if whole.logits.ndim == 3 else whole.logits[None]
    expected = 1 / (1 + np.exp(-logits)) if predictor.classes is None else np.exp(logits) / np.exp(logits).sum(axis=0)
    for name, chances in zip(names, expected, strict=True):
        with rasterio.open(tmp_path / name) as file:
            assert np.allclose(file.read(1)[valid], chances[valid], atol=1e-5) and np.isnan(file.read(1)[~valid]).all()
    if predictor.classes is None:
        assert record["foreground"] == pytest.approx(whole.mask[valid].mean())
        assert record["logits"]["mean"] == pytest.approx(whole.logits[valid].mean(), abs=1e-4)
    else:
        assert sum(record["classes"].values()) == pytest.approx(1)
    # The polygons, drawn on the grid again, are the mask.
    for name, driver in (("gpkg", "GPKG"), ("map_geojson", "GeoJSON")):
        meta, _, shapes, fields = pyogrio.raw.read(tmp_path / record[name])
        assert rasterio.crs.CRS.from_user_input(meta["crs"]) == rasterio.crs.CRS.from_string(UTM), driver
        shapes = shapely.from_wkb(shapes)
        assert shapely.is_valid(shapes).all() and len(shapes) == record["polygons"] > 1
        labels = fields[list(meta["fields"]).index("label")]
        drawn = rasterio.features.rasterize(
            zip(shapes, labels.astype(int)), mask.shape, transform=PLACE, dtype="uint8"
        )
        truth = np.where(mask == 255, 0, mask)
        for label in np.unique(truth[truth > 0]):
            shared, union = ((drawn == label) & (truth == label)).sum(), ((drawn == label) | (truth == label)).sum()
            assert shared >= 0.99 * union
        area = fields[list(meta["fields"]).index("area")]
        assert area.sum() == pytest.approx((truth > 0).sum() * 0.25)
    json.dumps(record)


def test_a_cloud_optimised_file_is_asked_for(predictor, tmp_path):
    path, _ = scene(tmp_path)
    record = write(predictor, path, tmp_path, ["cog"], Tiles(230, 0))
    with rasterio.open(tmp_path / record["cog"]) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.crs == rasterio.crs.CRS.from_string(UTM)


def test_nothing_is_left_of_a_scene_that_cannot_be_read_to_its_end(predictor, tmp_path):
    path, _ = scene(tmp_path)
    content = bytearray(path.read_bytes())
    content[60_000:80_000] = bytes(20_000)
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"scene\.tif: corrupt TIFF"):
        write(predictor, path, tmp_path / "out", ["geotiff", "cog", "gpkg"])
    assert list((tmp_path / "out").iterdir()) == []


def test_polygons_need_a_coordinate_system(tmp_path):
    plain = write_geotiff(tmp_path / "plain.tif", np.ones((40, 50), np.uint8), crs=None)
    for check in (
        lambda: check_place(plain),
        lambda: write_polygons(plain, tmp_path / "a.gpkg", "GPKG", {1: "object"}),
    ):
        with pytest.raises(UserError, match="no coordinate system") as caught:
            check()
        assert caught.value.code == "crs"
    assert not (tmp_path / "a.gpkg").exists()


def test_no_object_gives_an_empty_layer(tmp_path):
    empty = write_geotiff(tmp_path / "empty.tif", np.zeros((40, 50), np.uint8))
    for driver in ("GPKG", "GeoJSON"):
        assert write_polygons(empty, tmp_path / f"a.{driver.lower()}", driver, {}) == 0
        assert pyogrio.read_info(tmp_path / f"a.{driver.lower()}")["features"] == 0


@pytest.mark.parametrize("size", [(1300, 700), (40, 50), (512, 512)])
def test_windows_of_any_size_fill_a_file(tmp_path, size):
    values, grid = np.random.randint(0, 3, size).astype(np.uint8), Tiles(200, 30).grid(size)
    file = MapFile(tmp_path / "a.tif", None, size)
    for cell in grid.cells:
        file.write(cell, values[cell.slices])
        assert len(file._rows) < 200 + 512
    assert not (tmp_path / "a.tif").exists()
    file.close()
    with rasterio.open(tmp_path / "a.tif") as read:
        assert np.array_equal(read.read(1), values) and read.crs is None
