"""One scene predicted and written window by window: nothing of its size is ever in memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..data.channels import displayable
from ..data.images import IGNORE
from ..data.scenes import ImageWindows, open_image, reduced
from ..data.tiles import Tiles, Window
from ..inference.predictor import SamAdaptPredictor
from ..inference.tiled import Route
from ..prompts import Prompt
from .class_maps import class_legend, class_overlay, with_legend
from .maps import POLYGON_DRIVERS, SUFFIXES, MapFile, write_polygons
from .report import MASK_COLOURS, overlay


PREVIEW = 2048  # longest side of the overlay of a scene


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


def write_scene(
    predictor: SamAdaptPredictor,
    path: str,
    folder: Path,
    name: str,
    formats: Sequence[str],
    tiles: Tiles,
    prompt: Prompt,
    *,
    domain: str | None = None,
    route: Route = "image",
    batch_size: int = 4,
    cut: float = 0.0,
    probability: bool = False,
) -> dict[str, Any]:
    """Predict a raster and write it in formats of maps, which appear when all of them are whole.

    `<name>_mask.tif` holds 1 for foreground, or the classes, 255 without data; `<name>_overlay.png` shows it reduced
    to at most 2048 pixels; polygons are in `<name>.gpkg` or `.geojson`.

    Args:
        path: of the raster.
        formats: among `SUFFIXES`.
        cut: logit above which a pixel is foreground.
        probability: also `<name>_probability.tif`, float32, of foreground; of classes one for each label.

    Returns:
        What `predictions.json` says of it.

    Raises:
        UserError: the file cannot be read to its end, or has no coordinate system for polygons.
    """
    classes = predictor.classes
    names = None if classes is None else list(classes)
    sums = SceneSums(None if classes is None else len(classes))
    files = {"mask": f"{name}_mask.tif"}
    with ExitStack() as stack, open_image(path, predictor.processor.channels) as image:
        mask = _map(stack, folder / files["mask"], path, image, cog="cog" in formats)
        chances: list[MapFile] = []
        if probability:
            labels = [""] if classes is None else [f"_{label}" for label in range(len(classes))]
            for label in labels:
                file = folder / f"{name}_probability{label}.tif"
                chances.append(_map(stack, file, path, image, "float32", np.nan, "cog" in formats))
        step = -(-max(image.size) // PREVIEW)
        preview = np.zeros([-(-length // step) for length in image.size], np.uint8)
        run = predictor.run_tiles(image, tiles, prompt, domain, route, batch_size=batch_size)
        for window, logits in run:
            valid = image.valid(window)
            labels_ = (logits[0] > cut if classes is None else logits.argmax(dim=0)).numpy().astype(np.uint8)
            sums.add(labels_, logits[0].numpy(), valid)
            stored = labels_ if valid is None else np.where(valid, labels_, IGNORE)
            mask.write(window, stored)
            _sample(preview, stored, window, step)
            for file, values in zip(chances, logits.sigmoid() if classes is None else logits.softmax(dim=0)):
                file.write(window, _without(values, valid))
        picture, _ = reduced(image, PREVIEW)
        record = {"height": image.size[0], "width": image.size[1], "tiles": len(run.grid)}
        for file in (mask, *chances):
            file.close()
        stack.pop_all()
    record = files | record | sums.record(classes)
    if classes is None:
        record["iou_estimate"] = run.score if predictor.has_estimate else None
    if run.domains:
        record |= {"domain": run.domains.most_common(1)[0][0], "domains": dict(run.domains.most_common())}
    record["overlay"] = f"{name}_overlay.png"
    _save_overlay(folder / record["overlay"], displayable(picture), preview, names)
    if chances:
        written = [file.path.name for file in chances]
        record["probability"] = written[0] if classes is None else written
    for format_ in (one for one in formats if one in POLYGON_DRIVERS):
        file_name = name + SUFFIXES[format_]
        record[format_] = file_name
        polygons = write_polygons(folder / files["mask"], folder / file_name, POLYGON_DRIVERS[format_], names)
        record["polygons"] = polygons
    return record


def _map(
    stack: ExitStack,
    file: Path,
    source: str,
    image: ImageWindows,
    dtype: str = "uint8",
    nodata: float = IGNORE,
    cog: bool = False,
) -> MapFile:
    """A file that is discarded unless `stack` is emptied before it ends."""
    opened = MapFile(file, source, image.size, dtype, nodata, cog)
    stack.callback(opened.discard)
    return opened


def _without(values: torch.Tensor, valid: np.ndarray | None) -> np.ndarray:
    return values.numpy() if valid is None else np.where(valid, values.numpy(), np.float32(np.nan))


def _sample(preview: np.ndarray, labels: np.ndarray, window: Window, step: int) -> None:
    """Every `step`-th pixel of a window, at its place."""
    rows, columns = (np.arange(-start % step, length, step) for start, length in zip(window[:2], labels.shape))
    if len(rows) and len(columns):
        top, left = (window.top + rows[0]) // step, (window.left + columns[0]) // step
        preview[top : top + len(rows), left : left + len(columns)] = labels[rows[:, None], columns]


def _save_overlay(file: Path, picture: np.ndarray, labels: np.ndarray, names: Sequence[str] | None) -> None:
    shown = np.where(labels == IGNORE, 0, labels)
    if names is None:
        tinted = overlay(picture, shown > 0, MASK_COLOURS["adapted"])
    else:
        tinted = with_legend(class_overlay(picture, shown, len(names)), class_legend(shown, names))
    part = file.with_name(f".part_{file.name}")
    Image.fromarray(tinted).save(part, format="PNG")
    part.replace(file)
