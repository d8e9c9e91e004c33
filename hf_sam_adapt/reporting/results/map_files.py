"""Masks on the map: GeoTIFFs written by windows, and their areas as polygons in the image's coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...data.images import IGNORE
from ...data.rasters import gdal_settings, quiet_places, raster_of
from ...data.tiles import Window
from ...errors import UserError, first_line, require_extra
from ...files import temporary_path


BLOCK = 512  # side of the blocks of a GeoTIFF
POLYGONS_AT_ONCE = 10_000
_LAYER = "objects"


class MapFile:
    """A GeoTIFF of one band with the place of a source, filled from top to bottom by windows.

    Kept in memory are the rows that do not yet fill a row of blocks.

    Args:
        path: of the file, written under another name until `close`.
        source: the image whose coordinate system, transform and control points it takes; one without them gives none.
        size: (height, width).
        dtype: "uint8" for labels, "float32" for probabilities.
        nodata: of the pixels without data.
        cog: write a cloud-optimised GeoTIFF.
    """

    def __init__(
        self,
        path: Path,
        source: str | None,
        size: tuple[int, int],
        dtype: str = "uint8",
        nodata: float = IGNORE,
        cog: bool = False,
    ) -> None:
        require_extra("geo", "a GeoTIFF")
        import rasterio

        self.path, self.cog, self.size = path, cog, size
        self._part = temporary_path(path, "part")
        self._env = gdal_settings()
        self._first, self._rows = 0, np.zeros((0, size[1]), dtype)
        place: dict[str, Any] = {}
        with self._env, quiet_places():
            if source is not None and (raster := raster_of(source)) is not None and raster.placed:
                with rasterio.open(source) as file:
                    points, points_crs = file.gcps
                    place = {"gcps": points, "crs": points_crs} if points else {}
                    place = place or {"crs": file.crs, "transform": file.transform}
            self._file = rasterio.open(
                self._part,
                "w",
                driver="GTiff",
                height=size[0],
                width=size[1],
                count=1,
                dtype=dtype,
                nodata=nodata,
                tiled=True,
                blockxsize=BLOCK,
                blockysize=BLOCK,
                compress="deflate",
                bigtiff="IF_SAFER",
                **place,
            )

    def write(self, window: Window, values: np.ndarray) -> None:
        """Take the values (h, w) of the next window; they come row by row, from the left to the right."""
        below = window.top + window.height - self._first
        if below > len(self._rows):
            more = np.zeros((below - len(self._rows), self.size[1]), self._rows.dtype)
            self._rows = np.concatenate([self._rows, more])
        rows = slice(window.top - self._first, below)
        self._rows[rows, window.left : window.left + window.width] = values
        if window.left + window.width == self.size[1]:
            end = window.top + window.height
            self._flush(end if end == self.size[0] else end - end % BLOCK)

    def _flush(self, end: int) -> None:
        from rasterio.windows import Window as Part

        count = end - self._first
        if count > 0:
            with self._env:
                self._file.write(self._rows[:count], 1, window=Part(0, self._first, self.size[1], count))
            self._first, self._rows = end, self._rows[count:].copy()

    def close(self) -> None:
        """Finish the file and give it its name."""
        import rasterio.shutil

        with self._env:
            self._file.close()
            if self.cog:
                cog = temporary_path(self.path, "cog")
                try:
                    rasterio.shutil.copy(self._part, cog, driver="COG", compress="deflate", resampling="nearest")
                    cog.replace(self.path)
                finally:
                    cog.unlink(missing_ok=True)
                    self._part.unlink(missing_ok=True)
                return
        self._part.replace(self.path)

    def discard(self) -> None:
        """Leave nothing of a file that was not finished."""
        with self._env:
            self._file.close()
        self._part.unlink(missing_ok=True)


def write_polygons(labels: Path, path: Path, driver: str, names: Mapping[int, str]) -> int:
    """The areas of a GeoTIFF of labels as polygons in its coordinates; returns their number.

    An area are the 4-connected pixels of one label; those of 0 and 255 are left out. Fields: `label`, `name`, and
    `area` in the square of the coordinates' unit.

    Args:
        labels: the file, read line by line.
        driver: "GPKG" or "GeoJSON".
        names: of the labels.

    Raises:
        UserError: the file has no coordinate system.
    """
    require_extra("geo", "polygons in coordinates")
    import pyogrio
    import rasterio
    import shapely

    part = temporary_path(path, "part")
    part.unlink(missing_ok=True)
    count, batch = 0, POLYGONS_AT_ONCE if driver == "GPKG" else None
    with gdal_settings(), rasterio.open(labels) as file, gdal_settings(_rows_of_blocks(file)):
        check_crs(file.crs, labels)
        crs = file.crs.to_wkt()
        for chunk in _chunks(_shapes(file), batch):
            values = np.array([value for _, value in chunk], np.int32)
            shapes = np.array([shape for shape, _ in chunk], object)
            shown = [names[value] for value in values.tolist()]
            pyogrio.raw.write(
                part,
                shapely.to_wkb(shapes),
                [values, np.array(shown, object), shapely.area(shapes)],
                ["label", "name", "area"],
                driver=driver,
                layer=_LAYER,
                geometry_type="Polygon",
                crs=crs,
                append=count > 0,
            )
            count += len(chunk)
    part.replace(path)
    return count


def _rows_of_blocks(file: Any) -> int:
    """Bytes of two rows of blocks: read line by line, a row that is not kept would be decoded for every line."""
    return 2 * file.block_shapes[0][0] * file.width * np.dtype(file.dtypes[0]).itemsize


def _shapes(file: Any) -> Iterator[tuple[Any, int]]:
    import rasterio.features
    import shapely.geometry

    band = rasterio.band(file, 1)
    for shape, value in rasterio.features.shapes(band, mask=band, connectivity=4, transform=file.transform):
        if 0 < value < IGNORE:
            yield shapely.geometry.shape(shape), int(value)


def _chunks(items: Iterator[Any], size: int | None) -> Iterator[list[Any]]:
    """Lists of `size` items, None = all in one; one empty list where there are none, for an empty layer."""
    chunk: list[Any] = []
    number = 0
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk, number = [], number + 1
    if chunk or not number:
        yield chunk


def check_crs(crs: Any, name: object) -> None:
    """Raise `UserError` where there is no coordinate system that polygons could be in."""
    if crs is None:
        raise UserError(
            "it has no coordinate system, in which polygons would be",
            key="format",
            where=name,
            fix="assign one, as rio edit-info --crs EPSG:32633 does, or use geojson for pixels",
            code="crs",
        )


def check_place(path: Path) -> None:
    """Raise `UserError` unless an image has a coordinate system that polygons can be in."""
    import rasterio

    if raster_of(path) is None:
        check_crs(None, path)
    try:
        with quiet_places(), rasterio.open(path) as file:
            check_crs(file.crs, path)
    except rasterio.errors.RasterioError as error:
        raise UserError(f"not a readable TIFF ({first_line(error)})", where=path) from error
