"""Checks of a data set as a whole, from sums over its images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from transformers.image_utils import IMAGENET_DEFAULT_STD

from ..data.degenerate import unused_map_notes
from ..data.encoding import MaskEncoding
from ..data.sources import Source
from ..data.tiles import Tiles
from .findings import ERROR, WARNING, Finding
from .sample import SampleFacts, image_name, parts_of


if TYPE_CHECKING:
    import datasets

RARE = 0.001  # share of the labelled pixels
MANY_TINY, FEW_OBJECTS = 0.2, 10  # share of the objects; below so many objects it means nothing
LOW_CONTRAST = 0.15  # deviation after normalisation, 1 is meant
SHIFT, FEW_IMAGES = 1.5, 3  # deviations of the training pixels between two splits' means
RATIO, STANDARD_ERRORS = 2, 3  # of the mean foreground of two splits, and of their difference
FEW_TRAINING, FEW_ALL = 5, 10  # images
INVERTED_EDGE, USUAL_EDGE = 0.9, 0.2  # share of foreground on the edge of a mask, and in half of the masks


class SplitFacts:
    """Sums over the images of a split.

    Attributes:
        images, read: how many there are, and how many can be trained on.
        classes: int64 (K,), pixels of each class.
        objects, tiny: connected components, and those smaller than a pixel of the predicted mask.
        smallest, largest: (height, width) by area.
        mean, std, low, high: float64 (C,), of the pixels of each channel; every image counts alike.
        foreground: int and two float: number, sum and sum of squares of the share in each mask.
        mapped: the stored values that `label_map` names and a mask holds, None where no mask is readable.
        nodata: pixels without data, and all pixels.
        systems: how many images are in each coordinate system.
    """

    def __init__(self, num_labels: int) -> None:
        self.images = self.read = self.objects = self.tiny = 0
        self.classes = np.zeros(num_labels, np.int64)
        self.smallest: tuple[int, int] | None = None
        self.largest: tuple[int, int] | None = None
        self._number = 0
        self._mean = self._square = np.zeros(())
        self.low, self.high = np.full((), np.inf), np.full((), -np.inf)
        self.foreground = np.zeros(3)
        self.mapped: frozenset[int] | None = None
        self.nodata = np.zeros(2, np.int64)
        self.systems: Counter[str] = Counter()

    def add(self, sample: SampleFacts) -> None:
        self.images += 1
        self.nodata += sample.nodata
        if sample.system is not None:
            self.systems[sample.system] += 1
        self.read += bool(sample.record["read"])
        if sample.classes is not None:
            self.classes += sample.classes
            if sample.classes.any():
                share = float(sample.record["foreground"])
                self.foreground += (1, share, share**2)
        if sample.mapped is not None:
            self.mapped = sample.mapped | (self.mapped or frozenset())
        self.objects, self.tiny = self.objects + sample.objects[0], self.tiny + sample.objects[1]
        if sample.size is not None:
            sizes = [size for size in (sample.size, self.smallest, self.largest) if size is not None]
            self.smallest, self.largest = (pick(sizes, key=np.prod) for pick in (min, max))
        if sample.channels is not None:
            mean, variance, low, high = sample.channels
            self._number += 1
            self._mean, self._square = self._mean + mean, self._square + variance + mean**2
            self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)

    @property
    def mean(self) -> np.ndarray | None:
        return self._mean / self._number if self._number else None

    @property
    def std(self) -> np.ndarray | None:
        mean = self.mean
        return None if mean is None else np.sqrt(np.maximum(self._square / self._number - mean**2, 0))

    def plain(self) -> dict:
        """For JSON."""
        labelled = max(1, int(self.classes.sum()))
        numbers = {name: getattr(self, name) for name in ("mean", "std", "low", "high")}
        return {
            "images": self.images,
            "usable": self.read,
            "smallest": self.smallest and [int(side) for side in self.smallest],
            "largest": self.largest and [int(side) for side in self.largest],
            "class_share": [round(count / labelled, 6) for count in self.classes.tolist()],
            "nodata_share": round(float(self.nodata[0] / max(1, self.nodata[1])), 6),
            "objects": self.objects,
            "tiny_objects": self.tiny,
            "channels": {name: np.round(value, 4).tolist() for name, value in numbers.items()} if self._number else {},
        }


def check_classes(
    name: str, facts: Mapping[str, SplitFacts], id2label: Mapping[int, str], num_labels: int | None
) -> Iterator[Finding]:
    """Classes that are absent or rare; `name` is the data set's."""
    train = facts["train"].classes
    if not train.sum():
        return

    def masks_of(split: str) -> str:
        """What its masks are called; where some are refused, nothing is said of those."""
        all_ = facts[split].read == facts[split].images
        return f"{'' if all_ else 'usable '}{'training' if split == 'train' else split} mask"

    if np.count_nonzero(train) == 1 and (train[0] == 0 or num_labels is not None):
        only = int(train.argmax())
        value = f"every labelled pixel of the {masks_of('train')}s is {id2label.get(only, only)}"
        yield Finding(ERROR, "class-missing", name, value, "check the masks, mask_values and label_map", value)
        return
    for label in range(len(train)):
        if num_labels is None and label == 0:
            continue
        class_name = id2label.get(label, str(label))
        shown = class_name if num_labels is None else f"class {label} ({class_name})"
        elsewhere = [split for split, other in facts.items() if split != "train" and other.classes[label]]
        if not train[label]:
            severity = ERROR if elsewhere or num_labels is None else WARNING
            value = f"{shown} is in no {masks_of('train')}" + f", but in {' and '.join(elsewhere)}" * bool(elsewhere)
            yield Finding(severity, "class-missing", name, value, "add it to train, or check the mask values", value)
            continue
        for split, other in facts.items():
            if other.classes.sum() and not other.classes[label]:
                value = f"{shown} is in no {masks_of(split)}, so it has no score there"
                severity = ERROR if num_labels is None and split == "test" else WARNING
                yield Finding(severity, "class-missing", name, value, f"add images of it to {split}", value)
        share = train[label] / train.sum()
        if share < RARE:
            fix = "set class_weights to inverse_sqrt, or merge it" if num_labels else "cut tiles around it"
            value = f"{shown} has {share:.3%} of the labelled training pixels"
            yield Finding(WARNING, "class-share", name, value, fix, value)


def check_amount(name: str, facts: Mapping[str, SplitFacts]) -> Iterator[Finding]:
    """Whether there are enough images to learn from."""
    counts = {split: found.images for split, found in facts.items()}
    if counts["train"] < FEW_TRAINING or sum(counts.values()) < FEW_ALL:
        shown = ", ".join(f"{count} in {split}" for split, count in counts.items())
        value = f"{shown}: too few images to trust what is learned and measured"
        fix = f"annotate more, at least {FEW_ALL} and {FEW_TRAINING} of them for training"
        yield Finding(WARNING, "few-images", name, value, fix)


def check_foreground(name: str, facts: Mapping[str, SplitFacts]) -> Iterator[Finding]:
    """Whether the share of the foreground is another one in validation or test images than in training images."""
    count, total, squares = facts["train"].foreground
    for split, other_facts in facts.items():
        number, sum_, sum_squares = other_facts.foreground
        if split == "train" or min(count, number) < FEW_IMAGES or not total or not sum_:
            continue
        if ((other_facts.classes > 0) != (facts["train"].classes > 0)).any():
            continue  # a class that one of them lacks is the cause
        mean, other = total / count, sum_ / number
        variance = (squares - count * mean**2 + sum_squares - number * other**2) / (count + number - 2)
        error = np.sqrt(max(variance, 0) * (1 / count + 1 / number))
        if max(mean, other) > RATIO * min(mean, other) and abs(mean - other) > STANDARD_ERRORS * error:
            value = f"foreground is {other:.1%} of a mask in {split}, {mean:.1%} in train"
            fix = "check that both show the same kind of objects at the same scale"
            yield Finding(WARNING, "split-shift", name, value, fix, value)


def check_label_map(
    name: str, facts: Mapping[str, SplitFacts], label_map: Mapping[int, int] | None
) -> Iterator[Finding]:
    """Values that `label_map` names and no mask holds."""
    for note in unused_map_notes(label_map, [found.mapped for found in facts.values() if found.mapped is not None]):
        yield Finding(WARNING, "label-map", name, note, "remove them from label_map, or correct them")


def check_objects(
    name: str, facts: Mapping[str, SplitFacts], mask_size: int, tiles: Tiles | None
) -> Iterator[Finding]:
    """Whether many objects are lost at the size of the predicted mask, of the image or of a tile of it."""
    how = "set tile" if tiles is None else "set a smaller tile"
    total, tiny = (sum(getattr(found, key) for found in facts.values()) for key in ("objects", "tiny"))
    if total >= FEW_OBJECTS and tiny > MANY_TINY * total:
        value = f"{tiny} of {total} objects are smaller than a pixel of the predicted mask ({mask_size}x{mask_size})"
        fix = f"{how}, or raise image_size; if they are specks, remove them"
        yield Finding(WARNING, "tiny-object", name, value, fix)


def check_pixels(
    name: str, facts: Mapping[str, SplitFacts], normalization: str, channels: int | None
) -> Iterator[Finding]:
    """The training images' channels against the normalisation, and those of the other splits."""
    train = facts["train"]
    mean, std = train.mean, train.std
    if mean is None or std is None:
        return
    flat = [str(channel) for channel in np.flatnonzero(std == 0)]
    if flat and len(flat) < len(std):
        value = f"channel {', '.join(flat)} has one value in all training images"
        yield Finding(WARNING, "normalization", name, value, "leave it out, or check how the images were stored")
    if normalization == "imagenet" and channels is None:
        contrast = float(np.max(std / 255 / np.asarray(IMAGENET_DEFAULT_STD)))
        if 0 < contrast < LOW_CONTRAST:
            value = f"pixels deviate by {contrast:.2f} after the normalisation of photographs, where 1 is meant"
            yield Finding(WARNING, "normalization", name, value, "set normalization to percentile or zscore")
    if normalization == "imagenet" and channels is not None and (np.min(train.low) < 0 or np.max(train.high) > 65535):
        value = f"values in {np.min(train.low):g}..{np.max(train.high):g}, but imagenet needs 0..65535"
        yield Finding(ERROR, "normalization", name, value, "set normalization to percentile")
    for split, other in facts.items():
        if split == "train" or other.mean is None or other.images < FEW_IMAGES or train.images < FEW_IMAGES:
            continue
        shift = np.abs(other.mean - mean) / np.where(std > 0, std, 1)
        if shift.max() > SHIFT:
            worst = int(shift.argmax())
            value = f"channel {worst} has the mean {other.mean[worst]:.4g} in {split}, {mean[worst]:.4g} in train"
            yield Finding(WARNING, "split-shift", name, value, "check that both were stored in one way")


def check_splits(
    tables: Mapping[str, datasets.Dataset], records: np.ndarray, source: Source, encoding: MaskEncoding
) -> Iterator[Finding]:
    """What shows only beside the other images: inverted masks, and 16-bit images that are scaled in two ways."""
    usable = records["read"]
    binary = encoding.num_labels is None and usable.any()
    usual = float(np.median(records["border"][usable])) if binary else 1.0
    depths = set(records["depth"].tolist()) - {0}
    coloured = records["coloured"][usable]
    # Where both are mixed, the fewer are named.
    odd = None if not coloured.any() or coloured.all() else bool(coloured.mean() <= 0.5)
    for split, part in parts_of(tables).items():
        record = records[part]
        inverted = (record["border"] >= INVERTED_EDGE) & (record["foreground"] > 0.5) & (record["foreground"] < 1)
        for index in np.flatnonzero(inverted & (usual <= USUAL_EDGE)).tolist():
            value = f"foreground on {record['border'][index]:.0%} of the edge, the usual mask on {usual:.0%}"
            file = source.reader.name(tables[split][index])
            yield Finding(WARNING, "inverted-mask", file, value, "check whether foreground and background are swapped")
        for index in np.flatnonzero(record["read"] & (record["coloured"] == odd)).tolist() if odd is not None else ():
            value = "colours, others hold one value a pixel" if odd else "one value a pixel, others hold colours"
            file = source.reader.name(tables[split][index])
            yield Finding(ERROR, "mixed-encoding", file, value, "store all masks alike")
        if len(depths) == 2:
            for index in np.flatnonzero(record["depth"] == 12).tolist():
                file = image_name(source.reader, tables[split][index])
                value = "16 bits of which 12 are used, so it is scaled otherwise than images that use all"
                yield Finding(WARNING, "bit-depth", file, value, "set channels to 1, or store all with 8 bits")
