"""CVAT: "CVAT for images 1.1" (an XML file) and "Segmentation mask 1.1" (coloured PNGs and a labelmap.txt)."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from ..data.dataset import size_message
from ..data.folder import IMAGE_SUFFIXES
from ..data.images import IGNORE, read_image
from ..data.palettes import Palette, resolve_palette, to_labels
from ..data.walk import files_below, find_named, one_form
from ..errors import UserError
from .regions import (
    BACKGROUND_LABELS,
    IGNORE_LABELS,
    UNSPLIT,
    AnnotatedImage,
    Annotations,
    Region,
    ellipse,
    find_image,
    polygon,
    rectangle,
    split_of,
    stem_of,
    window,
)


def read_cvat(source: Path, images: Path | None = None) -> Annotations:
    """An unpacked export of CVAT, told by what it holds.

    Args:
        source: folder (or the XML file).
        images: folder of the images, where they were not exported, too.

    Raises:
        UserError: neither export, a damaged file, a missing image.
    """
    file = source if source.is_file() else source / "annotations.xml"
    if file.is_file():
        return _read_xml(file, [images] if images else [file.parent / "images", file.parent])
    labelmap = source / "labelmap.txt"
    if labelmap.is_file() and (source / "SegmentationClass").is_dir():
        return _read_masks(source, _read_labelmap(labelmap), images or source / "JPEGImages")
    raise UserError(
        f"{source}: neither annotations.xml nor labelmap.txt with SegmentationClass/ in it; export from CVAT as 'CVAT "
        "for images 1.1' or 'Segmentation mask 1.1'"
    )


def _read_xml(file: Path, folders: list[Path]) -> Annotations:
    """Shapes by z_order, then in the order of the file; polylines, points, skeletons and cuboids have no area."""
    try:
        root = ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise UserError(f"{file}: not a readable XML file ({error}); export it again") from error
    if root.tag != "annotations" or root.find("image") is None:
        hint = "; videos (tracks) are exported as 'CVAT for images 1.1'" if root.find("track") is not None else ""
        raise UserError(f"{file}: no images of CVAT for images 1.1 in it{hint}")
    names = [name.text or "" for name in root.findall("./meta//labels/label/name")]
    annotations = Annotations(classes=list(dict.fromkeys(names)) or None)
    for entry in root.findall("image"):
        name, regions = f"{file}, image {entry.get('name')}", []
        try:
            size = int(entry.attrib["height"]), int(entry.attrib["width"])
            shapes = sorted((s for s in entry if s.tag != "tag"), key=lambda shape: int(shape.get("z_order") or 0))
        except (KeyError, ValueError) as error:
            raise UserError(f"{name}: damaged width, height or z_order ({error!r}); export it again") from error
        for shape in shapes:
            try:
                draw = _shape(shape)
            except (KeyError, TypeError, ValueError) as error:
                raise UserError(f"{name}: a damaged {shape.tag} ({error!r}); mend it in CVAT") from error
            if draw is None:
                annotations.left_out[f"{shape.tag} without an area"] += 1
            else:
                regions.append(Region(str(shape.get("label")), draw))
        split = split_of(entry.get("subset") or "")
        image = find_image(str(entry.get("name")), _with_subset(folders, entry.get("subset")), str(file))
        annotations.images.append(AnnotatedImage(split, stem_of(str(entry.get("name"))), image, size, regions, name))
    return annotations


def _with_subset(folders: list[Path], subset: str | None) -> list[Path]:
    return [folder / subset for folder in folders] + folders if subset else folders


def _shape(shape: ElementTree.Element) -> Callable[[int, int], np.ndarray] | None:
    """How to draw a shape, None for one without an area."""

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
        return window(bitmap, left, top)
    return None


def _read_labelmap(file: Path) -> Palette:
    """`name:red,green,blue:parts:actions`, a line a class."""
    classes: dict[str, list[int]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split(":")
        try:
            classes[fields[0].strip()] = [int(value) for value in fields[1].split(",")]
        except (IndexError, ValueError) as error:
            raise UserError(f"{file}: line {number} is not `name:red,green,blue::`; mend it") from error
    try:
        palette = resolve_palette(classes)
    except UserError as error:
        raise UserError(f"{file}: {str(error).removeprefix('palette: ')}") from error
    assert palette is not None  # as it is of None only
    return palette


def _read_masks(source: Path, palette: Palette, images: Path) -> Annotations:
    """Colours that are in no line of labelmap.txt are ignored."""
    special = (*BACKGROUND_LABELS, *IGNORE_LABELS)
    annotations = Annotations(classes=[name for name in palette.classes if name not in special])
    subsets = {}
    for file in files_below(source / "ImageSets", {".txt"}) if (source / "ImageSets").is_dir() else ():
        for line in file.read_text(encoding="utf-8").splitlines():
            subsets[one_form(line.strip())] = split_of(file.stem)
    folder = source / "SegmentationClass"
    # Each class of a mask is asked for in turn: it is read once.
    read = lru_cache(maxsize=1)(partial(_labels, palette=palette))
    for mask in sorted(files_below(folder, {".png"})) if folder.is_dir() else ():
        stem = mask.relative_to(folder).with_suffix("")
        candidates = (find_named(images, str(stem.with_suffix(suffix))) for suffix in sorted(IMAGE_SUFFIXES))
        image = next(filter(None, candidates), None)
        if image is None:
            hint = "export with 'Save images', or name its folder by --images"
            raise UserError(f"{mask}: no image {stem} in {images}; {hint}")
        names = [*enumerate(palette.classes), (IGNORE, IGNORE_LABELS[0])]
        regions = [Region(name, partial(_class_of, read, mask, index)) for index, name in names]
        split = subsets.get(one_form(stem.as_posix()), UNSPLIT)
        annotations.images.append(AnnotatedImage(split, "_".join(stem.parts), image, None, regions, str(mask)))
    return annotations


def _labels(file: Path, palette: Palette) -> np.ndarray:
    return to_labels(read_image(file), palette)


def _class_of(read: Callable[[Path], np.ndarray], file: Path, index: int, height: int, width: int) -> np.ndarray:
    labels = read(file)
    if labels.shape != (height, width):
        raise UserError(size_message(str(file), labels.shape, (height, width)))
    return labels == index
