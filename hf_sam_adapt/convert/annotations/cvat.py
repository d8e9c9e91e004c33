"""CVAT: "CVAT for images 1.1" (an XML file) and "Segmentation mask 1.1" (coloured PNGs and a labelmap.txt)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ...data.annotations import BACKGROUND_LABELS, IGNORE_LABELS, find_image, image_side, label_of, stem_of
from ...data.dataset import size_mismatch
from ...data.folder import IMAGE_SUFFIXES
from ...data.images import IGNORE, read_image
from ...data.palettes import Palette, resolve_palette, to_labels, unknown_colours
from ...data.walk import files_below, one_form
from ...errors import UserError
from .regions import UNSPLIT, AnnotatedImage, Annotations, Bitmap, Region, Shape, ellipse, polygon, rectangle, split_of


def read_cvat(source: Path, images: Path | None = None, encoding: str | None = None) -> Annotations:
    """An unpacked export of CVAT, told by what it holds.

    Args:
        source: folder (or the XML file).
        images: folder of the images, where they were not exported, too.
        encoding: of texts that are not Unicode, None = guessed.

    Raises:
        UserError: neither export, a damaged file, a missing image.
    """
    file = source if source.is_file() else source / "annotations.xml"
    annotations = Annotations(encoding=encoding)
    if file.is_file():
        return _read_xml(file, [images] if images else [file.parent / "images", file.parent], annotations)
    labelmap = source / "labelmap.txt"
    if labelmap.is_file() and (source / "SegmentationClass").is_dir():
        palette = _read_labelmap(labelmap, annotations)
        return _read_masks(source, palette, images or source / "JPEGImages", annotations)
    raise UserError(
        "neither annotations.xml nor labelmap.txt with SegmentationClass/ in it",
        where=source,
        fix="export from CVAT as 'CVAT for images 1.1' or 'Segmentation mask 1.1'",
    )


def _read_xml(file: Path, folders: list[Path], annotations: Annotations) -> Annotations:
    """Shapes by z_order, then in the order of the file; polylines, points, skeletons and cuboids have no area."""
    root = _parse(file, annotations)
    if root.tag != "annotations" or root.find("image") is None:
        hint = "; videos (tracks) are exported as 'CVAT for images 1.1'" if root.find("track") is not None else ""
        raise UserError(f"no images of CVAT for images 1.1 in it{hint}", where=file)
    names = [label_of(name.text) for name in root.findall("./meta//labels/label/name")]
    annotations.classes = list(dict.fromkeys(name for name in names if name is not None)) or None
    for entry in root.findall("image"):
        name, regions = f"{file}, image {entry.get('name')}", []
        height, width = (image_side(entry.get(key), f"{name}: {key}") for key in ("height", "width"))
        try:
            shapes = sorted((s for s in entry if s.tag != "tag"), key=lambda shape: float(shape.get("z_order") or 0))
        except ValueError as error:
            raise UserError(f"damaged z_order ({error!r})", where=name, fix="export it again") from error
        for shape in shapes:
            try:
                area = _shape(shape)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise UserError(f"a damaged {shape.tag} ({error!r})", where=name, fix="correct it in CVAT") from error
            if area is None:
                annotations.left_out[f"{shape.tag} without an area"] += 1
            else:
                regions.append(Region(label_of(shape.get("label")), area))
        split = split_of(entry.get("subset") or "")
        found = find_image(entry.get("name") or "", _with_subset(folders, entry.get("subset")), str(file))
        size = (height, width) if height is not None and width is not None else None
        annotations.images.append(AnnotatedImage(split, found.stem, found.path, size, regions, name))
    return annotations


def _parse(file: Path, annotations: Annotations) -> ElementTree.Element:
    """The root of an XML file in whatever encoding it names or has."""
    try:
        named = re.match(rb"<\?xml[^>]*encoding=[\"']([\w.-]+)", file.read_bytes()[:200])
        if named is not None and annotations.encoding is None:
            annotations.encoding = named[1].decode()
        return ElementTree.fromstring(annotations.read_text(file))
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"not a readable XML file ({error})", where=file, fix="export it again") from error


def _with_subset(folders: list[Path], subset: str | None) -> list[Path]:
    return [folder / subset for folder in folders] + folders if subset else folders


def _shape(shape: ElementTree.Element) -> Shape | None:
    """The area of a shape, None for one without."""

    def number(*names: str) -> list[float]:
        return [float(shape.attrib[name]) for name in names]

    turned = float(shape.get("rotation") or 0)
    if shape.tag == "polygon":
        return polygon([[float(value) for value in point.split(",")] for point in shape.attrib["points"].split(";")])
    if shape.tag == "box":
        x1, y1, x2, y2 = number("xtl", "ytl", "xbr", "ybr")
        return rectangle(x1, y1, x2, y2, turned)
    if shape.tag == "ellipse":
        x, y, rx, ry = number("cx", "cy", "rx", "ry")
        return ellipse(x, y, rx, ry, turned)
    if shape.tag == "mask":
        left, top, width, height = (int(value) for value in number("left", "top", "width", "height"))
        runs = [int(run) for run in shape.attrib["rle"].split(",")]
        if sum(runs) != width * height:
            raise ValueError(f"run lengths of {sum(runs)} pixels for {width}x{height}")
        # Row by row, beginning with the pixels outside.
        bitmap = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
        return Bitmap(bitmap, left, top)
    return None


def _read_labelmap(file: Path, annotations: Annotations) -> Palette:
    """`name:red,green,blue:parts:actions`, a line a class."""
    classes: dict[str, list[int]] = {}
    for number, line in enumerate(annotations.read_text(file).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split(":")
        try:
            classes[fields[0].strip()] = [int(value) for value in fields[1].split(",")]
        except (IndexError, ValueError) as error:
            raise UserError(f"line {number} is not `name:red,green,blue::`", where=file, fix="correct it") from error
    try:
        palette = resolve_palette(classes)
    except UserError as error:
        raise error.replace(key=None, where=file) from error
    assert palette is not None  # as it is of None only
    return palette


def _read_masks(source: Path, palette: Palette, images: Path, annotations: Annotations) -> Annotations:
    """Colours that are in no line of labelmap.txt are ignored, and counted."""
    special = (*BACKGROUND_LABELS, *IGNORE_LABELS)
    annotations.classes = [name for name in palette.classes if name not in special]
    subsets = {}
    for file in files_below(source / "ImageSets", {".txt"}) if (source / "ImageSets").is_dir() else ():
        for line in annotations.read_text(file).splitlines():
            subsets[one_form(line.strip())] = split_of(file.stem)
    folder = source / "SegmentationClass"
    # Each class of a mask is asked for in turn: it is read once.
    read = lru_cache(maxsize=1)(partial(_labels, palette=palette, notes=annotations.notes))
    stored = files_below(images, IMAGE_SUFFIXES) if images.is_dir() else []
    pictures = {one_form(path.relative_to(images).with_suffix("").as_posix()): path for path in stored}
    for mask in sorted(files_below(folder, {".png"})) if folder.is_dir() else ():
        stem = mask.relative_to(folder).with_suffix("")
        image = pictures.get(one_form(stem.as_posix()))
        if image is None:
            hint = "export with 'Save images', or name its folder by --images"
            raise UserError(f"no image {stem} in {images.name}", where=mask, fix=hint)
        names = [*enumerate(palette.classes), (IGNORE, IGNORE_LABELS[0])]
        regions = [Region(name, _ClassOfMask(read, mask, index)) for index, name in names]
        split = subsets.get(one_form(stem.as_posix()), UNSPLIT)
        annotations.images.append(
            AnnotatedImage(split, stem_of(mask.relative_to(folder)), image, None, regions, str(mask))
        )
    return annotations


def _labels(file: Path, palette: Palette, notes: Counter[str]) -> np.ndarray:
    rgb = read_image(file)
    unknown = unknown_colours(rgb, palette).total()
    if unknown:
        notes["pixel of a colour that labelmap.txt does not name, ignored"] += unknown
    return to_labels(rgb, palette)


@dataclass(frozen=True)
class _ClassOfMask:
    """The pixels of one class of a mask; most masks lack some of the classes."""

    read: Callable[[Path], np.ndarray]
    file: Path
    index: int

    def draw(self, height: int, width: int) -> np.ndarray:
        labels = self.read(self.file)
        if labels.shape != (height, width):
            raise size_mismatch(str(self.file), labels.shape, (height, width))
        return labels == self.index

    def bounds(self, height: int, width: int) -> None:
        return None
