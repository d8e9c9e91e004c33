"""`load_segmentation_dataset`: what it finds, what it reads, and what it refuses."""

import os
import pickle
import time

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torch.utils.data import DataLoader

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.errors import UserError


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def pair(root, name: str, mask: np.ndarray, size=None, mask_name: str | None = None) -> None:
    """A grey image and `mask` under root/{images,masks}."""
    write(root / "images" / f"{name}.png", np.full((*(size or mask.shape), 3), 90, np.uint8))
    write(root / "masks" / (mask_name or f"{name}.png"), mask)


def mask_of(*values: int) -> np.ndarray:
    mask = np.zeros((12, 16), np.uint8)
    for column, value in enumerate(values):
        mask[:, column] = value
    return mask


def test_named_splits(make_dataset):
    root = make_dataset(train=5, val=2, test=3)
    data = load_segmentation_dataset(str(root))
    assert [len(split) for split in (data.train, data.val, data.test)] == [5, 2, 3]
    assert data.splits is None and data.num_labels is None and data.mask_values == "index" and data.notes == []
    assert data.id2label == {0: "background", 1: "foreground"}
    assert data.train.ids == ["0000", "0001", "0002", "0003", "0004"]
    sample = data.train[3]
    assert np.array_equal(sample.image, np.asarray(Image.open(root / "train/images/0003.png")))
    assert np.array_equal(sample.mask, np.asarray(Image.open(root / "train/masks/0003.png")))
    assert (sample.id, sample.index, sample.path) == ("0003", 3, str(root / "train/images/0003.png"))
    assert data.train[-1].id == "0004" and data.train[-1].index == 4


def test_validation_is_held_out_of_train(make_dataset):
    root = make_dataset(train=20, test=3)
    data = load_segmentation_dataset(root, seed=1)
    assert len(data.train) == 17 and len(data.val) == 3 and len(data.test) == 3
    assert sorted(data.train.ids + data.val.ids) == [f"{i:04d}" for i in range(20)]
    assert data.splits == {"train": data.train.ids, "val": data.val.ids}
    assert load_segmentation_dataset(root, seed=1).val.ids == data.val.ids
    assert any(load_segmentation_dataset(root, seed=seed).val.ids != data.val.ids for seed in (2, 3))
    for split in (data.train, data.val):
        for index, name in enumerate(split.ids):
            assert split[index].path.endswith(f"{name}.png")


def test_one_flat_folder(make_dataset):
    data = load_segmentation_dataset(make_dataset(flat=20))
    assert [len(split) for split in (data.train, data.val, data.test)] == [14, 3, 3]
    assert data.splits == {name: getattr(data, name).ids for name in ("train", "val", "test")}


def test_group_by(tmp_path):
    for index in range(24):
        pair(tmp_path, f"patient{index % 8}_{index}", mask_of(1))
    data = load_segmentation_dataset(tmp_path, group_by="^(patient[0-9]+)_")
    groups = [{name.split("_")[0] for name in split.ids} for split in (data.train, data.val, data.test)]
    assert all(groups) and not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]


def test_one_image_trains_and_says_so(make_dataset):
    for options in ({"train": 1, "test": 0}, {"flat": 1}):
        data = load_segmentation_dataset(make_dataset(make_dataset().parent / str(options), **options))
        assert len(data.train) == 1 and data.val is None and data.test is None
        assert data.notes[0] == "one image: nothing is held out"
        assert data.notes[1].startswith("no test split") and "training images" in data.notes[1]


def test_mask_suffix_and_other_extensions(tmp_path):
    for index in range(4):
        name = f"x{index}"
        write(tmp_path / "images" / f"{name}.JPG", np.full((12, 16, 3), 90, np.uint8))
        write(tmp_path / "masks" / f"{name}_mask.png", mask_of(1))
    (tmp_path / "images" / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "images" / ".hidden.png").write_bytes(b"x")
    for suffix in ("_mask", "_mask.png"):
        assert len(load_segmentation_dataset(tmp_path, mask_suffix=suffix).train) == 2
    with pytest.raises(UserError, match=r"4 images without mask.*mask_suffix"):
        load_segmentation_dataset(tmp_path)


def test_binary_pictures(make_dataset):
    data = load_segmentation_dataset(make_dataset(foreground=255))
    assert data.mask_values == "binary" and "{0, 255}" in data.notes[0]
    assert set(np.unique(data.train[0].mask)) == {0, 1}


def test_classes_and_names(tmp_path):
    for index in range(4):
        pair(tmp_path, str(index), mask_of(0, 1, 2, 3, 255))
    unnamed = load_segmentation_dataset(tmp_path, num_labels=4)
    assert unnamed.id2label == {0: "background", 1: "class_1", 2: "class_2", 3: "class_3"}
    data = load_segmentation_dataset(tmp_path, num_labels=4, id2label={"0": "other", "1": "road", 2: "tree", 3: "car"})
    assert data.id2label == {0: "other", 1: "road", 2: "tree", 3: "car"}
    listed = load_segmentation_dataset(tmp_path, num_labels=4, id2label=["other", "road", "tree", "car"])
    assert listed.id2label == data.id2label
    assert set(np.unique(data.train[0].mask)) == {0, 1, 2, 3, 255}
    mapped = load_segmentation_dataset(tmp_path, label_map={"2": 1, 3: 255})
    assert set(np.unique(mapped.train[0].mask)) == {0, 1, 255}
    with pytest.raises(UserError, match="num_labels 3 allows"):
        load_segmentation_dataset(tmp_path, num_labels=3)
    with pytest.raises(UserError, match=r"^num_labels: 1"):
        load_segmentation_dataset(tmp_path, num_labels=1)
    for names, missing in (({7: "x"}, "0, 1, 2, 3"), ({1: "road", 3: "car"}, "0, 2")):
        with pytest.raises(UserError, match=f"^id2label: no name for class {missing} "):
            load_segmentation_dataset(tmp_path, num_labels=4, id2label=names)
    with pytest.raises(UserError, match="num_labels is unset"):
        load_segmentation_dataset(tmp_path, label_map={"2": 1, 3: 255}, id2label="other,road,tree")


def test_palette_masks_and_rotated_photographs(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(3):
        write(tmp_path / "images" / f"{index}.jpg", np.zeros((16, 12, 3), np.uint8), exif=exif)
        palette = Image.fromarray(mask_of(1, 2))
        palette.putpalette(np.arange(768, dtype=np.uint16).astype(np.uint8).tobytes())
        (tmp_path / "masks").mkdir(exist_ok=True)
        palette.save(tmp_path / "masks" / f"{index}.png")
    sample = load_segmentation_dataset(tmp_path, num_labels=3).train[0]
    assert sample.image.shape == (12, 16, 3)
    assert np.array_equal(sample.mask, mask_of(1, 2))


def test_lossy_masks_with_binary(tmp_path):
    soft = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (12, 1))
    for index in range(3):
        pair(tmp_path, str(index), soft, mask_name=f"{index}.jpg")
    with pytest.raises(UserError, match=r"masks/\d\.jpg.*mask_values to binary"):
        load_segmentation_dataset(tmp_path)
    mask = load_segmentation_dataset(tmp_path, mask_values="binary").train[0].mask
    assert abs(int(mask.sum()) - (soft > 127).sum()) < 20 and set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize("where", ["train", "val", "test"])
@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_corrupt_file_in_any_split(make_dataset, where, kind):
    root = make_dataset(train=4, val=2, test=2)
    (root / where / kind / "0001.png").write_bytes(b"\x89PNG garbage")
    with pytest.raises(UserError, match=rf"{where}/{kind}/0001\.png"):
        load_segmentation_dataset(root)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_file_damaged_in_its_middle(make_dataset, kind):
    root = make_dataset(train=4, val=2, test=2, size=(100, 100))
    path = root / "train" / kind / "0002.png"
    if kind == "masks":
        write(path, np.random.default_rng(0).integers(0, 2, (100, 100), dtype=np.uint8))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(40)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"train/{kind}/0002\.png: corrupt"):
        load_segmentation_dataset(root)


def test_image_without_mask_and_the_reverse(make_dataset):
    root = make_dataset(train=9, test=2)
    for number in range(7):
        os.remove(root / "train/masks" / f"{number:04d}.png")
    with pytest.raises(UserError, match=r"train: 7 images without mask: ") as error:
        load_segmentation_dataset(root)
    assert str(error.value).count(".png") == 5 and "\n" not in str(error.value)
    for number in range(7):
        os.remove(root / "train/images" / f"{number:04d}.png")
    os.remove(root / "test/images/0001.png")
    with pytest.raises(UserError, match=r"test: 1 mask without image: masks/0001\.png"):
        load_segmentation_dataset(root)


def test_masks_of_another_size(make_dataset):
    for split in ("train", "test"):
        root = make_dataset(make_dataset().parent / split)
        write(root / split / "masks" / "0001.png", np.zeros((48, 63), np.uint8))
        with pytest.raises(UserError, match=rf"{split}/masks/0001\.png: mask of 63x48 .* 64x48"):
            load_segmentation_dataset(root)


def test_other_bad_folders(tmp_path, make_dataset):
    with pytest.raises(UserError, match="missing folder"):
        load_segmentation_dataset(tmp_path / "absent")
    with pytest.raises(UserError, match="missing folder"):
        load_segmentation_dataset("absent")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(UserError, match="is not a folder"):
        load_segmentation_dataset(tmp_path / "file.txt")
    with pytest.raises(UserError, match="neither images/ and masks/"):
        load_segmentation_dataset(tmp_path)
    (tmp_path / "images").mkdir()
    with pytest.raises(UserError, match="masks: missing folder"):
        load_segmentation_dataset(tmp_path)
    (tmp_path / "masks").mkdir()
    with pytest.raises(UserError, match="empty"):
        load_segmentation_dataset(tmp_path)
    with pytest.raises(UserError, match="nobody/nothing: neither a folder"):
        load_segmentation_dataset("nobody/nothing")
    with pytest.raises(UserError, match=r"synthetic:moon: unknown domain"):
        load_segmentation_dataset("synthetic:moon")
    with pytest.raises(UserError, match="list is not supported"):
        load_segmentation_dataset([1])


def test_two_files_of_one_stem(tmp_path):
    pair(tmp_path, "a", mask_of(1))
    write(tmp_path / "images" / "a.jpg", np.zeros((12, 16, 3), np.uint8))
    with pytest.raises(UserError, match="same stem"):
        load_segmentation_dataset(tmp_path)


def test_a_class_beyond_num_labels_names_its_file(tmp_path):
    for index in range(4):
        pair(tmp_path, str(index), mask_of(1, 2 + 3 * (index == 2)))
    with pytest.raises(UserError, match=r"masks/2\.png: mask value 5"):
        for seed in range(6):  # until the file is not in the test split
            load_segmentation_dataset(tmp_path, num_labels=3, seed=seed)


def test_pixels_of_the_test_split_are_read_by_indexing_only(make_dataset, monkeypatch):
    root = make_dataset(train=6, test=3)
    write(root / "test/masks/0000.png", np.full((48, 64), 77, np.uint8))
    opened = []
    load = PngImageFile.load
    monkeypatch.setattr(PngImageFile, "load", lambda image: (opened.append(str(image.filename)), load(image))[1])
    data = load_segmentation_dataset(root)
    list(data.train), list(data.val)
    assert opened and not any("/test/" in path for path in opened)
    with pytest.raises(UserError, match=r"test/masks/0000\.png: mask value 77"):
        data.test[0]
    assert any("/test/" in path for path in opened)


def test_nothing_is_opened_before_it_is_indexed_and_workers_agree(make_dataset):
    data = load_segmentation_dataset(make_dataset(train=12))
    again = pickle.loads(pickle.dumps(data.train))
    loader = DataLoader(again, batch_size=None, num_workers=1)
    for sample, expected in zip(loader, data.train):
        assert sample.id == expected.id and np.array_equal(sample.mask, expected.mask)
    part = data.train.select([4, 1])
    assert part.ids == [data.train.ids[4], data.train.ids[1]] and part[0].index == 0
    os.remove(data.train[5].path)
    assert len(data.train) == 10
    with pytest.raises(UserError, match=data.train.ids[5]):
        data.train[5]


def test_synthetic_domains():
    data = load_segmentation_dataset("synthetic:camouflage", seed=5)
    assert [len(split) for split in (data.train, data.val, data.test)] == [200, 40, 60]
    assert data.num_labels is None and data.mask_values == "index" and data.notes == [] and data.splits is None
    sample = data.test[7]
    assert sample.image.dtype == np.uint8 and sample.mask.shape == sample.image.shape[:2]
    assert set(np.unique(sample.mask)) <= {0, 1}
    other = load_segmentation_dataset("synthetic:camouflage", seed=6).test[7]
    assert np.array_equal(sample.image, other.image) and np.array_equal(sample.mask, other.mask)
    sample.image[:] = 0
    assert data.test[7].image.any()
    cover = load_segmentation_dataset("synthetic:landcover")
    assert cover.num_labels == len(cover.id2label) == 5 and cover.train[0].mask.max() < 5


def test_real_domains(real_data):
    for name in ("polyp", "camouflage", "shadow", "nuclei", "magnetic_tile", "road_aerial"):
        data = load_segmentation_dataset(real_data / name)
        assert data.num_labels is None and len(data.test) >= 25
        sample = data.val[0]
        assert set(np.unique(sample.mask)) <= {0, 1} and sample.image.shape[:2] == sample.mask.shape
    camvid = {0: 255} | {i: i - 1 for i in range(1, 12)}
    data = load_segmentation_dataset(real_data / "camvid", num_labels=11, label_map=camvid)
    values = set(np.unique(np.concatenate([data.val[i].mask.ravel() for i in range(5)])))
    assert values <= {*range(11), 255} and 255 in values
    data = load_segmentation_dataset(real_data / "em_neuron", label_map={1: 1, 2: 0, 3: 0, 4: 0})
    assert set(np.unique(data.train[0].mask)) == {0, 1}


@pytest.mark.slow
def test_a_hundred_thousand_images_start_in_seconds(tmp_path):
    """Hard links to one pair: the time of listing, header checks and the scan, not of the disk."""
    pair(tmp_path / "one", "x", mask_of(1))
    for kind in ("images", "masks"):
        folder = tmp_path / "many" / kind
        folder.mkdir(parents=True)
        for index in range(100_000):
            if index % 30_000 == 0:  # file systems limit the links to a file
                source = folder / f"{index:06d}.png"
                source.write_bytes((tmp_path / "one" / kind / "x.png").read_bytes())
            else:
                os.link(source, folder / f"{index:06d}.png")
    import datasets  # noqa: F401  not to be measured

    start = time.process_time()  # other processes may hold the cores
    data = load_segmentation_dataset(tmp_path / "many")
    seconds = time.process_time() - start
    print(f"100,000 images: {seconds:.1f} s of one core")
    assert len(data.train) == 70_000 and data.train[69_999].mask.max() == 1
    assert seconds < 30


def test_classes_that_a_source_names_can_be_made_one():
    """By a label_map or as binary: what the source calls its classes holds no more."""
    cover = load_segmentation_dataset("synthetic:landcover")
    water = load_segmentation_dataset("synthetic:landcover", label_map={1: 1, 2: 0, 3: 0, 4: 0})
    anything = load_segmentation_dataset("synthetic:landcover", mask_values="binary")
    assert cover.num_labels == 5 and water.num_labels is None and anything.num_labels is None
    assert water.id2label == anything.id2label == {0: "background", 1: "foreground"}
    mask = cover.train[0].mask
    assert np.array_equal(water.train[0].mask, mask == 1) and np.array_equal(anything.train[0].mask, mask > 0)
