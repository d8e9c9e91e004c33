"""A cause is a line; what was dropped is a finding; nothing is said of masks that were refused."""

import json

import numpy as np
import pytest
import tifffile
from corpus import annotate, change, make_corpus
from PIL import Image

from hf_sam_adapt.cli import main
from hf_sam_adapt.doctor import Finding
from hf_sam_adapt.doctor.findings import ERROR, WARNING, Findings


def doctor(capsys, *argv: object) -> tuple[int, list[str]]:
    status = main(["doctor", *map(str, argv), "--processes", "0"])
    return status, capsys.readouterr().out.splitlines()


def as_jpeg(path):
    Image.open(path).save(path.with_suffix(".jpg"))
    path.unlink()


def as_float(path):
    mask = np.array(Image.open(path)).astype(np.float32)
    tifffile.imwrite(path.with_suffix(".tif"), mask * np.float32(0.3 + 0.01 * int(path.stem[-2:])))
    path.unlink()


REFUSED = {
    "lossy-mask": as_jpeg,
    "size-mismatch": lambda path: change(path, lambda mask: mask[int(path.stem[-2:]) % 7 + 1 :]),
    "palette": lambda path: change(path, lambda mask: np.dstack([mask * 200, mask * 3, mask])),
    "mask-values": lambda path: change(path, lambda mask: mask * np.uint8(int(path.stem[-2:]) + 2)),
    "unreadable": lambda path: path.write_bytes(path.read_bytes()[:40]),
    "alpha": lambda path: change(path, lambda mask: np.dstack([mask, mask, mask, mask * 255])),
}


@pytest.mark.parametrize("code", REFUSED)
def test_nothing_is_summed_up_from_refused_masks(tmp_path, capsys, code):
    root = make_corpus(tmp_path / "data", 5)
    for path in sorted(root.glob("*/masks/*")):
        REFUSED[code](path)
    status, lines = doctor(capsys, root)
    said = [line for line in lines if line.startswith(("error", "warning"))]
    assert status == 1 and len(said) == 1 and said[0].split()[1] == code and " and 54 more: " in said[0], lines
    assert [line.rpartition("; ")[2] for line in lines[1:4]] == ["no mask can be used"] * 3


def test_fractions_of_many_values_are_one_cause(tmp_path, capsys):
    root = make_corpus(tmp_path / "data", 5)
    for path in sorted(root.glob("*/masks/*")):
        as_float(path)
    _, lines = doctor(capsys, root, "--mask_values", "index")
    assert [line.split()[:2] for line in lines if line[:5] in ("error", "warni")] == [["error", "mask-values"]]


def test_the_usable_ones_are_counted(tmp_path, capsys):
    root = make_corpus(tmp_path / "data", 5)
    for number in range(40):
        change(root / f"train/masks/train_{number:02d}.png", lambda mask: mask * 7)
    _, lines = doctor(capsys, root)
    train = next(line for line in lines if line.startswith("train: "))
    assert train.startswith("train: 44 images, 4 usable, of 80x64 pixels; foreground 1")


def test_lines_of_causes():
    findings = Findings(limit=3)
    for number in range(9):
        findings.add([Finding(WARNING, "odd-file", f"b{number}", "left there", "remove it")])
        findings.add([Finding(WARNING, "odd-file", f"a{number}", "of type .txt", "convert it")])
    findings.add([Finding(ERROR, "unreadable", "c", "cut short", "replace it")])
    assert findings.lines() == [
        "error    unreadable      c: cut short; replace it",
        "warning  odd-file        a0 and 8 more: of type .txt; convert it",
        "warning  odd-file        b0 and 8 more: left there; remove it",
    ]
    assert [line.split()[2:5] for line in findings.lines(2)[1:3]] == [["a0:", "of", "type"], ["a1", "and", "7"]]
    assert len(findings.lines(0)) == 7 and findings.counts[WARNING, "odd-file"] == 18


AREA = [[20, 20, 40, 20, 40, 40, 20, 40]]
DROPPED = {
    "box only": ("object with a box only", {"image_id": 3, "category_id": 1, "bbox": [1, 2, 30, 20]}, {}),
    "no image": ("names no image", {"image_id": 999, "category_id": 1, "segmentation": AREA}, {}),
    "outside": (
        "mostly outside",
        {"image_id": 3, "category_id": 1, "segmentation": [[v + 500 for v in AREA[0]]]},
        {},
    ),
    "no pixel": ("too small", {"image_id": 3, "category_id": 1, "segmentation": [[5, 5, 5, 5, 5, 5]]}, {}),
    "no category": ("without a category", {"image_id": 3, "category_id": None, "segmentation": AREA}, {}),
    "one name twice": (
        "taken as one class",
        {"image_id": 3, "category_id": 2, "segmentation": AREA},
        {"categories": [{"id": 1, "name": "thing"}, {"id": 2, "name": "thing"}]},
    ),
    "gbk": (
        "read as gbk",
        {"image_id": 3, "category_id": 1, "segmentation": AREA},
        {"categories": [{"id": 1, "name": "\u7ec6\u80de"}]},
    ),
}


@pytest.mark.parametrize("name", DROPPED)
def test_what_a_reader_drops_is_found(tmp_path, capsys, name):
    words, extra, content = DROPPED[name]
    root = make_corpus(tmp_path / "data", 5)
    annotate(root, (extra,), **content)
    status, lines = doctor(capsys, root)
    assert status == 0 and "nothing found" not in lines[-1]
    said = [line for line in lines if line.startswith("warning  annotations")]
    assert any(words in line for line in said), lines


def test_images_that_no_annotation_lists_are_found(tmp_path, capsys):
    root = make_corpus(tmp_path / "data", 5)
    for number in range(3):
        (root / f"train/masks/train_{number:02d}.png").unlink()
    annotate(root)
    _, lines = doctor(capsys, root)
    assert lines[0].startswith("warning  annotations ") and "3 images that no annotation file lists" in lines[0]
    assert "train_00.png" in lines[0] and sum(line.startswith("warning") for line in lines) == 1


@pytest.mark.parametrize(
    ("argv", "side", "lost"),
    [
        ([], 64, True),
        (["--model", "tiny"], 64, True),
        (["--model", "facebook/sam-vit-base"], 256, False),
        (["--model", "{folder}"], 128, False),
        (["--model", "facebook/sam-vit-base", "--image_size", "256"], 64, True),
        (["--image_size", "1024"], 256, False),
    ],
)
def test_small_objects_at_the_size_of_the_model(tmp_path, capsys, argv, side, lost):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(12):
        mask = np.zeros((400, 400), np.uint8)
        mask[60:65, 90:95] = mask[160:165, 290:295] = 1  # 25 pixels; a pixel of the mask of 64 is 39
        noise = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((400, 400)).save(tmp_path / "data/images" / f"{number}.png")
        Image.fromarray(mask).save(tmp_path / "data/masks" / f"{number}.png")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/config.json").write_text(json.dumps({"vision_config": {"image_size": 512}}))
    argv = [token.format(folder=tmp_path / "folder") for token in argv]
    _, lines = doctor(capsys, tmp_path / "data", *argv)
    found = [line for line in lines if "tiny-object" in line]
    assert bool(found) is lost and all(f"{side}x{side}" in line for line in found)
