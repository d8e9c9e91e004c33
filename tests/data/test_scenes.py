"""Rasters read by windows: the values of the whole, with rasterio and with tifffile."""

import numpy as np
import pytest
import rasterio
import tifffile
from geotiffs import PLACE, UTM, write_geotiff
from PIL import Image
from rasterio.transform import from_origin

from hf_sam_adapt.data import load_segmentation_dataset, rasters
from hf_sam_adapt.data.channels import load_image
from hf_sam_adapt.data.images import read_mask
from hf_sam_adapt.data.rasters import raster_of
from hf_sam_adapt.data.scenes import block_means, check_grid, open_image, open_mask, reduced, scene_header, valid_of
from hf_sam_adapt.data.tiles import Tiles, Window
from hf_sam_adapt.doctor.examine import examine_dataset
from hf_sam_adapt.errors import UserError


@pytest.fixture(params=["rasterio", "tifffile"])
def reader(request, monkeypatch):
    if request.param == "tifffile":
        monkeypatch.setattr(rasters, "has_rasterio", lambda: False)
    return request.param


def random(shape, dtype, most=255):
    if np.dtype(dtype).kind == "f":
        return np.random.randn(*shape).astype(dtype)
    return np.random.randint(0, most + 1, shape).astype(dtype)


CASES = {
    "rgb": (random((70, 90, 3), "uint8"), None, {}),
    "strips": (random((70, 90, 3), "uint8"), None, {"tiled": False, "blockxsize": None, "blockysize": 7}),
    "planes": (random((70, 90, 3), "uint8"), None, {"interleave": "band"}),
    "grey of 12 bits": (random((70, 90), "uint16", 4095), None, {}),
    "grey of 16 bits": (random((70, 90), "uint16", 65535), None, {}),
    "six bands": (random((70, 90, 6), "float32"), 6, {"interleave": "band"}),
    "uncompressed": (random((70, 90, 2), "int16"), 2, {"compress": "none"}),
}


def stitched(source, channels):
    with open_image(source, channels) as image:
        parts = [
            (window, image.image(window), image.valid(window)) for window in Tiles(31, 4).grid(image.size).windows
        ]
        size = image.size
    result, valid = np.zeros((*size, parts[0][1].shape[2]), parts[0][1].dtype), np.ones(size, bool)
    for window, pixels, known in parts:
        result[window.slices] = pixels
        valid[window.slices] = True if known is None else known
    return result, valid


@pytest.mark.parametrize("name", CASES)
def test_windows_are_parts_of_the_whole(tmp_path, reader, name):
    values, channels, options = CASES[name]
    path = write_geotiff(tmp_path / "a.tif", values, **{k: v for k, v in options.items() if v is not None})
    assert raster_of(path) is not None
    found, valid = stitched(path, channels)
    assert np.array_equal(found, load_image(path, channels)) and valid.all()
    if channels is not None:
        assert np.array_equal(found, values.reshape(found.shape))


@pytest.mark.parametrize(
    ("dtype", "nodata", "channels"), [("uint8", 0, None), ("float32", np.nan, 2), ("int16", -99, 1)]
)
def test_pixels_without_data_get_the_mean_of_the_others(tmp_path, reader, dtype, nodata, channels):
    values = random((64, 80, channels or 3), dtype)
    if nodata == 0:
        values[values == 0] = 1
        values[40, 40, 1] = 0  # one band alone does not make a hole
    values[:30, 32:70] = nodata
    path = write_geotiff(tmp_path / "a.tif", values, nodata=nodata)
    whole, valid = load_image(path, channels), valid_of(str(path))
    assert np.array_equal(~valid, np.pad(np.ones((30, 38), bool), ((0, 34), (32, 10))))
    mean = values[valid].mean(axis=0, dtype=np.float64)
    assert np.allclose(whole[0, 40], np.rint(mean) if dtype != "float32" else mean, rtol=1e-5)
    assert np.array_equal(whole[valid], values[valid].astype(whole.dtype))
    found, by_parts = stitched(path, channels)
    assert np.array_equal(by_parts, valid) and np.array_equal(found[valid], whole[valid])


def test_colours_of_16_bits_without_data_are_the_same_whole_and_by_windows(tmp_path, reader):
    values = np.random.randint(500, 3000, (64, 80, 3)).astype(np.uint16)
    values[:, 60:] = 65535
    path = write_geotiff(tmp_path / "a.tif", values, nodata=65535, photometric="RGB")
    whole = load_image(path, None)
    found, valid = stitched(path, None)
    assert np.array_equal(whole[valid], found[valid]) and np.array_equal(whole[:, :60], values[:, :60] // 16)
    assert not valid[:, 60:].any() and valid[:, :60].all()
    mean = values[:, :60].mean((0, 1))
    assert np.abs(whole[:, 60:] - mean // 16).max() <= 1


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pictures_in_which_0_is_white(tmp_path, reader, compression):
    values = random((40, 50), "uint8")
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="miniswhite", compression=compression)
    found, _ = stitched(path, None)
    assert np.array_equal(load_image(path, None), found)
    assert np.array_equal(found[..., 0], 255 - values)
    assert np.array_equal(load_image(path, 1), values[..., None]) and np.array_equal(read_mask(path), values)
    with open_mask(str(path), "values") as mask:
        assert np.array_equal(mask.read(Window(0, 0, 40, 50)), values)


@pytest.mark.parametrize(
    ("shape", "dtype", "channels"), [((3,), "uint8", None), ((4,), "uint16", 4), ((), "uint8", 1)]
)
def test_pixels_outside_the_files_own_mask_have_no_data(tmp_path, reader, shape, dtype, channels):
    values = random((64, 80, *shape), dtype)
    shown = np.ones((64, 80), bool)
    shown[:, 50:] = False
    path = tmp_path / "a.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        write_geotiff(path, values)
        with rasterio.open(path, "r+") as file:
            file.write_mask(shown)
    assert np.array_equal(valid_of(str(path)), shown)
    whole = load_image(path, channels)
    found, valid = stitched(path, channels)
    assert np.array_equal(valid, shown) and np.array_equal(found[valid], whole[valid])
    assert np.array_equal(whole[shown], values.reshape(64, 80, -1)[shown])
    mean = values[shown].mean(axis=0, dtype=np.float64)
    assert np.abs(whole[~shown] - mean).max() <= 0.5


def test_transparent_pixels_of_an_orthophoto_have_no_data(tmp_path, reader):
    values = np.concatenate([random((40, 50, 3), "uint8"), np.full((40, 50, 1), 255, np.uint8)], axis=2)
    values[:10, :, 3] = 0
    path = write_geotiff(tmp_path / "a.tif", values, photometric="RGB", alpha="YES")
    assert np.array_equal(valid_of(str(path)), values[..., 3] > 0)
    assert np.array_equal(load_image(path, None)[10:], values[10:, :, :3])
    assert np.array_equal(stitched(path, None)[0][10:], values[10:, :, :3])
    # A picture that lies nowhere on a map is still refused: what is hidden may be meant.
    tifffile.imwrite(tmp_path / "b.tif", values, photometric="rgb", extrasamples=["unassalpha"])
    with pytest.raises(UserError, match="transparent"):
        load_image(tmp_path / "b.tif", None)


def test_the_place_goes_through(tmp_path):
    path = write_geotiff(tmp_path / "a.tif", random((40, 50), "uint8"))
    with open_image(path, None) as image:
        assert rasterio.crs.CRS.from_wkt(image.place.crs) == rasterio.crs.CRS.from_string(UTM)
        assert image.place.transform == tuple(PLACE)[:6]


def test_files_that_are_no_rasters_are_decoded_at_once(tmp_path):
    pixels = random((40, 50, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "turned.tif", pixels, photometric="rgb", extratags=[(274, "H", 1, 6, True)])
    assert raster_of(tmp_path / "a.png") is None and raster_of(tmp_path / "turned.tif") is None
    for name in ("a.png", "turned.tif"):
        found, _ = stitched(tmp_path / name, None)
        assert np.array_equal(found, load_image(tmp_path / name, None))
    assert found.shape == (50, 40, 3)


def test_a_truncated_file_is_refused_by_name(tmp_path, reader):
    path = write_geotiff(tmp_path / "a.tif", random((200, 200, 3), "uint8"))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"a\.tif: cut short") as caught:
        raster_of(path)
    assert caught.value.code == "truncated"


def test_a_corrupt_block_is_refused_by_name(tmp_path, reader):
    path = write_geotiff(tmp_path / "a.tif", random((200, 200, 3), "uint8"))
    content = bytearray(path.read_bytes())
    content[3000:9000] = bytes(6000)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.tif"):
        stitched(path, None)


@pytest.mark.parametrize("tags", ["ImageWidth", "ImageLength", "ImageLength TileWidth TileOffsets"])
@pytest.mark.parametrize("channels", [None, 3])
def test_damaged_tags_are_refused_by_name(tmp_path, reader, tags, channels):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, random((40, 50, 3), "uint8"), tile=(16, 16), compression="zlib", photometric="rgb")
    with tifffile.TiffFile(path) as file:
        kinds = [file.pages.first.tags[tag].offset + 2 for tag in tags.split()]
    content = bytearray(path.read_bytes())
    for kind in kinds:
        content[kind : kind + 2] = b"\xff\xff"  # no data type: the tag is read as if it were missing
    path.write_bytes(content)
    for read in (load_image, scene_header, stitched):
        with pytest.raises(UserError, match=r"a\.tif: "):
            read(path, channels)


def test_masks_by_windows(tmp_path, reader):
    values = random((70, 90), "int16", 3)
    values[:5] = -1
    path = write_geotiff(tmp_path / "a.tif", values, nodata=-1)
    with open_mask(str(path), "values") as mask:
        part, known = mask.read(Window(3, 40, 20, 30)), mask.valid(Window(3, 40, 20, 30))
    assert part.dtype == np.uint8 and np.array_equal(part, np.where(values == -1, 0, values)[3:23, 40:70])
    assert np.array_equal(known, values[3:23, 40:70] != -1)


@pytest.mark.parametrize("placed", [True, False])
@pytest.mark.parametrize("foreground", [1, 255])
@pytest.mark.parametrize("mask_values", ["auto", "binary"])
def test_masks_pixels_without_data_are_ignored(tmp_path, placed, foreground, mask_values):
    stored = np.zeros((40, 40), np.int16)
    stored[10:20, 10:20] = foreground
    stored[:, 30:] = -9999
    for number in range(3):
        for part in ("images", "masks"):
            (tmp_path / part).mkdir(exist_ok=True)
        write_geotiff(tmp_path / "images" / f"{number}.tif", random((40, 40, 3), "uint8", number))
        path = tmp_path / "masks" / f"{number}.tif"
        if placed:
            write_geotiff(path, stored, nodata=-9999)
        else:
            tifffile.imwrite(path, stored, extratags=[(42113, "s", 0, "-9999", True)])
    data = load_segmentation_dataset(tmp_path, mask_values=mask_values)
    wanted = np.where(stored == -9999, 255, stored > 0)
    assert np.array_equal(data.train[0].mask, wanted) and np.array_equal(data.train.mask(0), wanted)
    with data.train.open(0) as opened:
        assert np.array_equal(opened.mask(Window(5, 10, 30, 30)), wanted[5:35, 10:40])
    found = examine_dataset(tmp_path, mask_values=mask_values, processes=0)
    counts = sum(facts.classes for facts in found.facts.values())
    assert counts.tolist() == [3 * 1100, 3 * 100]


@pytest.mark.parametrize(
    "how",
    [
        {"GEOTIFF_KEYS_FLAVOR": "ESRI_PE"},
        {"GEOTIFF_VERSION": "1.1"},
        {"crs": "+proj=utm +zone=33 +datum=WGS84 +units=m"},
        {"point": True},
    ],
)
@pytest.mark.parametrize("shift", [0, 0.5])
def test_grids_are_compared_however_they_are_written(tmp_path, how, shift):
    how = dict(how)
    image = write_geotiff(tmp_path / "a.tif", random((40, 50), "uint8"))
    point, transform = how.pop("point", False), from_origin(500_000 + shift, 5_600_000, 0.5, 0.5)
    mask = write_geotiff(tmp_path / "m.tif", random((40, 50), "uint8", 1), transform=transform, **how)
    if point:
        with rasterio.open(mask, "r+") as file:
            file.update_tags(AREA_OR_POINT="Point")
            file.transform = transform
    with rasterio.open(mask) as file:
        assert file.transform == transform
    if shift == 0:
        check_grid(str(image), str(mask))
        return
    with pytest.raises(UserError, match="another grid"):
        check_grid(str(image), str(mask))


@pytest.mark.parametrize(
    ("crs", "transform", "same"),
    [
        (UTM, PLACE, True),
        (UTM, from_origin(500_000.5, 5_600_000, 0.5, 0.5), False),
        (UTM, from_origin(500_000, 5_600_000, 0.25, 0.5), False),
        ("EPSG:32632", PLACE, False),
        (None, None, True),
    ],
)
def test_a_mask_on_another_grid_is_refused(tmp_path, crs, transform, same):
    image = write_geotiff(tmp_path / "a.tif", random((40, 50), "uint8"))
    options = {} if transform is None else {"transform": transform}
    if crs is None:
        tifffile.imwrite(tmp_path / "m.tif", random((40, 50), "uint8", 1))
    else:
        write_geotiff(tmp_path / "m.tif", random((40, 50), "uint8", 1), crs=crs, **options)
    if same:
        check_grid(str(image), str(tmp_path / "m.tif"))
        return
    with pytest.raises(UserError, match=r"m\.tif: the mask has another grid"):
        check_grid(str(image), str(tmp_path / "m.tif"))


def test_reduced_images_hold_block_means(tmp_path, reader):
    values = random((1500, 70, 3), "uint8")
    path = write_geotiff(tmp_path / "a.tif", values)
    with open_image(path, None) as image:
        small, step = reduced(image, 100)
    assert step == 15 and small.shape == (100, 5, 3)
    assert np.array_equal(small[2, 1], np.rint(values[30:45, 15:30].mean(axis=(0, 1))))
    assert np.allclose(block_means(values.astype(np.float32), 7)[-1, -1], values[1498:, 63:].mean(axis=(0, 1)))


def test_a_compression_that_tifffile_cannot_read_is_left_to_pillow(tmp_path, reader):
    pixels = random((70, 90, 3), "uint8")
    path = str(tmp_path / "a.tif")
    Image.fromarray(pixels).save(path, compression="tiff_lzw")
    with open_image(path, None) as image:
        assert np.array_equal(image.image(Window(0, 0, 70, 90)), pixels)
    assert (raster_of(path) is None) == (reader == "tifffile")


def test_megabytes_of_decoded_blocks_are_kept():
    with rasters.gdal_settings():
        assert rasterio.env.get_gdal_config("GDAL_CACHEMAX") == 64 * 2**20  # in bytes
    with rasters.gdal_settings(10**8):
        assert rasterio.env.get_gdal_config("GDAL_CACHEMAX") == 10**8
