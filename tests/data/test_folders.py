"""Which files of a folder are taken: sub-folders, Unicode forms of names, leftovers of systems and tools."""

import os
import re
import shutil
import unicodedata

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hf_sam_adapt.cli.predict import PredictArguments, output_names, predict_command
from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.convert.annotations.push import reading_of, write_parquet
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.annotations import find_image
from hf_sam_adapt.data.inputs import find_images
from hf_sam_adapt.data.notes import public
from hf_sam_adapt.data.volumes.folder import volumes_in
from hf_sam_adapt.data.walk import files_below, is_leftover
from hf_sam_adapt.demo.training_images import read_pairs
from hf_sam_adapt.doctor import examine_dataset
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.upload import pushed_files


LEFTOVERS = (
    "._000.png",
    ".DS_Store",
    ".hidden.png",
    "Thumbs.db",
    "desktop.ini",
    "__MACOSX/._000.png",
    "__MACOSX/000.png",
    ".ipynb_checkpoints/000-checkpoint.png",
    "@eaDir/000.png/SYNOPHOTO_THUMB_XL.png",
    "$RECYCLE.BIN/old.png",
    ".Trashes/old.png",
)
ACCENTED = "Übergröße_é"


def write_pair(root, name: str, form: str = "NFC", mask_form: str = "NFC", value: int = 1) -> None:
    mask = np.zeros((12, 16), np.uint8)
    mask[2:6, 3:9] = value
    for kind, array, used in (("images", np.full((12, 16, 3), 90, np.uint8), form), ("masks", mask, mask_form)):
        path = root / kind / f"{unicodedata.normalize(used, name)}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)


def ids_of(data) -> list[str]:
    return sorted(name for split in (data.train, data.val, data.test) if split is not None for name in split.ids)


def litter(folder) -> None:
    """All leftovers, with content that no image reader takes."""
    for name in LEFTOVERS:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"\x00\x05\x16\x07 not an image")


@pytest.mark.parametrize("name", [*LEFTOVERS, "~$table.png", "lost+found/x.png", "ehthumbs.db"])
def test_a_leftover_is_known_by_its_name_or_its_folder(name):
    assert any(is_leftover(part) for part in name.split("/"))


@pytest.mark.parametrize(
    "name", ["a.png", "a-checkpoint.png", "Copy of a.png", "@a.png", "#1.png", "__a.png", "~a.png"]
)
def test_names_that_people_choose_are_data(name):
    assert not is_leftover(name)


def clean_or_littered(tmp_path, make):
    """The same folder twice, the second with all leftovers at every level."""
    folders = []
    for kind in ("clean", "littered"):
        folders.append(tmp_path / kind)
        make(folders[-1])
        if kind == "littered":
            for folder in [folders[-1], *[path for path in folders[-1].rglob("*") if path.is_dir()]]:
                litter(folder)
    return folders


def pairs(root) -> None:
    for index in range(6):
        write_pair(root, f"{index:03d}")


def taken_by_train(root):
    data = load_segmentation_dataset(root)
    return ids_of(data), data.notes


def taken_by_predict(root):
    globbed = find_images([str(root / "**" / "*.png")]), find_images([str(root / "images" / "*")])
    return [[path.relative_to(root) for path in found] for found in (find_images([str(root / "images")]), *globbed)]


def taken_by_doctor(root):
    """Which names the leftovers, beside what it finds in the data."""
    diagnosis = examine_dataset(root, processes=0)
    found = [finding for finding in diagnosis.findings.ordered() if finding.code != "odd-file"]
    return [finding.code for finding in found], {split: facts.images for split, facts in diagnosis.facts.items()}


def taken_by_push(root, scratch):
    counts = write_parquet(root, scratch, reading_of(root))
    return counts, sorted(path.name for path in scratch.rglob("*") if path.is_file())


@pytest.mark.parametrize("taken", [taken_by_train, taken_by_predict, taken_by_doctor, taken_by_push])
def test_leftovers_change_nothing(taken, tmp_path):
    clean, littered = clean_or_littered(tmp_path, pairs)
    more = [[tmp_path / f"scratch{i}"] if taken is taken_by_push else [] for i in range(2)]
    for folder in more[0] + more[1]:
        folder.mkdir()
    assert taken(clean, *more[0]) == taken(littered, *more[1])


def labelme(root) -> None:
    for index in range(3):
        write_pair(root, f"{index:03d}")
        shape = '{"label": "a", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"}'
        content = f'{{"shapes": [{shape}], "imagePath": "{index:03d}.png", "imageHeight": 12, "imageWidth": 16}}'
        (root / "images" / f"{index:03d}.json").write_text(content)
    for path in (root / "masks").iterdir():
        path.unlink()


def yolo(root) -> None:
    pairs(root)
    (root / "labels").mkdir()
    for index in range(6):
        (root / "labels" / f"{index:03d}.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9")
    (root / "data.yaml").write_text("train: images\nnames: [a]\n")


def cvat(root) -> None:
    for index in range(3):
        write_pair(root, f"{index:03d}")
    (root / "masks").rename(root / "SegmentationClass")
    (root / "images").rename(root / "JPEGImages")
    (root / "labelmap.txt").write_text("background:0,0,0::\na:1,1,1::\n")


@pytest.mark.parametrize("form, make", [("labelme", labelme), ("yolo", yolo), ("cvat", cvat)])
def test_leftovers_are_not_converted(form, make, tmp_path):
    clean, littered = clean_or_littered(tmp_path, make)
    (littered / "._000.json").write_bytes(b"\x00\x05\x16\x07")
    (littered / "images").mkdir(exist_ok=True)
    (littered / "images" / "._000.json").write_bytes(b"\x00\x05\x16\x07")
    notes = [convert_annotations(form, source, tmp_path / f"{source.name}_out") for source in (clean, littered)]
    assert notes[0] == notes[1]
    assert ids_of(load_segmentation_dataset(tmp_path / "clean_out")) == ids_of(
        load_segmentation_dataset(tmp_path / "littered_out")
    )


def test_leftovers_are_neither_pushed_nor_paired_in_the_demo(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "x"}')
    for name in ("._adapter_model.safetensors", "._README.md", "__MACOSX"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "README.md").write_text("x")
    save_file({"x": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    assert set(pushed_files(tmp_path)) == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    write_pair(tmp_path, "a")
    litter(tmp_path / "images")
    images, mask = tmp_path / "images", str(tmp_path / "masks/a.png")
    chosen = [str(images / name) for name in ("a.png", "._000.png", ".DS_Store")]
    assert [pair.picture.name for pair in read_pairs(chosen, [mask], 10_000)] == ["a.png"]


def test_a_named_leftover_is_refused_and_hidden_folders_can_be_named(tmp_path):
    write_pair(tmp_path / ".cache", "a")
    litter(tmp_path / ".cache" / "images")
    with pytest.raises(UserError, match=r"\._000\.png is not an image"):
        find_images([str(tmp_path / ".cache/images/._000.png")])
    assert [path.name for path in find_images([str(tmp_path / ".cache/images/*.png")])] == ["a.png"]
    assert [path.name for path in find_images([str(tmp_path / ".cache/images")])] == ["a.png"]
    write_pair(tmp_path / ".cache", "b")
    assert ids_of(load_segmentation_dataset(tmp_path / ".cache")) == ["a", "b"]


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", "c", *(f"more/{i}" for i in range(9))],
        [f"day{i % 3}/{i}" for i in range(12)],
        [f"a/b/c/{i}" for i in range(12)],
        [f"p{i}/x" for i in range(12)],
        [f"{ACCENTED}/{i}" for i in range(12)],
    ],
)
def test_sub_folders_are_read(names, tmp_path):
    for name in names:
        write_pair(tmp_path, name)
    data = load_segmentation_dataset(tmp_path)
    assert ids_of(data) == sorted(unicodedata.normalize("NFC", name) for name in names)
    assert len(data.notes) == 1 and data.train[0].path.endswith(f"{data.train[0].id}.png")
    assert len(load_segmentation_dataset(tmp_path, group_by="^([^/]+)").train) > 0


def test_splits_as_folders_of_images(tmp_path):
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        for index in range(count):
            write_pair(tmp_path, f"{split}/{index}")
    data = load_segmentation_dataset(tmp_path)
    assert [len(split) for split in (data.train, data.val, data.test)] == [6, 2, 3] and data.splits is None
    assert all(name.startswith("test/") for name in data.test.ids)
    write_pair(tmp_path, "another")
    with pytest.raises(UserError, match="another lies beside the folder t"):
        load_segmentation_dataset(tmp_path)


@pytest.mark.parametrize("place", ["extra/a.jpg", "a.jpg", "Test/images/a.png", "images/x.txt", "train/images/a.psd"])
def test_what_is_not_read_is_said(place, tmp_path):
    for split in ("train", "test"):
        for index in range(4):
            write_pair(tmp_path / split, f"{index}")
    assert not any("not read" in note for note in load_segmentation_dataset(tmp_path).notes)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).write_bytes(b"x")
    notes = [note for note in load_segmentation_dataset(tmp_path).notes if "not read" in note]
    assert notes == [f"1 files of the folder are not read, such as {place}"]
    assert [public(note) for note in notes] == ["1 files of the folder are not read"]
    assert place in [
        finding.file.removeprefix(f"{tmp_path}/") for finding in examine_dataset(tmp_path).findings.ordered()
    ]


def test_predict_counts_the_images_of_sub_folders(tmp_path, capsys, monkeypatch):
    for name in ("a", "more/b", "more/deeper/c"):
        write_pair(tmp_path, name)
    litter(tmp_path / "images" / "more")
    records = lambda inputs, **keys: [{"file": str(path)} for path in find_images(inputs)]  # noqa: E731
    monkeypatch.setattr("hf_sam_adapt.cli.predict.predict", records)
    assert predict_command(PredictArguments(inputs=[str(tmp_path / "images")])) == 0
    shown = capsys.readouterr().out
    assert "images: 2 images in its sub-folders are not read" in shown and "1 masks" in shown
    predict_command(PredictArguments(inputs=[str(tmp_path / "masks/a.png")]))
    assert "not read" not in capsys.readouterr().out


def test_predict_says_what_it_does_not_read(tmp_path):
    write_pair(tmp_path, "more/a")
    with pytest.raises(UserError, match=r"its sub-folders hold 1, such as .*more/a\.png"):
        find_images([str(tmp_path / "images")])


@pytest.mark.parametrize("suffix", ["", "_mask", "_maské"])
@pytest.mark.parametrize("form, mask_form", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_unicode_forms_of_a_name_are_one(form, mask_form, suffix, tmp_path):
    for index in range(4):
        write_pair(tmp_path, f"{ACCENTED}{index}", form)
        mask = tmp_path / "masks" / f"{ACCENTED}{index}.png"
        mask.rename(mask.with_name(unicodedata.normalize(mask_form, f"{ACCENTED}{index}{suffix}.png")))
    for images_alone in (tmp_path / "masks").glob("*"):
        assert images_alone.stat().st_size
    data = load_segmentation_dataset(tmp_path, mask_suffix=unicodedata.normalize("NFC", suffix) or None)
    assert ids_of(data) == [f"{ACCENTED}{index}" for index in range(4)]
    pattern = unicodedata.normalize("NFD", "^(Übergröße)")
    assert len(load_segmentation_dataset(tmp_path, mask_suffix=suffix or None, group_by=pattern).train) == 4


def test_two_unicode_forms_of_one_name_in_a_folder_are_two_files_of_one_stem(tmp_path):
    write_pair(tmp_path, "é")
    write_pair(tmp_path, "é", form="NFD", mask_form="NFD")
    with pytest.raises(UserError, match="same stem"):
        load_segmentation_dataset(tmp_path)
    files = [tmp_path / "images" / f"{unicodedata.normalize(form, 'é')}.png" for form in ("NFC", "NFD")]
    assert len({unicodedata.normalize("NFC", name) for name in output_names(files)}) == 2


def test_annotations_name_files_in_either_form(tmp_path):
    for form in ("NFC", "NFD"):
        write_pair(tmp_path / form, ACCENTED, form)
        for wanted in ("NFC", "NFD"):
            name = unicodedata.normalize(wanted, f"{ACCENTED}.png")
            assert find_image(name, [tmp_path / form / "images"], "annotation").path.is_file()
            with pytest.raises(UserError, match=r"e\.png is not in"):
                find_image("e.png", [tmp_path / form / "images"], "annotation")


def test_links_are_followed_but_not_in_circles(tmp_path):
    pairs(tmp_path / "real")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/images").symlink_to(tmp_path / "real/images")
    (tmp_path / "data/masks").symlink_to(tmp_path / "real/masks")
    (tmp_path / "real/images/again").symlink_to(tmp_path / "real/images")
    assert len(ids_of(load_segmentation_dataset(tmp_path / "data"))) == 6
    assert len(files_below(tmp_path / "real")) == 12


def test_rows_are_known_by_what_they_hold():
    """Rows without names keep their sides when others come before them, and when files share their names."""
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 255, (12, 16, 3), np.uint8)) for _ in range(40)]
    mask = np.zeros((12, 16), np.uint8)
    mask[3:, 4:9] = 1
    masks = [Image.fromarray(mask)] * 40

    def sides(places):
        table = datasets.Dataset.from_dict({"image": [images[i] for i in places], "mask": [masks[i] for i in places]})
        data = load_segmentation_dataset(table)
        splits = {"train": data.train, "val": data.val, "test": data.test}
        return {key: name for name, split in splits.items() for key in split.keys}

    whole = sides(range(40))
    assert len(whole) == 40
    for places in (range(15, 40), range(25), [*range(30, 40), *range(20)]):
        part = sides(places)
        lent = [key for key in part if part[key] != whole[key]]
        assert all(list(part.values()).count(part[key]) == 1 and part[key] != "train" for key in lent)


def test_folders_of_splits_in_any_case_and_lists_of_splits(tmp_path):
    for split in ("Train", "VALID", "Test"):
        pairs(tmp_path / "upper" / split)
    data = load_segmentation_dataset(tmp_path / "upper")
    assert len(data.train) == len(data.val) == len(data.test) == 6
    root = tmp_path / "lists"
    pairs(root)
    (root / "splits").mkdir()
    for name in ("train.csv", "splits/test_ids.txt", "test_001.json", "about.txt"):
        (root / name).write_text("0\n")
    notes = load_segmentation_dataset(root).notes
    assert any(str(note).startswith("2 lists of splits are not read, such as ") for note in notes)
    found = [finding for finding in examine_dataset(root).findings.ordered() if finding.code == "odd-file"]
    assert {os.path.basename(finding.file) for finding in found} == {"train.csv", "test_ids.txt"}


def test_a_name_that_is_not_utf_8_is_said(tmp_path):
    """As Windows' archives leave it where their encoding is not known."""
    pairs(tmp_path / "data")
    image = next((tmp_path / "data/images").iterdir())
    try:
        shutil.copy(image, os.fsencode(image.parent) + b"/f\xe4.png")
    except OSError:
        pytest.skip("this file system takes names in UTF-8 alone")
    said = r"images/f\\xe4\.png: its name is not UTF-8; rename it"
    for read in (load_segmentation_dataset, files_below):
        with pytest.raises(UserError, match=said):
            read(tmp_path / "data")
    (finding,) = examine_dataset(tmp_path / "data").findings.ordered()
    assert re.search(said, finding.line())
    assert files_below(tmp_path / "data", {".txt"}) == []
    named = os.fsdecode(os.fsencode(image.parent) + b"/f\xe4.png")
    for inputs in ([named], [str(image.parent / "f?.png")]):
        with pytest.raises(UserError, match=said):
            find_images(inputs)
    os.rename(named, named[: -len("png")] + "nii")
    with pytest.raises(UserError, match=said.replace("png", "nii")):
        volumes_in(image.parent)
