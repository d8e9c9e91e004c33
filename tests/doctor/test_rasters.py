"""What doctor says of GeoTIFFs, and of objects at the size that a tile shows them in."""

import numpy as np
import pytest
from corpus import KEYS, draw
from geotiffs import UTM, write_geotiff
from PIL import Image
from rasterio.transform import from_origin

from hf_sam_adapt.cli import main
from hf_sam_adapt.data.tiles import Tiles
from hf_sam_adapt.doctor import examine_dataset


SIZE = (64, 80)


@pytest.fixture
def rasters(tmp_path):
    """Twelve scenes on one map, without a fault."""
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        for number in range(count):
            image, mask = draw(np.random.default_rng([len(split), count, number]), SIZE)
            for kind, values in (("images", np.maximum(image, 1)), ("masks", mask)):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
                write_geotiff(
                    tmp_path / split / kind / f"{number}.tif", values, **({"nodata": 0} if kind == "images" else {})
                )
    return tmp_path


def said(root, **more):
    findings = examine_dataset(root, **KEYS, **more).findings
    return [(finding.code, finding.file.rpartition("/")[2]) for finding in findings.ordered()]


def truncated(root):
    path = root / "train/images/3.tif"
    path.write_bytes(path.read_bytes()[:-300])
    return "3.tif"


def other_grid(root):
    _, mask = draw(np.random.default_rng([5, 8, 3]), SIZE)
    write_geotiff(root / "train/masks/3.tif", mask, transform=from_origin(500_001, 5_600_000, 0.5, 0.5))
    return "3.tif"


def mixed_crs(root):
    for kind in ("images", "masks"):
        path = root / "train" / kind / "3.tif"
        values = np.asarray(Image.open(path))
        write_geotiff(path, values, crs="EPSG:32632", **({"nodata": 0} if kind == "images" else {}))
    return root.name


def nodata(root):
    path = root / "train/images/3.tif"
    values = np.array(Image.open(path))
    values[:40] = 0
    write_geotiff(path, values, nodata=0)
    return "3.tif"


@pytest.mark.parametrize("plant", [truncated, other_grid, mixed_crs, nodata])
def test_each_fault_is_named(rasters, plant):
    assert said(rasters) == []
    file = plant(rasters)
    code = plant.__name__.replace("_", "-")
    assert said(rasters) == [(code, file)]


def test_pixels_without_data_count_nowhere(rasters):
    whole = examine_dataset(rasters, **KEYS).facts["train"]
    nodata(rasters)
    facts = examine_dataset(rasters, **KEYS).facts["train"]
    assert facts.nodata.tolist() == [40 * 80, 8 * 64 * 80] and whole.nodata[0] == 0
    assert facts.classes.sum() == whole.classes.sum() - 40 * 80
    assert facts.low.min() >= 1  # 0 stands for no data


def test_objects_are_looked_at_in_tiles(rasters):
    small = {**KEYS, "mask_size": 1}  # a pixel of the mask is the whole image
    codes = {finding.code for finding in examine_dataset(rasters, **small).findings.ordered()}
    assert "tiny-object" in codes
    codes = {finding.code for finding in examine_dataset(rasters, **small, tiles=Tiles(8, 0)).findings.ordered()}
    assert "tiny-object" not in codes


def test_a_scene_too_large_to_be_read_at_once_is_looked_at_reduced(rasters, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    monkeypatch.setattr("hf_sam_adapt.doctor.scenes.LONGEST", 40)
    diagnosis = examine_dataset(rasters, **KEYS)
    assert diagnosis.findings.ordered() == [] and diagnosis.facts["train"].largest == SIZE
    share = diagnosis.facts["train"].classes[1] / diagnosis.facts["train"].classes.sum()
    monkeypatch.undo()
    whole = examine_dataset(rasters, **KEYS).facts["train"]
    assert share == pytest.approx(whole.classes[1] / whole.classes.sum(), rel=0.05)
    assert main(["doctor", str(rasters), "--processes", "0", "--tile", "50", "--image_size", "64"]) == 0
    assert "tile: 50 is rounded up to 64" in capsys.readouterr().out and UTM
