"""Annotated images become a folder of images and masks, with the recipe keys that say how to read it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageOps
from tqdm import tqdm

from ...data.annotations import BACKGROUND_LABELS, IGNORE_LABELS, ONLY_CLASS
from ...data.areas import NO_PIXEL, Misplaced, check_turn, misplacement
from ...data.folder import IMAGE_SUFFIXES
from ...data.images import IGNORE, has_alpha, header_of, is_cut_short, read_image
from ...data.stored import EXIF_ORIENTATION, open_stored
from ...errors import UserError
from ...reporting.class_maps import class_colours
from .regions import UNSPLIT, AnnotatedImage, Annotations, Region


RECIPE = "recipe.yaml"


def write_folder(annotations: Annotations, folder: Path, classes: Sequence[str] | None = None) -> list[str]:
    """Write images and masks; a mask is a PNG of class indices with colours to look at, 255 = ignore.

    Images are copied as they are; one that EXIF turns is stored upright, as PNG.

    Args:
        annotations: what was read.
        folder: exists and is empty.
        classes: names of the classes 1, 2, … in this order; regions of others are left out. None = the source's.

    Returns:
        The names of the classes, without the background.

    Raises:
        UserError: nothing annotated, most areas draw nothing, two images of one name, an image that is annotated
            twice, unreadable or of another size.
    """
    names, values = _values(annotations, classes)
    # A set without a training split would not be found, so what has no split is for training.
    flat = {image.split for image in annotations.images} == {UNSPLIT}
    written: set[Path] = set()
    sources: dict[Path, str] = {}
    misplaced = Misplaced()
    foreground = False
    for image in tqdm(annotations.images, unit="image", disable=not sys.stderr.isatty()):
        place = folder if flat else folder / (image.split if image.split != UNSPLIT else "train")
        for part in ("images", "masks"):
            (place / part).mkdir(parents=True, exist_ok=True)
        mask_file = place / "masks" / f"{image.stem}.png"
        if mask_file in written:
            raise UserError(f"another image is called {image.stem}, too", where=image.name, fix="rename one of them")
        written.add(mask_file)
        if isinstance(image.image, Path):
            other = sources.setdefault(image.image.resolve(), image.name)
            if other is not image.name:
                raise UserError(
                    f"its image {image.image.name} is that of {Path(other).name}, too",
                    where=image.name,
                    fix="keep one of them",
                )
        mask = _draw(image, _store_image(image, place / "images"), values, annotations, misplaced)
        foreground = foreground or bool(((mask > 0) & (mask < IGNORE)).any())
        _save_mask(mask, mask_file, len(names) + 1)
    annotations.notes.update(misplaced.notes())
    if not foreground:
        raise UserError(f"no mask holds a pixel of {' or '.join(names)}", fix="check the annotations")
    return names


def _values(annotations: Annotations, classes: Sequence[str] | None) -> tuple[list[str], dict[str | None, int]]:
    """The names of the classes, and the value in the masks of every label that is drawn."""
    special = (*BACKGROUND_LABELS, *IGNORE_LABELS)
    labels = Counter(region.label for image in annotations.images for region in image.regions)
    occurring = {label for label in labels if label is not None} - set(special)
    values: dict[str | None, int] = {}
    if labels[None] and not occurring and len(classes or annotations.classes or [ONLY_CLASS]) == 1:
        names = list(classes or annotations.classes or [ONLY_CLASS])
        annotations.notes[f"area without a label, as all are, taken as {names[0]}"] += labels[None]
        values[None] = 1
    else:
        names = [name for name in classes or annotations.classes or sorted(occurring) if name not in special]
        if not occurring & set(names):
            hint = f", only {', '.join(sorted(occurring))}" if occurring else ""
            left_out = "".join(f"; left out: {count} x {what}" for what, count in sorted(annotations.left_out.items()))
            what = " or ".join(names) or "a class"
            raise UserError(f"nothing is annotated with {what}{hint}", fix=f"check the annotations{left_out}")
        if labels[None]:
            annotations.notes["area without a label, ignored (255)"] += labels[None]
            values[None] = IGNORE
    if len(names) > 254:
        raise UserError(f"{len(names)} classes, a mask of 8 bits holds 254", fix="choose some by --classes")
    values.update({name: value for value, name in enumerate(names, start=1)})
    values.update(dict.fromkeys(BACKGROUND_LABELS, 0) | dict.fromkeys(IGNORE_LABELS, IGNORE))
    return names, values


def _draw(
    image: AnnotatedImage,
    size: tuple[int, int],
    values: dict[str | None, int],
    annotations: Annotations,
    misplaced: Misplaced,
) -> np.ndarray:
    """The mask of an image, uint8 (height, width); counts the areas that leave no trace in it."""
    mask, top = np.zeros(size, np.uint8), np.zeros(size, np.int32)  # top: the number of the area that is seen
    chosen = [region for region in image.regions if region.label in values]
    for region in image.regions:
        if region.label not in values:
            annotations.left_out[f"area of a class that is not chosen, such as {region.label}"] += 1
    faults = []
    for number, region in enumerate(chosen, start=1):
        drawn = region.shape.draw(*size)
        faults.append(_fault(region, drawn))
        misplaced.add(faults[-1], image.name)
        mask[drawn], top[drawn] = values[region.label], number
    for number in set(range(1, len(chosen) + 1)) - set(np.unique(top).tolist()):
        region = chosen[number - 1]
        drawn = region.shape.draw(*size)
        if faults[number - 1] is None and drawn.any() and not (mask[drawn] == values[region.label]).any():
            annotations.notes["area that later ones of other classes cover as a whole"] += 1
    return mask


def _fault(region: Region, drawn: np.ndarray) -> str | None:
    """What is wrong with where a region lies, None if nothing is."""
    bounds = region.shape.bounds(*drawn.shape)
    if bounds is None:
        return None
    return misplacement(bounds, *drawn.shape) or (None if drawn.any() else NO_PIXEL)


def write_recipe(folder: Path, dataset: str, classes: Sequence[str], group_by: str | None = None) -> None:
    """The recipe keys that say how `dataset` is read, for `--config`."""
    keys: dict[str, Any] = {"dataset": dataset, "mask_values": "index"}
    if group_by is not None:
        keys["group_by"] = group_by
    if len(classes) > 1:
        keys["num_labels"] = len(classes) + 1
    keys["id2label"] = {0: "background", **dict(enumerate(classes, start=1))}
    (folder / RECIPE).write_text(yaml.safe_dump(keys, sort_keys=False, allow_unicode=True), encoding="utf-8")


def describe(annotations: Annotations, classes: Sequence[str]) -> list[str]:
    """Lines that say what was taken, and what was not."""
    counts = Counter(image.split for image in annotations.images)
    splits = "" if set(counts) == {UNSPLIT} else f" ({', '.join(f'{count} {name}' for name, count in counts.items())})"
    named = ", ".join(f"{value} {name}" for value, name in enumerate(classes, start=1))
    lines = [f"{len(annotations.images)} images{splits}; classes: 0 background, {named}"]
    lines += [f"{count} x {what}" for what, count in sorted(annotations.notes.items())]
    return lines + [f"left out: {count} x {what}" for what, count in sorted(annotations.left_out.items())]


def _store_image(image: AnnotatedImage, folder: Path) -> tuple[int, int]:
    """Writes the image as it was annotated; its (height, width).

    Annotation tools show a photograph as its EXIF orientation says; one that did not is told by the size.
    """
    content = image.image.read_bytes() if isinstance(image.image, Path) else image.image()
    shown = str(image.image) if isinstance(image.image, Path) else f"{image.name}, imageData"
    with open_stored(BytesIO(content), shown) as opened:
        if is_cut_short(opened):
            read_image(BytesIO(content), shown)
        header = header_of(opened)
        stored = upright = header.height, header.width
        turned = False
        if isinstance(opened, Image.Image):
            turned, stored = opened.getexif().get(EXIF_ORIENTATION, 1) != 1, (opened.height, opened.width)
        size = next((size for size in (upright, stored) if image.size in (None, size)), None)
        if size is None:
            height, width = image.size or (0, 0)
            raise UserError(
                f"made for an image of {width}x{height}, {Path(shown).name} has {upright[1]}x{upright[0]}",
                where=image.name,
                fix="put the annotated image there",
            )
        if upright != stored:
            check_turn([region.shape.bounds(*size) for region in image.regions], size, image.name, shown)
        suffix = (image.image.suffix if isinstance(image.image, Path) else f".{opened.format}").lower()
        if not isinstance(opened, Image.Image) or (not turned and suffix in IMAGE_SUFFIXES):
            (folder / f"{image.stem}{suffix}").write_bytes(content)
            return size
        pixels = ImageOps.exif_transpose(opened) if size == upright else opened
        if pixels.mode in ("I", "F"):
            raise UserError(
                "turned by its EXIF orientation, and its values fit no PNG", where=shown, fix="store it upright"
            )
        # A copy without metadata: the orientation must not turn it again.
        kept = pixels.mode in ("1", "L", "LA", "RGB", "RGBA", "I;16")
        mode = pixels.mode if kept else "RGBA" if has_alpha(pixels) else "RGB"
        Image.fromarray(np.asarray(pixels.convert(mode))).save(folder / f"{image.stem}.png")
    return size


def _save_mask(mask: np.ndarray, file: Path, num_labels: int) -> None:
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette(class_colours(num_labels).ravel().tolist())
    picture.save(file)
