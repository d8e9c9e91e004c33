"""A data set without faults, drawn, and faults to plant in it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


SIZE = (64, 80)  # (height, width)
COUNTS = {"train": 44, "val": 5, "test": 6}
KEYS: dict[str, Any] = {"mask_size": 16, "processes": 0}  # a pixel of the mask is 5 x 5 pixels of these images


def draw(rng: np.random.Generator, size: tuple[int, int] = SIZE, classes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A smooth coloured scene with an ellipse per class: uint8 (H, W, 3) and uint8 (H, W), 0..classes."""
    height, width = size
    coarse = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    mask = np.zeros(size, np.uint8)
    rows, columns = np.mgrid[:height, :width]
    for label in range(1, classes + 1):
        y = rng.uniform(0.3, 0.7) * height
        x = (label - rng.uniform(0.4, 0.6)) / classes * width
        inside = ((rows - y) / (0.15 * height)) ** 2 + ((columns - x) / (0.25 * width / classes)) ** 2 <= 1
        mask[inside] = label
        scene[inside] += 60
    noisy = scene + rng.integers(-8, 9, (height, width, 3))
    return noisy.clip(0, 255).astype(np.uint8), mask


def write(root: Path, split: str, stem: str, image: np.ndarray, mask: np.ndarray) -> None:
    for kind, array in (("images", image), ("masks", mask)):
        folder = root / split / kind
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / f"{stem}.png")


def make_corpus(root: Path, seed: int, classes: int = 1) -> Path:
    rng = np.random.default_rng(seed)
    for split, count in COUNTS.items():
        for number in range(count):
            write(root, split, f"{split}_{number:02d}", *draw(rng, classes=classes))
    return root


@dataclass
class Fault:
    """A fault, the finding that it must give, and the keys that it needs.

    Attributes:
        plant: given the folder, a stem of the training images, and that of another one; returns what the finding's
            file must end with.
        code: of the only finding in an otherwise clean corpus.
        alone: cannot be planted beside others.
    """

    plant: Callable[[Path, str, str], str]
    code: str
    error: bool = True
    keys: dict[str, Any] = field(default_factory=dict)
    alone: bool = False
    classes: int = 1


FAULTS: dict[str, Fault] = {}


def fault(code: str, **more: Any) -> Callable:
    def register(plant: Callable[[Path, str, str], str]) -> Callable:
        FAULTS[plant.__name__] = Fault(plant, code, **more)
        return plant

    return register


def image_of(root: Path, stem: str) -> Path:
    return root / "train/images" / f"{stem}.png"


def mask_of(root: Path, stem: str) -> Path:
    return root / "train/masks" / f"{stem}.png"


def change(path: Path, function: Callable[[np.ndarray], np.ndarray]) -> str:
    Image.fromarray(function(np.array(Image.open(path)))).save(path)
    return path.name


@fault("missing-mask")
def no_mask(root, stem, other):
    mask_of(root, stem).unlink()
    return f"images/{stem}.png"


@fault("missing-image")
def no_image(root, stem, other):
    image_of(root, stem).unlink()
    return f"masks/{stem}.png"


@fault("same-stem")
def two_of_a_stem(root, stem, other):
    Image.open(image_of(root, stem)).save(image_of(root, stem).with_suffix(".bmp"))
    return ""


@fault("odd-file", error=False)
def text_among_images(root, stem, other):
    (root / "train/images" / f"{stem}.txt").write_text("0 0.5 0.5")
    return f"{stem}.txt"


@fault("odd-file", error=False)
def hidden_file(root, stem, other):
    (root / "train/masks/.DS_Store").write_bytes(b"x")
    return ".DS_Store"


@fault("odd-file", error=False)
def images_in_another_folder(root, stem, other):
    (root / "more").mkdir()
    (root / "more/extra.png").write_bytes(image_of(root, stem).read_bytes())
    return "more/extra.png"


@fault("unreadable")
def image_cut_short(root, stem, other):
    content = image_of(root, stem).read_bytes()
    image_of(root, stem).write_bytes(content[: len(content) // 2])
    return f"images/{stem}.png"


@fault("unreadable")
def jpeg_cut_short(root, stem, other):
    path = image_of(root, stem).with_suffix(".jpg")
    Image.open(image_of(root, stem)).save(path)
    image_of(root, stem).unlink()
    path.write_bytes(path.read_bytes()[:-300])
    return f"images/{stem}.jpg"


@fault("unreadable")
def empty_file(root, stem, other):
    image_of(root, stem).write_bytes(b"")
    return f"images/{stem}.png"


@fault("unreadable")
def mask_is_text(root, stem, other):
    mask_of(root, stem).write_text("not a mask")
    return f"masks/{stem}.png"


@fault("lossy-mask")
def jpeg_mask(root, stem, other):
    Image.open(mask_of(root, stem)).save(mask_of(root, stem).with_suffix(".jpg"))
    mask_of(root, stem).unlink()
    return f"masks/{stem}.jpg"


@fault("palette")
def coloured_mask(root, stem, other):
    return "masks/" + change(mask_of(root, stem), lambda mask: np.stack([mask * 200, mask * 30, mask], axis=2))


@fault("mask-values")
def another_value(root, stem, other):
    return "masks/" + change(mask_of(root, stem), lambda mask: mask * 7)


@fault("mixed-encoding")
def picture_among_indices(root, stem, other):
    return "masks/" + change(mask_of(root, stem), lambda mask: mask * 255)


@fault("size-mismatch")
def smaller_mask(root, stem, other):
    return "masks/" + change(mask_of(root, stem), lambda mask: mask[:-3, :-2])


@fault("size-mismatch")
def photograph_turned_by_exif(root, stem, other):
    path = image_of(root, stem).with_suffix(".jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image_of(root, stem)).save(path, exif=exif, quality=95)
    image_of(root, stem).unlink()
    return f"masks/{stem}.png"


@fault("orientation", error=False)
def upside_down_by_exif(root, stem, other):
    path = image_of(root, stem).with_suffix(".jpg")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(image_of(root, stem)).save(path, exif=exif, quality=95)
    image_of(root, stem).unlink()
    return f"images/{stem}.jpg"


@fault("empty-mask", error=False)
def empty_mask(root, stem, other):
    return "masks/" + change(mask_of(root, stem), lambda mask: mask * 0)


@fault("full-mask", error=False)
def full_mask(root, stem, other):
    return "masks/" + change(mask_of(root, stem), lambda mask: mask * 0 + 1)


@fault("ignored-mask", error=False, keys={"mask_values": "index"})
def ignored_mask(root, stem, other):
    return "masks/" + change(mask_of(root, stem), lambda mask: mask * 0 + 255)


@fault("inverted-mask", error=False)
def inverted_mask(root, stem, other):
    return "masks/" + change(mask_of(root, stem), lambda mask: 1 - mask)


@fault("tiny-object", error=False)
def speck(root, stem, other):
    def only_a_speck(mask):
        mask[:] = 0
        mask[10:13, 20:23] = 1
        return mask

    return "masks/" + change(mask_of(root, stem), only_a_speck)


@fault("flat-image", error=False)
def flat_image(root, stem, other):
    return "images/" + change(image_of(root, stem), lambda image: image * 0 + 90)


@fault("odd-size", error=False)
def thin_image(root, stem, other):
    change(image_of(root, stem), lambda image: image[20:26])
    change(mask_of(root, stem), lambda mask: mask[32:38])
    return f"images/{stem}.png"


@fault("alpha")
def transparent_image(root, stem, other):
    def with_alpha(image):
        alpha = np.full(image.shape[:2], 255, np.uint8)
        alpha[:, :30] = 0
        return np.dstack([image, alpha])

    return "images/" + change(image_of(root, stem), with_alpha)


@fault("alpha")
def mask_drawn_on_a_layer(root, stem, other):
    def drawn(mask):
        white = np.full((*mask.shape, 3), 255, np.uint8)
        return np.dstack([white, np.where(mask > 0, 255, 0).astype(np.uint8)])

    return "masks/" + change(mask_of(root, stem), drawn)


@fault("frames")
def image_of_several_pages(root, stem, other):
    path = image_of(root, stem)
    page = Image.open(path).convert("L")
    page.save(path.with_suffix(".tif"), save_all=True, append_images=[page, page])
    path.unlink()
    return f"images/{stem}.tif"


@fault("channels")
def four_bands(root, stem, other):
    import tifffile

    path = image_of(root, stem)
    image = np.array(Image.open(path))
    bands = np.dstack([image, image[..., :1]])
    tifffile.imwrite(path.with_suffix(".tif"), bands, photometric="rgb", extrasamples=["unspecified"])
    path.unlink()
    return f"images/{stem}.tif"


@fault("soft-edges", error=False, keys={"mask_values": "binary"})
def soft_edges_read_as_binary(root, stem, other):
    def smooth(mask):
        picture = Image.fromarray(np.where(mask > 0, 255, 0).astype(np.uint8))
        small = picture.resize((mask.shape[1] // 4, mask.shape[0] // 4), Image.Resampling.BOX)
        soft = np.array(small.resize(picture.size, Image.Resampling.BILINEAR))
        soft[mask.shape[0] // 2, mask.shape[1] // 2] = 255
        return soft

    return "masks/" + change(mask_of(root, stem), smooth)


@fault("duplicate", error=False)
def copy_in_train(root, stem, other):
    shutil.copy(image_of(root, stem), image_of(root, f"{other}_copy"))
    shutil.copy(mask_of(root, stem), mask_of(root, f"{other}_copy"))
    return f"images/{max(stem, f'{other}_copy')}.png"


@fault("contradiction", error=False)
def copy_with_another_mask(root, stem, other):
    shutil.copy(image_of(root, stem), image_of(root, f"{other}_twin"))
    mask = np.roll(np.array(Image.open(mask_of(root, stem))), 5, axis=1)
    Image.fromarray(mask).save(mask_of(root, f"{other}_twin"))
    return f"images/{max(stem, f'{other}_twin')}.png"


@fault("near-duplicate", error=False)
def saved_again(root, stem, other):
    image, mask = Image.open(image_of(root, stem)), Image.open(mask_of(root, stem))
    image.resize((120, 96)).save(root / "train/images" / f"{other}_again.jpg", quality=60)
    mask.resize((120, 96), Image.Resampling.NEAREST).save(mask_of(root, f"{other}_again"))
    return f"{other}_again.jpg" if f"{other}_again" > stem else f"images/{stem}.png"


@fault("leakage")
def copy_in_test(root, stem, other):
    for kind in ("images", "masks"):
        shutil.copy(root / "train" / kind / f"{stem}.png", root / "test" / kind / f"{stem}_copy.png")
    return f"test/images/{stem}_copy.png"


@fault("leakage", error=False)
def brighter_in_test(root, stem, other):
    image, mask = Image.open(image_of(root, stem)), Image.open(mask_of(root, stem))
    image.point(lambda value: value * 0.9 + 12).save(root / "test/images" / f"{stem}_bright.jpg", quality=70)
    mask.save(root / "test/masks" / f"{stem}_bright.png")
    return f"test/images/{stem}_bright.jpg"


@fault("leakage", keys={"group_by": "^([a-z]+_?[0-9]+)"})
def patient_in_both(root, stem, other):
    image, mask = draw(np.random.default_rng(77))
    write(root, "test", f"{stem}_second", image, mask)
    return f"test/images/{stem}_second.png"


@fault("group-by", keys={"group_by": "^train_([0-9]+)"}, alone=True)
def group_that_does_not_match(root, stem, other):
    return "ids of train and val and test"


@fault("split-shift", error=False, alone=True)
def dark_test_images(root, stem, other):
    for path in (root / "test/images").iterdir():
        change(path, lambda image: (image // 16).astype(np.uint8))
    return ""


@fault("normalization", error=False, alone=True)
def low_contrast(root, stem, other):
    for path in root.glob("*/images/*"):
        change(path, lambda image: (100 + image // 16).astype(np.uint8))
    return ""


@fault("bit-depth", error=False, alone=True)
def twelve_of_sixteen_bits(root, stem, other):
    for number, name in enumerate((stem, other)):
        grey = np.array(Image.open(image_of(root, name)).convert("L")).astype(np.uint16) * (16 if number else 257)
        Image.fromarray(grey).save(image_of(root, name))
    return f"images/{other}.png"


@fault("class-missing", classes=2, keys={"num_labels": 3}, alone=True)
def class_in_test_only(root, stem, other):
    for split in ("train", "val"):
        for path in (root / split / "masks").iterdir():
            change(path, lambda mask: np.where(mask == 2, 0, mask).astype(np.uint8))
    return ""


@fault("class-missing", classes=2, keys={"num_labels": 4}, error=False, alone=True)
def class_nowhere(root, stem, other):
    return ""


@fault("class-missing", classes=2, keys={"num_labels": 3}, error=False, alone=True)
def class_not_in_test(root, stem, other):
    for path in (root / "test/masks").iterdir():
        change(path, lambda mask: np.where(mask == 2, 0, mask).astype(np.uint8))
    return ""


@fault("class-share", classes=2, keys={"num_labels": 3}, error=False, alone=True)
def rare_class(root, stem, other):
    for path in root.glob("*/masks/*"):
        change(path, lambda mask: np.where(mask == 2, 0, mask).astype(np.uint8))

    def small(mask):
        mask[:6, :6] = 2
        return mask

    for path in (mask_of(root, stem), root / "val/masks/val_00.png", root / "test/masks/test_00.png"):
        change(path, small)
    return ""


COLOURS = {"background": [0, 0, 0], "road": [200, 30, 40], "water": [10, 20, 220]}


def paint(root: Path, leave: tuple[str, ...] = ()) -> None:
    """All masks in the colours of `COLOURS`, but those of the stems `leave`."""
    table = np.array(list(COLOURS.values()), np.uint8)
    for path in root.glob("*/masks/*"):
        if path.stem not in leave:
            change(path, lambda mask: table[mask])


@fault("palette", classes=2, keys={"palette": COLOURS}, error=False, alone=True)
def unknown_colour(root, stem, other):
    paint(root)

    def spot(mask):
        mask[:5, :5] = (9, 9, 9)
        return mask

    return "masks/" + change(mask_of(root, stem), spot)


@fault("mixed-encoding", classes=2, keys={"palette": COLOURS}, alone=True)
def index_among_colours(root, stem, other):
    paint(root, leave=(stem,))
    return f"masks/{stem}.png"


@fault("mask-values", alone=True)
def soft_edges(root, stem, other):
    for path in root.glob("*/masks/*"):
        change(path, lambda mask: mask * 255)
    smooth = Image.open(mask_of(root, stem)).resize((40, 32)).resize((80, 64), Image.Resampling.BILINEAR)
    smooth.save(mask_of(root, stem))
    return f"masks/{stem}.png"


def store_arrays(root: Path, channels: int = 4) -> None:
    """All images as `.npy` of four channels."""
    for path in root.glob("*/images/*.png"):
        image = np.array(Image.open(path)).astype(np.float32) / 255
        np.save(path.with_suffix(".npy"), np.dstack([image, image.mean(axis=2)])[..., :channels])
        path.unlink()


@fault("channels", keys={"channels": 4}, alone=True)
def another_number_of_channels(root, stem, other):
    store_arrays(root)
    path = root / "train/images" / f"{stem}.npy"
    np.save(path, np.load(path)[..., :3])
    return f"images/{stem}.npy"


@fault("not-finite", keys={"channels": 4}, alone=True)
def not_a_number(root, stem, other):
    store_arrays(root)
    path = root / "train/images" / f"{stem}.npy"
    values = np.load(path)
    values[3, 4, 1] = np.nan
    np.save(path, values)
    return f"images/{stem}.npy"


@fault("normalization", keys={"channels": 4, "normalization": "db"}, alone=True)
def negative_amplitude(root, stem, other):
    store_arrays(root)
    path = root / "train/images" / f"{stem}.npy"
    np.save(path, np.load(path) - 0.5)
    return f"images/{stem}.npy"


@fault("normalization", keys={"channels": 4}, error=False, alone=True)
def dead_channel(root, stem, other):
    store_arrays(root)
    for path in root.glob("*/images/*"):
        values = np.load(path)
        values[..., 3] = 0.25
        np.save(path, values)
    return ""


@fault("layout", alone=True)
def no_masks_folder(root, stem, other):
    shutil.rmtree(root / "val/masks")
    return ""


@fault("layout", alone=True)
def no_images(root, stem, other):
    for path in (root / "test/images").iterdir():
        path.unlink()
    return ""


@fault("few-images", error=False, alone=True)
def two_training_images(root, stem, other):
    for path in root.glob("train/*/*"):
        if path.stem not in (stem, other):
            path.unlink()
    return ""


@fault("label-map", error=False, keys={"label_map": {7: 0}}, alone=True)
def map_of_another_data_set(root, stem, other):
    return ""


@fault("split-shift", error=False, alone=True)
def smaller_objects_in_test(root, stem, other):
    def shrink(mask):
        half = np.array(Image.fromarray(mask).resize((mask.shape[1] // 2, mask.shape[0] // 2)))
        small = np.zeros_like(mask)
        small[: half.shape[0], : half.shape[1]] = half
        return small

    for path in (root / "test/masks").iterdir():
        change(path, shrink)
    return ""


def annotate(root: Path, extra: tuple[dict, ...] = (), **content: Any) -> None:
    """COCO files in place of the masks, a rectangle around each object; `extra` in the file of the training images."""
    for split in COUNTS:
        images, annotations = [], list(extra) if split == "train" else []
        for number, path in enumerate(sorted((root / split / "masks").iterdir())):
            rows, columns = np.nonzero(np.array(Image.open(path)))
            left, top, right, bottom = map(int, (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            images.append({"id": number, "file_name": path.name, "height": SIZE[0], "width": SIZE[1]})
            corners = [left, top, right, top, right, bottom, left, bottom]
            annotations.append({"image_id": number, "category_id": 1, "segmentation": [corners]})
        shutil.rmtree(root / split / "masks")
        categories = [{"id": 1, "name": "thing"}]
        whole = {"images": images, "annotations": annotations, "categories": categories} | content
        text = json.dumps(whole, ensure_ascii=False)
        (root / split / "annotations.json").write_bytes(text.encode("gbk"))


@fault("annotations", error=False, alone=True)
def box_without_an_area(root, stem, other):
    annotate(root, ({"image_id": 3, "category_id": 1, "bbox": [1, 2, 30, 20]},))
    return ""
