"""A folder with all leftovers and encodings: `doctor`, `train` and `convert` take it, or say why not in a line."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import tifffile
from corpus import draw
from PIL import Image

from hf_sam_adapt.cli import main
from hf_sam_adapt.data import load_segmentation_dataset


LEFTOVERS = (
    "._a.jpg",
    ".DS_Store",
    "Thumbs.db",
    "desktop.ini",
    "__MACOSX/._a.jpg",
    "__MACOSX/a.jpg",
    ".ipynb_checkpoints/a-checkpoint.png",
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg",
)
SIZE = (64, 80)


def wide(image: np.ndarray) -> np.ndarray:
    return image.astype(np.uint16) * 257


def save_turned(path: Path, image: np.ndarray) -> None:
    """Stored on its side, as a camera does; upright it is `image`."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(image)).save(path, exif=exif, quality=95)


def grey(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(image).convert("L"))


def opaque(image: np.ndarray) -> np.ndarray:
    return np.dstack([image, np.full(SIZE, 255, np.uint8)])


def save(path: Path, array: np.ndarray, **keys) -> None:
    Image.fromarray(array).save(path, **keys)


# Name without extension, in NFC -> (extension, how the image is written).
IMAGES = {
    "grey": (".png", lambda path, image: save(path, grey(image))),
    "deep": (".png", lambda path, image: save(path, wide(grey(image)))),
    "rgba": (".png", lambda path, image: save(path, opaque(image))),
    "la": (".png", lambda path, image: save(path, opaque(grey(image)))),
    "palette": (".png", lambda path, image: Image.fromarray(image).quantize(64).save(path)),
    "turned": (".jpg", save_turned),
    "CAPITALS": (".JPG", lambda path, image: Image.fromarray(image).save(path, "JPEG", quality=95)),
    "tiff": (".tif", lambda path, image: save(path, image)),
    "deep_tiff": (".tiff", lambda path, image: tifffile.imwrite(path, wide(image), photometric="rgb")),
    "bitmap": (".bmp", lambda path, image: save(path, image)),
    "web": (".webp", lambda path, image: save(path, image, lossless=True)),
    "more/Übergröße_é": (".png", lambda path, image: save(path, image)),
    "more/deeper/with space": (".png", lambda path, image: save(path, image)),
}


def save_palette(path: Path, mask: np.ndarray) -> None:
    picture = Image.fromarray(mask)
    picture.putpalette([0, 0, 0, 200, 30, 40])
    picture.save(path)


# Cycled over the masks; all hold 0 and the one value that means foreground.
MASKS = {
    1: (
        lambda path, mask: save(path, mask),
        save_palette,
        lambda path, mask: Image.fromarray(mask > 0).save(path),
        lambda path, mask: save(path, np.dstack([mask] * 3)),
        lambda path, mask: save(path, opaque(mask)),
        lambda path, mask: save(path, mask.astype(np.uint16)),
    ),
    255: (
        lambda path, mask: save(path, mask * 255),
        lambda path, mask: save(path, np.dstack([mask * 255] * 3)),
        lambda path, mask: save(path, opaque(mask * 255)),
        lambda path, mask: save(path, mask.astype(np.uint16) * 255),
    ),
}


def litter(root: Path) -> None:
    for name in LEFTOVERS:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x00\x05\x16\x07 not an image")


def place(folder: Path, name: str, extension: str, form: str = "NFC") -> Path:
    path = folder / unicodedata.normalize(form, f"{name}{extension}")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture
def sound(tmp_path):
    """Returns `make(value)`: a folder in order, whatever it looks like, with masks of 0 and `value`."""

    def make(value: int) -> Path:
        root, rng = tmp_path / "data", np.random.default_rng(3)
        for number, (name, (extension, write)) in enumerate(IMAGES.items()):
            image, mask = draw(rng, SIZE)
            part = root / ("test" if number < 2 else "val" if number < 4 else "train")
            write(place(part / "images", name, extension, "NFD"), image)
            MASKS[value][number % len(MASKS[value])](place(part / "masks", name, ".png"), mask)
        for folder in (root, *root.glob("*/images"), *root.glob("*/masks"), root / "train/images/more"):
            litter(folder)
        return root

    return make


def save_pages(path: Path, image: np.ndarray) -> None:
    page = Image.fromarray(image)
    page.save(path, save_all=True, append_images=[page, page])


def save_cut_short(path: Path, image: np.ndarray) -> None:
    save(path, image)
    path.write_bytes(path.read_bytes()[:-900])


def save_bands(path: Path, image: np.ndarray) -> None:
    five = np.dstack([image, image[..., :2]])
    tifffile.imwrite(path, five, photometric="rgb", extrasamples=["unspecified"] * 2)


def half_transparent(image: np.ndarray) -> np.ndarray:
    return np.dstack([image, np.where(np.arange(SIZE[1]) < 30, 0, 255) * np.ones(SIZE)]).astype(np.uint8)


# Name -> (code, extension and writer of the image, extension and writer of the mask; None = as it should be).
FAULTS = {
    "pages": ("frames", (".tif", save_pages), None),
    "cut": ("unreadable", (".png", save_cut_short), None),
    "layer": ("alpha", (".png", lambda path, image: save(path, half_transparent(image))), None),
    "grey_layer": ("alpha", (".png", lambda path, image: save(path, half_transparent(grey(image)))), None),
    "float": ("bit-depth", (".tif", lambda path, image: tifffile.imwrite(path, grey(image) / np.float32(7))), None),
    "bands": ("channels", (".tif", lambda path, image: save_bands(path, image)), None),
    "jpeg": ("lossy-mask", None, (".jpg", lambda path, mask: save(path, mask))),
    "picture": ("mixed-encoding", None, (".png", lambda path, mask: save(path, mask * 255))),
    "smaller": ("size-mismatch", None, (".png", lambda path, mask: save(path, mask[:-3]))),
    "drawn": ("alpha", None, (".png", lambda path, mask: save(path, half_transparent(mask)))),
    "coloured": ("palette", None, (".png", lambda path, mask: save(path, np.dstack([mask * 200, mask, mask * 3])))),
    "seven": ("mask-values", None, (".png", lambda path, mask: save(path, mask * 7))),
    "eight": ("mask-values", None, (".png", lambda path, mask: save(path, mask * 8))),
}


def add_faults(root: Path, names: tuple[str, ...] = tuple(FAULTS)) -> None:
    rng = np.random.default_rng(4)
    for name in names:
        _, image_file, mask_file = FAULTS[name]
        image, mask = draw(rng, SIZE)
        extension, write = image_file or (".png", save)
        write(place(root / "train/images", name, extension), image)
        extension, write = mask_file or (".png", save)
        write(place(root / "train/masks", name, extension), mask)


def run(argv: list[str], capsys) -> tuple[int, list[str], list[str]]:
    """Exit status, and the lines of both outputs."""
    status = main(argv)
    shown = capsys.readouterr()
    return status, shown.out.splitlines(), [line for line in shown.err.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize("value", MASKS)
def test_doctor_names_leftovers_alone(sound, value, capsys, tmp_path):
    root = sound(value)
    status, lines, errors = run(["doctor", str(root), "--json", str(tmp_path / "report.json")], capsys)
    assert status == 0 and errors == [] and not any(line.startswith("error") for line in lines)
    left = [line for line in lines if line.startswith("warning  odd-file")]
    assert len(left) == 1 and " more: left there by a system or a tool" in left[0]
    data = load_segmentation_dataset(root)
    assert sum(len(split) for split in (data.train, data.val, data.test)) == len(IMAGES)
    report = json.loads((tmp_path / "report.json").read_text())
    assert sum(split["usable"] for split in report["splits"].values()) == len(IMAGES)
    shares = [split["class_share"][1] for split in report["splits"].values()]
    assert all(0.05 < share < 0.3 for share in shares)  # an ellipse of 12 %


@pytest.mark.parametrize("value", MASKS)
def test_train_takes_every_encoding(sound, value, capsys, tmp_path):
    argv = ["train", "--dataset", str(sound(value)), "--max_steps", "1", "--output_dir", str(tmp_path / "run")]
    argv += ["--model", "tiny", "--method", "decoder", "--image_size", "64", "--num_workers", "0", "--batch_size", "1"]
    status, _, errors = run(argv, capsys)
    assert status == 0 and errors == []
    assert json.loads((tmp_path / "run/metrics.json").read_text())["measured_on"] == "test"


def test_doctor_says_each_cause_in_a_line(sound, capsys):
    root = sound(1)
    add_faults(root)
    status, lines, errors = run(["doctor", str(root)], capsys)
    said = [line for line in lines if line.startswith("error")]
    assert status == 1 and errors == []
    assert {line.split()[1] for line in said} == {code for code, _, _ in FAULTS.values()}
    assert len({line.partition(": ")[2] for line in said}) == len(said)  # no two are alike
    values = [line for line in said if line.split()[1] == "mask-values"]
    assert len(values) == 1 and "eight.png and 1 more: mask value 8" in values[0]
    status, lines, _ = run(["doctor", str(root), "--limit", "0"], capsys)
    for name, (code, _, _) in FAULTS.items():
        assert any(line.split()[1] == code and f"/{name}." in line.partition(": ")[0] for line in lines), name


@pytest.mark.parametrize("name", FAULTS)
def test_train_ends_with_a_line(sound, name, capsys, tmp_path):
    root = sound(1)
    add_faults(root, (name,))
    argv = ["train", "--dataset", str(root), "--model", "tiny", "--max_steps", "1", "--num_workers", "0"]
    status, _, errors = run([*argv, "--output_dir", str(tmp_path / "run")], capsys)
    assert status == 2 and len(errors) == 1 and f"{name}." in errors[0] and "; " in errors[0]
    assert not (tmp_path / "run").exists()


def coco(root: Path) -> Path:
    """The images of `root` with a box each, annotated where no size is written; names in the other form."""
    left = {Path(name).name for name in LEFTOVERS}
    images = sorted(path for path in root.glob("*/images/**/*") if path.is_file() and path.name not in left)
    box = [[20, 20, 60, 20, 60, 50, 20, 50]]
    names = [unicodedata.normalize("NFC", path.relative_to(root).as_posix()) for path in images]
    content = {
        "images": [{"id": str(i), "file_name": name, "height": None, "width": None} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "category_id": 5, "segmentation": box} for i in range(len(names))],
        "categories": [{"id": 5, "name": "thing"}],
    }
    (root / "annotations.json").write_text(json.dumps(content))
    return root


def test_convert_takes_every_encoding(sound, capsys, tmp_path):
    root = sound(1)
    status, lines, errors = run(["convert", "--from", "coco", str(coco(root)), "--out", str(tmp_path / "out")], capsys)
    assert status == 0 and errors == []
    masks = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "out/masks").rglob("*.png")}
    assert len(masks) == len(IMAGES)
    for mask in masks.values():
        assert mask.shape == SIZE and (mask[20:50, 20:60] > 0).all() and np.count_nonzero(mask) == 30 * 40
    status, lines, errors = run(
        ["doctor", str(tmp_path / "out"), "--config", str(tmp_path / "out/recipe.yaml")], capsys
    )
    assert status == 0 and not any("odd-file" in line for line in lines)


@pytest.mark.parametrize("name", ["pages", "cut"])
def test_convert_ends_with_a_line(sound, name, capsys, tmp_path):
    root = sound(1)
    add_faults(root, (name,))
    status, _, errors = run(["convert", "--from", "coco", str(coco(root)), "--out", str(tmp_path / "out")], capsys)
    assert status == 2 and len(errors) == 1 and f"{name}." in errors[0]
    assert not (tmp_path / "out").exists()
