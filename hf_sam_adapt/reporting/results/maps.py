"""Results on the map: masks and probabilities as GeoTIFF, polygons as GeoPackage or GeoJSON in its coordinates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ...data.images import IGNORE
from ...data.scenes import valid_of
from ...data.tiles import Window
from ...errors import require_extra
from ...files import temporary_path, whole_file
from ..class_maps import class_legend, class_overlay, with_legend
from ..report import MASK_COLOURS, overlay
from .map_files import MapFile, check_place, write_polygons
from .result import ImageResult, Writer


PREVIEW = 2048  # longest side of the picture of a scene


class Sink:
    """Takes the windows of one image; `close` makes files of them, `discard` leaves nothing if it was not closed."""

    def write(self, window: Window, labels: np.ndarray, chances: Mapping[int, np.ndarray]) -> None:
        """Labels uint8 (h, w), 255 without data; probabilities by label, float32 (h, w), NaN without data."""
        raise NotImplementedError

    def close(self) -> dict[str, Any]:
        """What `predictions.json` says of the files."""
        raise NotImplementedError

    def discard(self) -> None:
        raise NotImplementedError


class MapWriter(Writer):
    """A format that is written by windows."""

    def begin(self, path: Path, name: str, size: tuple[int, int]) -> Sink:
        """Begin the files of the image at `path`, of `size` (height, width)."""
        raise NotImplementedError

    def check(self, path: Path) -> None:
        """Raise `UserError` where an image cannot be written in this format."""

    def write(self, result: ImageResult) -> dict[str, Any]:
        """All of an image as one window."""
        sink, mask = self.begin(result.path, result.name, result.size), result.prediction.mask.astype(np.uint8)
        try:
            valid = valid_of(str(result.path))
            chances: dict[int, np.ndarray] = {}
            if self.options.probability:
                maps = result.probabilities.reshape(-1, *result.size)  # (1 or K, H, W)
                maps = maps if valid is None else np.where(valid, maps, np.float32(np.nan))
                chances = dict(enumerate(maps, start=int(self.options.classes is None)))
            stored = mask if valid is None else np.where(valid, mask, np.uint8(IGNORE))
            sink.write(Window(0, 0, *result.size), stored, chances)
            return sink.close()
        finally:
            sink.discard()


class GeoTiffWriter(MapWriter):
    """`<name>_mask.tif`, compressed, with the image's coordinates: 1 = foreground, or the classes, 255 = no data.

    With probabilities also `<name>_probability.tif`, float32, of classes `<name>_probability_<label>.tif`.
    """

    key = "geotiff"
    ending: ClassVar[str] = ".tif"
    cog: ClassVar[bool] = False

    def files(self, name: str) -> list[str]:
        return [f"{name}_mask{self.ending}", *(self._chance_file(name, label) for label in self._labels)]

    def begin(self, path: Path, name: str, size: tuple[int, int]) -> Sink:
        require_extra("geo", f"format {self.key}")
        mask, *_ = self.files(name)
        files: dict[int | None, MapFile] = {None: MapFile(self.folder / mask, str(path), size, cog=self.cog)}
        for label in self._labels:
            file = self.folder / self._chance_file(name, label)
            files[label] = MapFile(file, str(path), size, "float32", np.nan, self.cog)
        return _TiffSink(self.key, files)

    @property
    def _labels(self) -> list[int]:
        """Of the probabilities."""
        if not self.options.probability:
            return []
        return [1] if self.options.classes is None else list(range(len(self.options.classes)))

    def _chance_file(self, name: str, label: int) -> str:
        return f"{name}_probability{'' if self.options.classes is None else f'_{label}'}{self.ending}"


class CogWriter(GeoTiffWriter):
    """The same as cloud-optimised GeoTIFF, `<name>_mask.cog.tif`."""

    key, ending, cog = "cog", ".cog.tif", True


class _TiffSink(Sink):
    def __init__(self, key: str, files: dict[int | None, MapFile]) -> None:
        self.key, self.files, self.open = key, files, True

    def write(self, window: Window, labels: np.ndarray, chances: Mapping[int, np.ndarray]) -> None:
        for label, file in self.files.items():
            file.write(window, labels if label is None else chances[label])

    def close(self) -> dict[str, Any]:
        for file in self.files.values():
            file.close()
        self.open = False
        mask, *others = [file.path.name for file in self.files.values()]
        about: dict[str, Any] = {self.key: mask}
        return about | ({f"{self.key}_probability": others if len(others) > 1 else others[0]} if others else {})

    def discard(self) -> None:
        for file in self.files.values() if self.open else ():
            file.discard()


class PackageWriter(MapWriter):
    """`<name>.gpkg`: the areas of the mask as polygons in the image's coordinates, with label, name and area."""

    key = "gpkg"
    driver: ClassVar[str] = "GPKG"
    ending: ClassVar[str] = ".gpkg"

    def files(self, name: str) -> list[str]:
        return [f"{name}{self.ending}"]

    def check(self, path: Path) -> None:
        require_extra("geo", f"format {self.key}")
        check_place(path)

    def begin(self, path: Path, name: str, size: tuple[int, int]) -> Sink:
        self.check(path)
        (file,) = self.files(name)
        labels = temporary_path(self.folder / f"{file}.tif", "labels")
        return _PolygonSink(self, MapFile(labels, str(path), size), self.folder / file)


class MapGeoJsonWriter(PackageWriter):
    """`<name>.map.geojson`: the same as GeoJSON, which names its coordinate system."""

    key, driver, ending = "map_geojson", "GeoJSON", ".map.geojson"


class _PolygonSink(Sink):
    def __init__(self, writer: PackageWriter, labels: MapFile, path: Path) -> None:
        self.writer, self.labels, self.path, self.open = writer, labels, path, True

    def write(self, window: Window, labels: np.ndarray, chances: Mapping[int, np.ndarray]) -> None:
        self.labels.write(window, labels)

    def close(self) -> dict[str, Any]:
        self.labels.close()
        self.open = False
        try:
            names = self.writer.options.labels
            count = write_polygons(self.labels.path, self.path, self.writer.driver, names)
        finally:
            self.labels.path.unlink()
        return {self.writer.key: self.path.name, "polygons": count}

    def discard(self) -> None:
        if self.open:
            self.labels.discard()


def save_preview(
    folder: Path, name: str, picture: np.ndarray, labels: np.ndarray, classes: Sequence[str] | None
) -> str:
    """`<name>_preview.png`: a picture uint8 (h, w, 3) tinted by its labels uint8 (h, w), 255 without data."""
    shown = np.where(labels == IGNORE, 0, labels)
    if classes is None:
        tinted = overlay(picture, shown > 0, MASK_COLOURS["adapted"])
    else:
        tinted = with_legend(class_overlay(picture, shown, len(classes)), class_legend(shown, classes))
    with whole_file(folder / preview_file(name)) as part:
        Image.fromarray(tinted).save(part, format="PNG")
    return preview_file(name)


def preview_file(name: str) -> str:
    """The file of `save_preview`."""
    return f"{name}_preview.png"


MAP_WRITERS: tuple[type[MapWriter], ...] = (GeoTiffWriter, CogWriter, PackageWriter, MapGeoJsonWriter)
