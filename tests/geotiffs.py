"""GeoTIFFs that tests draw."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin


UTM = "EPSG:32633"
PLACE = from_origin(500_000, 5_600_000, 0.5, 0.5)


def write_geotiff(path: Path, values: np.ndarray, crs=UTM, transform=PLACE, **options) -> Path:
    """(H, W) or (H, W, C) as a tiled, compressed GeoTIFF."""
    bands = values[..., None] if values.ndim == 2 else values
    profile = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"} | options
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=bands.shape[0],
        width=bands.shape[1],
        count=bands.shape[2],
        dtype=bands.dtype,
        crs=crs,
        transform=transform,
        **profile,
    ) as file:
        file.write(np.moveaxis(bands, 2, 0))
    return path


SIZES = [(150, 170), (60, 50), (90, 200)]


def make_scenes(root: Path, classes: int = 2, dtype: str = "uint8", nodata: float = 0) -> Path:
    """A data set of GeoTIFFs of three sizes, with squares to be found and pixels without data in a corner."""
    for split, count in (("train", 3), ("val", 1), ("test", 3)):
        for number in range(count):
            size = SIZES[number]
            mask = np.zeros(size, np.uint8)
            for label in range(1, classes):
                top, left = np.random.randint(0, size[0] - 30), np.random.randint(0, size[1] - 30)
                mask[top : top + 30, left : left + 30] = label
            image = np.random.randint(1, 120, (*size, 3)).astype(dtype) + (mask[..., None] * 60).astype(dtype)
            image[-10:, :20] = nodata
            for kind, values, options in (("images", image, {"nodata": nodata}), ("masks", mask, {})):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                write_geotiff(root / split / kind / f"{number}.tif", values, **options)
    return root
