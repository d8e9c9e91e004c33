"""The data set as the rest of the package sees it: splits that read one image and mask when indexed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch.utils.data import Dataset

from ..errors import UserError
from .encoding import MaskEncoding
from .images import IGNORE, Header
from .palettes import Palette
from .rasters import Place, raster_of
from .scenes import ImageWindows, StoredMask, WholeImage, WholeMask, open_image, valid_of
from .tiles import Window


if TYPE_CHECKING:
    import datasets


@dataclass
class Sample:
    """One image with its mask.

    Attributes:
        image: uint8 (H, W, 3); float32 (H, W, C) if the data set was loaded with `channels`.
        mask: uint8 (H, W), classes 0..K-1 (binary: 0 and 1) and 255 = ignore.
        id: name without extension, unique in its split.
        index: position in the split.
        path: the image's file, if it has one of its own.
        valid: bool (H, W), False where the file says that it holds no data, and the mask is 255; None = data
            everywhere.
    """

    image: np.ndarray
    mask: np.ndarray
    id: str
    index: int
    path: str | None = None
    valid: np.ndarray | None = None


class OpenSample:
    """A sample of which windows are read, an `ImageWindows` with a mask.

    Attributes:
        id, index, path: as in `Sample`.
        size: (height, width).
        place, nodata: see `ImageWindows`.
    """

    def __init__(
        self,
        image: ImageWindows,
        mask: StoredMask | WholeMask,
        encoding: MaskEncoding,
        row_id: str,
        index: int,
        path: str | None,
        mask_name: str,
    ) -> None:
        self.id, self.index, self.path, self.size = row_id, index, path, image.size
        self.place: Place | None = image.place
        self.nodata: float | None = image.nodata
        self._image, self._mask, self._encoding, self._mask_name = image, mask, encoding, mask_name

    def image(self, window: Window) -> np.ndarray:
        return self._image.image(window)

    def valid(self, window: Window) -> np.ndarray | None:
        return self._image.valid(window)

    def mask(self, window: Window) -> np.ndarray:
        """uint8 (h, w), classes and 255 = ignore, also where image or mask hold no data."""
        mask = self._encoding.decode(self._mask.read(window), self._mask.lossy, self._mask_name)
        return ignored(ignored(mask, self._mask.valid(window)), self._image.valid(window))

    def sample(self, window: Window) -> Sample:
        """What a window shows."""
        mask = self.mask(window)
        return Sample(self.image(window), mask, self.id, self.index, self.path, self.valid(window))


class Reader(Protocol):
    """Reads what a row of a split's table points to.

    Attributes:
        checked_rows: how many headers of a split are looked at before training; None = all.
        draws_ignored: its masks are drawn, 255 always means ignored (a COCO crowd).
    """

    checked_rows: int | None
    draws_ignored: bool

    def name(self, row: dict[str, Any]) -> str:
        """What error messages call the row's mask."""

    def path(self, row: dict[str, Any]) -> str | None:
        """The image's file, if it has one of its own."""

    def headers(self, row: dict[str, Any]) -> tuple[Header, Header]:
        """Of the image and the mask, without decoding them."""

    def read_image(self, row: dict[str, Any]) -> np.ndarray:
        """uint8 (H, W, 3), or float32 (H, W, C)."""

    def read_mask(self, row: dict[str, Any]) -> tuple[np.ndarray, bool]:
        """uint8 (H, W), or (H, W, 3) in colours, as stored, and whether it is stored lossily."""


class SegmentationSplit(Dataset):
    """A map-style data set over an Arrow table; nothing is opened before it is indexed.

    Args:
        table: one row an image, with the column "id" and those that `reader` needs.
        reader: opens the files or cells of a row.
        encoding: how stored mask values become classes.
    """

    def __init__(self, table: datasets.Dataset, reader: Reader, encoding: MaskEncoding) -> None:
        self.table = table
        self.reader = reader
        self.encoding = encoding

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Sample:
        """Read one sample. Raises `UserError` naming the file if it is corrupt or its mask does not fit."""
        index = index if index >= 0 else len(self) + index
        row = self.table[index]
        image = self.reader.read_image(row)
        stored, lossy = self.reader.read_mask(row)
        name = self.reader.name(row)
        if stored.shape[:2] != image.shape[:2]:
            raise size_mismatch(name, stored.shape[:2], image.shape[:2])
        path = self.reader.path(row)
        valid = None if path is None else valid_of(path)
        mask = ignored(ignored(self.encoding.decode(stored, lossy, name), mask_valid(self.reader, row)), valid)
        return Sample(image, mask, row["id"], index, path, valid)

    @contextmanager
    def open(self, index: int) -> Iterator[OpenSample]:
        """A sample whose windows are read when they are asked for, as far as its files allow it.

        Raises:
            UserError: as reading the whole sample.
        """
        row, reader = self.table[index], self.reader
        path, name = reader.path(row), reader.name(row)
        with ExitStack() as stack:
            image: ImageWindows
            if path is not None and raster_of(path) is not None:
                image = stack.enter_context(open_image(path, getattr(reader, "channels", None)))
            else:
                image = WholeImage(reader.read_image(row))
            opened = getattr(reader, "open_mask", None)
            mask = None if opened is None else stack.enter_context(opened(row))
            mask = WholeMask(*reader.read_mask(row)) if mask is None else mask
            if mask.size != image.size:
                raise size_mismatch(name, mask.size, image.size)
            yield OpenSample(image, mask, self.encoding, row["id"], index, path, name)

    def mask(self, index: int) -> np.ndarray:
        """The mask alone, uint8 (H, W), without opening the image unless that may hold pixels without data."""
        row = self.table[index]
        stored, lossy = self.reader.read_mask(row)
        path = self.reader.path(row)
        mask = ignored(self.encoding.decode(stored, lossy, self.reader.name(row)), mask_valid(self.reader, row))
        return ignored(mask, None if path is None else valid_of(path))

    def instances(self, index: int) -> np.ndarray | None:
        """uint8 (H, W), the number of the object at each pixel, 0 = none; None where the data does not tell objects
        of a class apart."""
        read = getattr(self.reader, "read_instances", None)
        return None if read is None else read(self.table[index])

    @property
    def ids(self) -> list[str]:
        return list(self.table["id"])

    @property
    def keys(self) -> list[str]:
        """What the images are known by to another run: their ids, for rows without a name what they hold, for slices
        their volumes, each once."""
        return list(dict.fromkeys(image_keys(self.table)))

    def select(self, indices: Sequence[int]) -> SegmentationSplit:
        """The same split with only the rows `indices`."""
        return SegmentationSplit(self.table.select(indices), self.reader, self.encoding)


@dataclass
class SegmentationData:
    """A loaded data set.

    Attributes:
        train: never empty.
        val: chooses the best checkpoint; None when there is a single image or group.
        test: for the final evaluation only; None when the source has none.
        num_labels: number of classes with the background, None = binary.
        id2label: class to name.
        mask_values: "binary" or "index", as resolved.
        name: what the user called the data set.
        notes: sentences about what was found, to be printed.
        splits: keys (see `SegmentationSplit.keys`) per split where they were drawn by seed, else None.
        palette: the colours of the classes, where the masks are read by one.
        val_chooses: whether a score on `val` means anything; not without foreground.
        slices: how its volumes are cut, see `SliceKeys`; None for images.
    """

    train: SegmentationSplit
    val: SegmentationSplit | None
    test: SegmentationSplit | None
    num_labels: int | None
    id2label: dict[int, str]
    mask_values: str
    name: str
    notes: list[str] = field(default_factory=list)
    splits: dict[str, list[str]] | None = None
    palette: Palette | None = None
    val_chooses: bool = True
    slices: dict[str, Any] | None = None

    @property
    def keys(self) -> dict[str, list[str]] | None:
        """What the images of each split are known by; None for drawn images, and for those of several data sets."""
        named = {"train": self.train, "val": self.val, "test": self.test}
        splits = {name: split for name, split in named.items() if split is not None}
        stored = [isinstance(split, SegmentationSplit) and split.reader.checked_rows != 0 for split in splits.values()]
        return {name: split.keys for name, split in splits.items()} if all(stored) else None

    @property
    def measured(self) -> tuple[str, SegmentationSplit]:
        """What a model is measured on, with its name: `test`, or where there is none `val`, else `train`."""
        for name, split in (("test", self.test), ("val", self.val if self.val_chooses else None)):
            if split:
                return name, split
        return "train", self.train


def image_keys(table: datasets.Dataset) -> list[str]:
    """Column "key" of a table, which stands in for ids that are mere numbers; else its ids."""
    return list(table["key" if "key" in table.column_names else "id"])


def mask_valid(reader: Reader, row: dict[str, Any]) -> np.ndarray | None:
    """Where the mask of a row has data, bool (H, W); None = everywhere, or its files cannot say."""
    find = getattr(reader, "mask_valid", None)
    return None if find is None else find(row)


def ignored(mask: np.ndarray, valid: np.ndarray | None) -> np.ndarray:
    """`mask` with 255 where there are no data."""
    return mask if valid is None or valid.shape != mask.shape else np.where(valid, mask, np.uint8(IGNORE))


def mask_of(split: Any, index: int) -> np.ndarray:
    """The mask of one sample, uint8 (H, W), without opening its image where the split can read it alone."""
    return split.mask(index) if hasattr(split, "mask") else split[index].mask


def size_mismatch(name: str, mask: tuple[int, int], image: tuple[int, int]) -> UserError:
    """The error for a mask of another size than its image; sizes are (height, width)."""
    turned = ", as where a photograph is turned by its EXIF orientation" if mask == image[::-1] else ""
    sizes = f"mask of {mask[1]}x{mask[0]} pixels, its image has {image[1]}x{image[0]}"
    return UserError(f"{sizes}{turned}", where=name, fix="they must be equal", code="size-mismatch")
