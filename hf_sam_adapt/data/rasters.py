"""TIFF files read by windows, and what a GeoTIFF says of its place on the map; by rasterio, without it tifffile."""

from __future__ import annotations

import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, first_line
from .nodata import NODATA_TAG, PLACE_TAGS, nodata_of
from .stored import BROKEN, EXIF_ORIENTATION, OPACITY, is_lossy_compression, is_tiff
from .tiles import Window


CACHE_MB = 64  # of decoded blocks; GDAL itself would take a twentieth of the machine's memory
_GEO_KEYS = (34735, 34736, 34737)
_PROJECTED, _GEOGRAPHIC, _OWN_SYSTEM = 3072, 2048, 32767
_RASTER_TYPE, _PIXEL_IS_POINT = 1025, 2
NEAR = 0.01  # of a pixel: so far apart two grids are the same
_MASK, _REDUCED_OR_MASK = 4, 5  # bits of a page's kind


UNNAMED = "a system without a code"


@dataclass(frozen=True)
class Place:
    """Where on a map the pixels of an image are.

    Attributes:
        crs: coordinate system, as WKT; None = the file names none.
        transform: (a, b, c, d, e, f): pixel corner (x, y) lies at (a x + b y + c, d x + e y + f).
    """

    crs: str | None
    transform: tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Raster:
    """A TIFF that can be read by windows: one picture, upright, its bands of one type and without a colour table.

    Attributes:
        path: of the file.
        shape: (H, W, C).
        dtype: of its values.
        nodata: the value that stands for no data; None = none does.
        alpha: whether the last band is opacity.
        placed: whether the file says where its pixels are.
        grid: what it says of that, to be compared with another file's; None = nothing.
        lossy: whether its compression may have changed the values.
        inverted: whether it is a grey picture of 8 bits in which 0 is white.
        mask_page: the page that shows where there are data; None = the file has none.
    """

    path: str
    shape: tuple[int, int, int]
    dtype: np.dtype
    nodata: float | None
    alpha: bool
    placed: bool
    grid: tuple | None
    lossy: bool
    inverted: bool = False
    mask_page: int | None = None

    @property
    def hides(self) -> bool:
        """Whether the file says of pixels that they hold no data."""
        return self.nodata is not None or (self.alpha and self.placed) or self.mask_page is not None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.shape[:2]

    @property
    def system(self) -> str | None:
        """A name for its coordinate system, such as EPSG:32633; None for a file that is nowhere on a map."""
        if self.grid is None:
            return None
        keys = self._geo_keys()
        code = keys.get(_PROJECTED) or keys.get(_GEOGRAPHIC)
        return f"EPSG:{code}" if code and code != _OWN_SYSTEM else UNNAMED

    def transform(self) -> tuple[float, ...] | None:
        """(a, b, c, d, e, f) as in `Place`; None for a file that has none, such as one of ground-control points."""
        tags = dict(self.grid or ())
        scale, ties, matrix = (tags.get(tag) for tag in PLACE_TAGS)
        if matrix is not None:
            a, b, c, d, e, f = (matrix[place] for place in (0, 1, 3, 4, 5, 7))
        elif scale is not None and ties is not None and len(ties) == 6:
            a, b, d, e = scale[0], 0.0, 0.0, -scale[1]
            c, f = ties[3] - ties[0] * a, ties[4] - ties[1] * e
        else:
            return None
        if self._geo_keys().get(_RASTER_TYPE) == _PIXEL_IS_POINT:  # the place is that of the pixel's middle
            c, f = c - (a + b) / 2, f - (d + e) / 2
        return a, b, c, d, e, f

    def _geo_keys(self) -> dict[int, int]:
        keys = dict(self.grid or ()).get(_GEO_KEYS[0], ())
        return {int(keys[place]): int(keys[place + 3]) for place in range(4, len(keys) - 3, 4)}  # key -> value


def same_grid(first: Raster, second: Raster) -> bool:
    """Whether the pixels of two rasters that lie on a map have the same places, however their files say it.

    Systems without a code are compared by rasterio; where that is missing, they count as the same.
    """
    grids = first.transform(), second.transform()
    if None in grids:
        return first.grid == second.grid
    one, other = (np.array(grid).reshape(2, 3) for grid in grids)
    height, width = (max(sides) for sides in zip(first.size, second.size))
    corners = np.array([[0, width, 0, width], [0, 0, height, height], [1, 1, 1, 1]])
    away = np.abs((one - other) @ corners).max(axis=1)  # (2,)
    if (away > NEAR * np.abs(one[:, :2]).sum(axis=1)).any():
        return False
    if first.system == second.system != UNNAMED or not has_rasterio():
        return first.system == second.system or UNNAMED in (first.system, second.system)
    with open_raster(first) as left, open_raster(second) as right:
        return bool(left.system() == right.system())


def has_rasterio() -> bool:
    """Whether the extra `geo` is installed."""
    return find_spec("rasterio") is not None


def raster_of(path: str | os.PathLike) -> Raster | None:
    """What a TIFF says of itself, without reading its pixels; None for any file that is not read by windows.

    Raises:
        UserError: the file is cut short, or is no readable TIFF.
    """
    if Path(path).suffix.lower() not in (".tif", ".tiff") or not Path(path).is_file() or not is_tiff(path):
        return None
    if find_spec("tifffile") is None:
        return None
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            series = file.series[0]
            others = sum(not one.keyframe.subfiletype & _REDUCED_OR_MASK for one in file.series[1:])
            orientation = page.tags.valueof(EXIF_ORIENTATION, default=1)
            ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts)]
            if max(ends, default=0) > file.filehandle.size:
                raise UserError(
                    f"cut short: {file.filehandle.size} of at least {max(ends)} bytes",
                    where=path,
                    fix="copy or export it again",
                    code="truncated",
                )
            if len(series.pages) > 1 or others or orientation != 1 or page.photometric == 3:  # 3 = a colour table
                return None
            if page.bitspersample not in (8, 16, 32, 64) or page.dtype is None:
                return None
            if not has_rasterio() and page.compression not in tifffile.TIFF.DECOMPRESSORS:
                return None
            shape = (page.imagelength, page.imagewidth, page.samplesperpixel)
            if 0 in shape:
                raise ValueError("without a pixel")
            kinds = [getattr(one, "subfiletype", 0) & _REDUCED_OR_MASK for one in file.pages]
            tags = {tag: page.tags.valueof(tag) for tag in (*PLACE_TAGS, *_GEO_KEYS) if tag in page.tags}
            placed = any(tag in tags for tag in PLACE_TAGS)
            return Raster(
                path=os.fspath(path),
                shape=shape,
                dtype=np.dtype(page.dtype),
                nodata=nodata_of(page.tags.valueof(NODATA_TAG)),
                alpha=bool(page.extrasamples) and page.extrasamples[-1] in OPACITY,
                placed=placed,
                grid=tuple(sorted((tag, _plain(value)) for tag, value in tags.items())) if placed else None,
                lossy=is_lossy_compression(page.compression),
                inverted=page.photometric == 0 and page.bitspersample == 8,  # 0 = white is 0
                mask_page=kinds.index(_MASK) if _MASK in kinds else None,
            )
    except BROKEN as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"not a readable TIFF ({first_line(error)})", where=path, fix="remove or replace the file"
        ) from error


@contextmanager
def open_raster(raster: Raster) -> Iterator[Any]:
    """What reads windows of a raster: `read(window) -> (h, w, C)`, values as they are stored; and `place()`.

    Raises:
        UserError: what is read is corrupt, or compressed in a way that needs the extra.
    """
    try:
        opened = _ByRasterio(raster) if has_rasterio() else _ByTifffile(raster)
    except BROKEN as error:
        if isinstance(error, UserError):
            raise
        raise _corrupt(raster, error) from error
    try:
        yield opened
    finally:
        opened.close()


def gdal_settings(needed: int = 0) -> Any:
    """A rasterio environment for windows: few decoded blocks in memory, and no files beside the images.

    Args:
        needed: bytes of decoded blocks that have to be kept, however few.
    """
    import rasterio

    return rasterio.Env(GDAL_CACHEMAX=max(CACHE_MB * 2**20, needed), GDAL_PAM_ENABLED="NO")  # rasterio takes bytes


@contextmanager
def quiet_places() -> Iterator[None]:
    """Without rasterio's warning of files that are nowhere on a map."""
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


class _ByRasterio:
    def __init__(self, raster: Raster) -> None:
        import rasterio

        self.raster = raster
        self._errors = (rasterio.errors.RasterioError, *BROKEN)
        self._env = gdal_settings()
        with self._env:
            try:
                with quiet_places():
                    self._file = rasterio.open(raster.path)
            except self._errors as error:
                raise _corrupt(raster, error) from error

    def read(self, window: Window) -> np.ndarray:
        from rasterio.windows import Window as Part

        with self._env:
            try:
                part = Part(window.left, window.top, window.width, window.height)
                values = self._file.read(window=part)  # (C, h, w)
            except self._errors as error:
                raise _corrupt(self.raster, error) from error
        return np.moveaxis(values, 0, 2)

    def shown(self, window: Window) -> np.ndarray | None:
        """What the file's mask shows, bool (h, w); None where it has none."""
        from rasterio.windows import Window as Part

        if self.raster.mask_page is None:
            return None
        with self._env:
            try:
                part = Part(window.left, window.top, window.width, window.height)
                return self._file.read_masks(1, window=part) > 0
            except self._errors as error:
                raise _corrupt(self.raster, error) from error

    def place(self) -> Place | None:
        if not self.raster.placed:
            return None
        crs = None if self._file.crs is None else self._file.crs.to_wkt()
        return Place(crs, tuple(self._file.transform)[:6])

    def system(self) -> Any:
        return self._file.crs

    def close(self) -> None:
        self._file.close()


class _ByTifffile:
    def __init__(self, raster: Raster) -> None:
        import tifffile

        self.raster = raster
        self._file = tifffile.TiffFile(raster.path)
        self._page = self._file.pages.first
        self._blocks: OrderedDict[int, np.ndarray | None] = OrderedDict()
        self._mask: np.ndarray | None = None
        height, width, bands = raster.shape
        page = self._page
        tiled = page.is_tiled
        self._side = (
            page.tilelength if tiled else min(page.rowsperstrip, height),
            page.tilewidth if tiled else width,
        )
        self._across = -(-width // self._side[1])
        self._plane = self._across * -(-height // self._side[0])
        self._separate = page.planarconfig == 2 and bands > 1
        block = self._side[0] * self._side[1] * raster.dtype.itemsize * (1 if self._separate else bands)
        self._kept = max(1, CACHE_MB * 2**20 // block)

    def read(self, window: Window) -> np.ndarray:
        bands = self.raster.shape[2]
        empty = 0 if self.raster.nodata is None or self.raster.dtype.kind not in "iuf" else self.raster.nodata
        values = np.full((*window.size, bands), empty, self.raster.dtype)
        rows = range(window.top // self._side[0], -(-(window.top + window.height) // self._side[0]))
        columns = range(window.left // self._side[1], -(-(window.left + window.width) // self._side[1]))
        for plane in range(bands if self._separate else 1):
            target = values[..., plane : plane + 1] if self._separate else values
            for row in rows:
                for column in columns:
                    block = self._block(plane * self._plane + row * self._across + column)
                    if block is not None:
                        _paste(target, block, window, row * self._side[0], column * self._side[1])
        return values

    def shown(self, window: Window) -> np.ndarray | None:
        """What the file's mask shows, bool (h, w); None where it has none. The mask is read as a whole."""
        if self.raster.mask_page is None:
            return None
        if self._mask is None:
            try:
                self._mask = self._file.pages[self.raster.mask_page].asarray() > 0
            except BROKEN as error:
                raise _corrupt(self.raster, error) from error
        return self._mask[window.slices]

    def _block(self, index: int) -> np.ndarray | None:
        """(h, w, C) of a tile or strip; None for one that the file leaves out."""
        if index in self._blocks:
            self._blocks.move_to_end(index)
            return self._blocks[index]
        page, handle = self._page, self._file.filehandle
        try:
            handle.seek(page.dataoffsets[index])
            data = handle.read(page.databytecounts[index])
            decoded = page.decode(data or None, index, jpegtables=page.jpegtables)[0]
        except BROKEN as error:
            raise _corrupt(self.raster, error) from error
        block = None if decoded is None else decoded[0]  # (depth, h, w, C) -> (h, w, C)
        self._blocks[index] = block
        if len(self._blocks) > self._kept:
            self._blocks.popitem(last=False)
        return block

    def place(self) -> Place | None:
        return None

    def close(self) -> None:
        self._file.close()


def _paste(target: np.ndarray, block: np.ndarray, window: Window, top: int, left: int) -> None:
    """The part of `block`, which begins at (top, left) of the image, that lies in `window`."""
    first, start = max(top, window.top), max(left, window.left)
    last = min(top + block.shape[0], window.top + window.height)
    end = min(left + block.shape[1], window.left + window.width)
    if first < last and start < end:
        part = block[first - top : last - top, start - left : end - left]
        target[first - window.top : last - window.top, start - window.left : end - window.left] = part


def _corrupt(raster: Raster, error: Exception) -> UserError:
    return UserError(f"corrupt TIFF ({first_line(error)})", where=raster.path, fix="copy or export it again")


def _plain(value: Any) -> Any:
    """Numbers to a relative 1e-9, so that files of two writers may agree."""
    if isinstance(value, (tuple, list, np.ndarray)):
        return tuple(_plain(one) for one in value)
    return float(f"{value:.9g}") if isinstance(value, (int, float, np.number)) else str(value).strip("|\0 ")
