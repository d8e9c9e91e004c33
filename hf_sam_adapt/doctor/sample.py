"""One image with its mask: what is wrong with it, and the numbers that the checks of the whole data set need."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ..data.channels import ARRAY_SUFFIX, displayable
from ..data.dataset import Reader, ignored, size_mismatch
from ..data.encoding import MaskEncoding, map_values, middle_of_edges, present_values
from ..data.folder import FileReader
from ..data.images import IGNORE
from ..data.palettes import to_labels, unknown_colours
from ..data.scenes import check_grid
from ..data.stored import EXIF_ORIENTATION, WIDE_MODES, Values, open_stored
from ..data.tiles import Tiles
from ..errors import UserError, first_line
from .findings import ERROR, WARNING, Finding, from_error
from .hashes import THUMBNAIL, digest, perceptual
from .scenes import MUCH, NOWHERE, raster_of_row, read_image, read_mask


# What is kept of each image, about 300 bytes.
RECORD = np.dtype(
    [
        ("read", bool),  # image and mask could be read and fit
        ("image", np.uint64),  # digest, 0 = unreadable
        ("mask", np.uint64),
        ("hash", np.uint64),
        ("thumbnail", np.uint8, (THUMBNAIL, THUMBNAIL)),
        ("foreground", np.float32),  # share of the labelled pixels
        ("border", np.float32),  # share of the labelled pixels of the image's edge
        ("coloured", bool),  # the mask is read by the palette
        ("depth", np.uint8),  # of grey images of 16 bits: 12 or 16 bits used; 0 = others
    ]
)
TINY_FIX = "set tile, or raise image_size"
MAX_STATISTICS = 300_000  # pixels that a channel's statistics are taken of
SMALLEST_SIDE = 16
MOST_STRETCHED = 10
TURNS_UNSEEN = (2, 3, 4)  # EXIF orientations that keep height and width: the mask's size cannot tell them


@dataclass
class SampleFacts:
    """What one row says.

    Attributes:
        findings: about this image or mask alone.
        record: scalar of `RECORD`.
        size: (height, width) of the image.
        classes: int64 (K,), pixels of each class.
        objects: connected components of the classes above 0, and how many of them are smaller than a mask pixel.
        channels: float64 (4, C): mean, variance, smallest and largest value.
        mapped: the stored values that `label_map` names and the mask holds, None where it is not readable.
        nodata: pixels without data, and all pixels.
        system: coordinate system of a raster; None of others.
        step: by which a scene was made small.
    """

    findings: list[Finding] = field(default_factory=list)
    record: Any = field(default_factory=lambda: np.zeros((), RECORD)[()])
    size: tuple[int, int] | None = None
    classes: np.ndarray | None = None
    objects: tuple[int, int] = (0, 0)
    channels: np.ndarray | None = None
    mapped: frozenset[int] | None = None
    nodata: tuple[int, int] = (0, 0)
    system: str | None = None
    step: int = 1

    def warn(self, code: str, file: str, value: str, fix: str) -> None:
        self.findings.append(Finding(WARNING, code, file, value, fix))

    def refuse(self, error: UserError, file: str) -> None:
        """A training would end with this error."""
        self.findings.append(from_error(error, file))


@dataclass(frozen=True)
class Examiner:
    """Examines rows.

    Attributes:
        reader, encoding: of the data set, as a training uses them.
        photographs: images are read as RGB of 8 bits.
        mixed: whether to look for masks of the other encoding.
        mask_size: side of the decoder's mask in pixels.
        amplitudes: whether the values must not be negative.
        slices: the images are slices of volumes, of which many hold air alone.
        tiles: how a training will cut the images; None = not at all.
    """

    reader: Reader
    encoding: MaskEncoding
    photographs: bool
    mixed: bool
    mask_size: int
    amplitudes: bool = False
    slices: bool = False
    tiles: Tiles | None = None

    def __call__(self, row: dict[str, Any]) -> SampleFacts:
        facts = SampleFacts()
        image, valid = self._image(row, facts)
        stored, known, lossy = self._mask(row, facts)
        if image is None or stored is None:
            return facts
        name = self.reader.name(row)
        if stored.shape[:2] != image.shape[:2]:
            facts.refuse(size_mismatch(name, stored.shape[:2], image.shape[:2]), name)
            return facts
        mask = self._decoded(stored, lossy, name, facts)
        if mask is not None:
            self._classes(ignored(ignored(mask, known), valid), name, facts)
            facts.record["read"] = True
        return facts

    def _image(self, row: dict[str, Any], facts: SampleFacts) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The image, and where it has data; None where it cannot be read, and everywhere."""
        name = image_name(self.reader, row)
        try:
            raster = raster_of_row(self.reader, row)
            image, valid, facts.step = read_image(self.reader, row, raster)
            if self.photographs and not self.slices and facts.step == 1:
                self._file(self.reader.path(row), facts)
        except Exception as error:  # decoders raise types of many libraries
            facts.refuse(_as_user_error(error, name), name)
            return None, None
        height, width = facts.size = image.shape[:2] if raster is None else raster.size
        facts.system = NOWHERE if raster is None else raster.system or NOWHERE
        known = image.reshape(-1, 1, image.shape[2]) if valid is None else image[valid][:, None]  # (N, 1, C)
        facts.nodata = image[..., 0].size - len(known), image[..., 0].size
        if facts.nodata[0] > MUCH * facts.nodata[1]:
            share = facts.nodata[0] / facts.nodata[1]
            facts.warn("nodata", name, f"{share:.0%} of its pixels hold no data", "cut the image to what it shows")
        if not len(known):
            return image, valid
        facts.record["image"] = digest(image)
        if min(height, width) < SMALLEST_SIDE or max(height, width) > MOST_STRETCHED * min(height, width):
            fix = "cut or remove it, the network's input is a square"
            facts.warn("odd-size", name, f"{width}x{height} pixels", fix)
        step = int(np.ceil(np.sqrt(image[..., 0].size / MAX_STATISTICS)))
        facts.channels = channel_statistics(image[::step, ::step] if valid is None else known[:: step**2])
        if (facts.channels[2] == facts.channels[3]).all() and (image == image[0, 0]).all():
            if not self.slices:
                facts.warn("flat-image", name, "one colour everywhere", "replace or remove it")
        else:
            facts.record["hash"], facts.record["thumbnail"] = perceptual(displayable(image))
        if self.amplitudes and facts.channels[2].min() < 0:
            problem = f"smallest value {facts.channels[2].min():g}, but db needs amplitudes"
            facts.refuse(UserError(problem, fix="set normalization to percentile", code="normalization"), name)
        return image, valid

    def _file(self, path: str | None, facts: SampleFacts) -> None:
        """What reading as RGB of 8 bits hides."""
        if path is None or path.endswith(ARRAY_SUFFIX):
            return
        with open_stored(path) as image:
            if isinstance(image, Values):
                wide = image.read() if image.dtype == np.uint16 else None
            else:
                self._orientation(image, path, facts)
                wide = np.asarray(image) if image.mode in WIDE_MODES else None
        if wide is not None:
            facts.record["depth"] = 12 if wide.max() <= 4095 else 16

    def _orientation(self, image: Image.Image, path: str, facts: SampleFacts) -> None:
        if image.format in ("JPEG", "MPO", "TIFF", "WEBP"):
            turned = image.getexif().get(EXIF_ORIENTATION, 1)
            if turned in TURNS_UNSEEN or (turned > 4 and image.width == image.height):
                value = f"EXIF orientation {turned}, and the size does not tell whether the mask is turned, too"
                fix = "store image and mask upright, without orientation"
                facts.warn("orientation", path, value, fix)

    def _mask(self, row: dict[str, Any], facts: SampleFacts) -> tuple[np.ndarray | None, np.ndarray | None, bool]:
        """Stored values (of colours, classes), None where refused; where there are data; whether they are lossy."""
        name = self.reader.name(row)
        try:
            if isinstance(self.reader, FileReader) and facts.size is not None:
                check_grid(row["image"], row["mask"])
            stored, known, lossy, size = read_mask(self.reader, row, facts.step)
            if facts.step > 1 and size != facts.size and facts.size is not None:
                raise size_mismatch(name, size, facts.size)
        except Exception as error:  # decoders raise types of many libraries
            facts.refuse(_as_user_error(error, name), name)
            return None, None, False
        if stored.ndim == 3 and self.encoding.palette is not None and not lossy:
            unknown = unknown_colours(stored, self.encoding.palette)
            if unknown:
                (colour, _), total = unknown.most_common(1)[0], unknown.total()
                value = f"{total} pixels of colours that the palette does not hold, mostly {colour}, are ignored"
                severity = ERROR if total == stored.shape[0] * stored.shape[1] else WARNING
                facts.findings.append(Finding(severity, "palette", name, value, "add the colour to palette"))
            stored = to_labels(stored, self.encoding.palette)
            facts.record["coloured"] = True
        return stored, known, lossy

    def _decoded(self, stored: np.ndarray, lossy: bool, name: str, facts: SampleFacts) -> np.ndarray | None:
        """Classes, or None where a training refuses the mask."""
        facts.mapped = frozenset(value for value in self.encoding.label_map or () if (stored == value).any())
        mapped = map_values(stored, self.encoding.label_map)
        if self.mixed and not lossy and mapped.dtype == np.uint8:
            values = present_values(mapped, name)
            binary, classes = self.encoding.mask_values == "binary", (self.encoding.num_labels or 2) - 1
            index_mask = values[1 : classes + 1].any() and not values[classes + 1 :].any()
            if index_mask if binary else values[IGNORE] and not values[1:IGNORE].any():
                value = "class indices, others hold 255" if binary else "255 and no class, others hold classes"
                fix = "set mask_values to index (255 = ignore) or binary (above 0 is foreground), or fix it"
                facts.refuse(UserError(value, fix=fix, code="mixed-encoding"), name)
                return None
        soft = None if lossy or self.encoding.mask_values == "index" else middle_of_edges(mapped)
        if soft is not None and self.encoding.threshold is None and not self.encoding.exact:
            above, inside = np.count_nonzero(mapped > 0), np.count_nonzero(mapped > soft)
            value = f"soft edges: {above} pixels above 0 are foreground, {inside} lie above {soft:g}"
            facts.warn("soft-edges", name, value, f"set mask_threshold to {soft:g}")
        try:
            return self.encoding.decode(stored, lossy, name)
        except UserError as error:
            facts.refuse(error, name)
            return None

    def _classes(self, mask: np.ndarray, name: str, facts: SampleFacts) -> None:
        counts = np.bincount(mask.ravel(), minlength=256)
        number = self.encoding.num_labels or 2
        facts.classes, labelled = counts[:number], int(counts[:number].sum())
        facts.record["mask"] = digest(mask)
        if not labelled:
            value, fix = "255 = ignore everywhere: nothing is learned or measured", "check label_map and mask_values"
            facts.warn("ignored-mask", name, value, fix)
            return
        edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
        facts.record["foreground"] = 1 - counts[0] / labelled
        facts.record["border"] = (edge[edge != IGNORE] != 0).mean() if (edge != IGNORE).any() else 0
        if counts[0] == labelled and self.slices:
            pass  # said of volumes without any
        elif counts[0] == labelled:
            value, fix = "no foreground", "remove it with its image, unless there is nothing to see"
            facts.warn("empty-mask", name, value, fix)
        elif number == 2 and not counts[0]:
            fix = "check it, the object can hardly be all of the image"
            facts.warn("full-mask", name, "foreground everywhere", fix)
        size = facts.size or mask.shape
        shown = max(size) if self.tiles is None else max(self.tiles.grid(size).tile)
        pixel = (shown / self.mask_size) ** 2
        facts.objects = count_objects(mask, number, pixel / facts.step**2)
        if 0 < facts.objects[0] == facts.objects[1]:
            value = (
                f"no object is as large as a pixel of the predicted {self.mask_size}x{self.mask_size} mask "
                f"({pixel:.3g} pixels of the image)"
            )
            fix = TINY_FIX if self.tiles is None else "set a smaller tile, or raise image_size"
            facts.warn("tiny-object", name, value, fix)


def channel_statistics(image: np.ndarray) -> np.ndarray:
    """Mean, variance, smallest and largest value of each channel of (H, W, C): float64 (4, C)."""
    if image.dtype != np.uint8:
        pixels = image.reshape(-1, image.shape[2])  # (H, W, C) -> (N, C)
        mean, variance = pixels.mean(axis=0, dtype=np.float64), pixels.var(axis=0, dtype=np.float64)
        return np.stack([mean, variance, pixels.min(axis=0), pixels.max(axis=0)])
    levels, statistics = np.arange(256), []
    for channel in range(image.shape[2]):
        shares = np.bincount(image[:, :, channel].ravel(), minlength=256) / image[:, :, 0].size
        mean, (low, high) = (shares * levels).sum(), np.flatnonzero(shares)[[0, -1]]
        statistics.append((mean, (shares * (levels - mean) ** 2).sum(), low, high))
    return np.array(statistics).T  # (C, 4) -> (4, C)


def count_objects(mask: np.ndarray, num_labels: int, smallest: float) -> tuple[int, int]:
    """Connected components of each class above 0 of uint8 (H, W), and how many have fewer than `smallest` pixels."""
    from scipy import ndimage

    total = tiny = 0
    for label in np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:num_labels]) + 1:
        numbered, count = ndimage.label(mask == label, structure=np.ones((3, 3), bool))
        total += count
        tiny += int((np.bincount(numbered.ravel(), minlength=count + 1)[1:] < smallest).sum())
    return total, tiny


def parts_of(tables: Mapping[str, Sized]) -> dict[str, slice]:
    """Where each split lies in what is kept of all images, one split after the other."""
    ends = np.cumsum([len(table) for table in tables.values()]).tolist()
    return {split: slice(end - len(table), end) for (split, table), end in zip(tables.items(), ends)}


def image_name(reader: Reader, row: dict[str, Any]) -> str:
    """What findings call the image of a row."""
    path = reader.path(row) or f"row {row['id']}, column image"
    return f"{path}, slice {row['slice']}" if "slice" in row else path


def _as_user_error(error: Exception, name: str) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(first_line(error), where=name, fix="remove or replace the file")
