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
