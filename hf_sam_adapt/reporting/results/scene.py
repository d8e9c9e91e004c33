"""One scene predicted and written window by window: nothing of its size is ever in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.channels import displayable
from ...data.images import IGNORE
from ...data.rasters import has_rasterio, raster_of
from ...data.scenes import open_image, reduced, sample_window
from ...data.stored import is_beyond_limit
from ...data.tiles import Tiles
from ...errors import UserError
from ...inference.predictor import SamAdaptPredictor
from ...inference.tiled import TiledRun, most_common
from .maps import MAP_WRITERS, PREVIEW, GeoTiffWriter, MapWriter, save_preview
from .result import WriteOptions, Writer


class SceneSums:
    """What is said of a scene, summed over its windows."""

    def __init__(self, labels: int | None) -> None:
        self.counts = np.zeros(labels or 2, np.int64)
        self.low, self.high, self.total = np.inf, -np.inf, 0.0

    def add(self, labels: np.ndarray, logits: np.ndarray, valid: np.ndarray | None) -> None:
        """Labels (h, w) and, of one class, logits (h, w) of a window; pixels without data do not count."""
        shown = labels if valid is None else labels[valid]
        values = logits if valid is None else logits[valid]
        if shown.size:
            self.counts += np.bincount(shown.ravel(), minlength=len(self.counts))
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
            self.total += float(values.sum(dtype=np.float64))

    def record(self, classes: Sequence[str] | None) -> dict[str, Any]:
        """The entries of `predictions.json`."""
        pixels = int(self.counts.sum())
        shares = self.counts / max(1, pixels)
        if classes is not None:
            return {"classes": dict(zip(classes, shares.tolist()))}
        stated = {"min": self.low, "mean": self.total / max(1, pixels), "max": self.high}
        return {"foreground": float(shares[1]), "logits": stated if pixels else dict.fromkeys(stated)}


def usual_formats(paths: Sequence[Path]) -> list[str]:
    """The formats of `predict` where none is named: on a map if every image lies there and rasterio is installed."""
    if not has_rasterio():
        return ["png"]
    for path in paths:
        try:
            raster = raster_of(path)
        except UserError:  # is said when its header is read
            continue
        if raster is None or not raster.placed:
            return ["png"]
    return ["geotiff"]


def scenes_among(paths: Sequence[Path], writers: Sequence[Writer], tiles: Tiles | None, plain: bool) -> list[Path]:
    """The images that are read and written by windows; `plain`: nothing is asked for that takes a whole map."""
    if tiles is None or not plain or not all(isinstance(writer, MapWriter) for writer in writers):
        return []
    return [path for path in paths if raster_of(path) is not None]


def check_scenes(paths: Sequence[Path], writers: Sequence[Writer], scenes: Sequence[Path]) -> None:
    """Raise `UserError` for an image that cannot be written in a format, or is too large to be read at once."""
    for path in paths:
        for writer in writers:
            if isinstance(writer, MapWriter):
                writer.check(path)
        raster = raster_of(path)
        if raster is not None and path not in scenes and is_beyond_limit(*raster.size):
            raise UserError(
                f"{raster.size[0] * raster.size[1] / 1e6:.0f} million pixels, too many to be read at once",
                where=path,
                fix=f"set tile, and formats of maps alone ({', '.join(kind.key for kind in MAP_WRITERS)})",
            )


def place_note(path: Path, name: str, writers: Sequence[Writer]) -> str | None:
    """What to say of an image whose place on the map no writer keeps, or of a map that has no place to keep."""
    raster = raster_of(path)
    placed = raster is not None and raster.placed
    if not placed:
        files = [writer.files(name)[0] for writer in writers if isinstance(writer, GeoTiffWriter)]
        return f"{path}: no place on a map is read from it; without one: {', '.join(files)}" if files else None
    if any(isinstance(writer, MapWriter) for writer in writers):
        return None
    keeps = "format geotiff keeps" if has_rasterio() else "pip install 'hf-sam-adapt[geo]' and format geotiff keep"
    return f"{path}: its coordinates are lost; {keeps} them"


def predict_scene(
    predictor: SamAdaptPredictor,
    path: Path,
    name: str,
    writers: Sequence[Writer],
    options: WriteOptions,
    tiles: Tiles,
    cut: float,
    batch_size: int,
    **how: Any,
) -> dict[str, Any]:
    """What `predictions.json` says of a raster that is predicted and written by windows; see `write_scene`."""
    kinds = [writer for writer in writers if isinstance(writer, MapWriter)]
    with open_image(path, predictor.processor.channels) as image:
        run = predictor.run_tiles(image, tiles, batch_size=batch_size, **how)
        record = write_scene(run, path, name, kinds, options, cut)
    if options.classes is None:
        record["iou_estimate"] = run.score if predictor.has_estimate else None
    return record


def write_scene(
    run: TiledRun, path: Path, name: str, writers: Sequence[MapWriter], options: WriteOptions, cut: float = 0.0
) -> dict[str, Any]:
    """Write what a run over the tiles of a raster finds, in formats of maps; files appear when they are whole.

    Args:
        path: of the raster.
        writers: of the formats.
        cut: logit above which a pixel is foreground.

    Returns:
        What `predictions.json` says of it.

    Raises:
        UserError: the file cannot be read to its end.
    """
    classes, size = options.classes, run.image.size
    sums = SceneSums(None if classes is None else len(classes))
    step = -(-max(size) // PREVIEW)
    small = np.zeros([-(-length // step) for length in size], np.uint8)
    record: dict[str, Any] = {}
    with ExitStack() as stack:
        sinks = [writer.begin(path, name, size) for writer in writers]
        for sink in sinks:
            stack.callback(sink.discard)
        for window, logits in run:
            valid = run.image.valid(window)
            labels = (logits[0] > cut if classes is None else logits.argmax(dim=0)).numpy().astype(np.uint8)
            sums.add(labels, logits[0].numpy(), valid)
            stored = labels if valid is None else np.where(valid, labels, IGNORE)
            chances: Mapping[int, np.ndarray] = _chances(logits, valid, classes is None) if options.probability else {}
            sample_window(small, stored, window, step)
            for sink in sinks:
                sink.write(window, stored, chances)
        picture, _ = reduced(run.image, PREVIEW)
        for sink in sinks:
            record |= sink.close()
    record |= {"height": size[0], "width": size[1], "tiles": len(run.grid), **sums.record(classes)}
    record |= {"preview": save_preview(writers[0].folder, name, displayable(picture), small, classes)}
    if run.domains:
        record |= {"domain": most_common(run.domains), "domains": dict(run.domains.most_common())}
    if run.router_scores is not None:
        record["router"] = run.router_scores
    return record


def _chances(logits: torch.Tensor, valid: np.ndarray | None, binary: bool) -> dict[int, np.ndarray]:
    """Label -> float32 (h, w), NaN where there are no data; of one class under 1."""
    maps = (logits.sigmoid() if binary else logits.softmax(dim=0)).numpy()
    shown = maps if valid is None else np.where(valid, maps, np.float32(np.nan))
    return dict(enumerate(shown, start=int(binary)))
