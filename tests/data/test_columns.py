"""`datasets` data sets with image and mask columns."""

from io import BytesIO

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.errors import UserError


def arrays(count: int, seed: int = 0, top: int = 2) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    sizes = [tuple(rng.integers(10, 20, 2)) for _ in range(count)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return images, [rng.integers(0, top, size, dtype=np.uint8) for size in sizes]


def table(images, masks, **more) -> datasets.Dataset:
    features = {"image": datasets.Image(), "mask": datasets.Image()}
    content = {"image": list(map(Image.fromarray, images)), "mask": list(map(Image.fromarray, masks)), **more}
    return datasets.Dataset.from_dict(content).cast_column("image", features["image"])


def test_in_memory_splits():
    images, masks = arrays(8)
    data = datasets.DatasetDict({"train": table(images[:5], masks[:5]), "validation": table(images[5:], masks[5:])})
    more = datasets.DatasetDict({**data, "dev": table(images[:2], masks[:2])})
    notes = load_segmentation_dataset(more).notes
    assert "split dev is not read (2 images): rename it to train, val or test" in notes
    assert not any("is not read" in note for note in load_segmentation_dataset(data).notes)
    loaded = load_segmentation_dataset(data)
    assert len(loaded.train) == 5 and len(loaded.val) == 3 and loaded.test is None and loaded.name == "DatasetDict"
    assert loaded.train.ids == [f"{i:06d}" for i in range(5)]
    for index in range(5):
        sample = loaded.train[index]
        assert np.array_equal(sample.image, images[index]) and np.array_equal(sample.mask, masks[index])
        assert sample.path is None


def test_one_table_is_split_and_keeps_its_ids():
    images, masks = arrays(20)
    loaded = load_segmentation_dataset(table(images, masks, id=[f"s{i}" for i in range(20)], extra=list(range(20))))
    assert [len(split) for split in (loaded.train, loaded.val, loaded.test)] == [14, 3, 3]
    for split in (loaded.train, loaded.val, loaded.test):
        for index, name in enumerate(split.ids):
            assert np.array_equal(split[index].image, images[int(name[1:])])


def test_saved_to_disk_is_memory_mapped(tmp_path):
    images, masks = arrays(6)
    datasets.DatasetDict({"train": table(images, masks)}).save_to_disk(tmp_path / "saved")
    loaded = load_segmentation_dataset(tmp_path / "saved")
    assert len(loaded.train) == 5 and len(loaded.val) == 1
    assert loaded.train.table.cache_files
    index = int(loaded.train.ids[2])
    assert np.array_equal(loaded.train[2].mask, masks[index])


def test_paths_as_cells_name_the_images(tmp_path):
    images, masks = arrays(4)
    files = {"image": [], "mask": []}
    for kind, content in (("image", images), ("mask", masks)):
        for index, array in enumerate(content):
            files[kind].append(str(tmp_path / f"{kind}{index}.png"))
            Image.fromarray(array).save(files[kind][-1])
    plain = datasets.Dataset.from_dict(files)
    typed = plain.cast_column("image", datasets.Image()).cast_column("mask", datasets.Image())
    for data, first in ((plain, "000000"), (typed, "image0")):
        loaded = load_segmentation_dataset(datasets.DatasetDict({"train": data, "val": data}))
        assert loaded.train.ids[0] == first
        assert np.array_equal(loaded.train[3].image, images[3]) and np.array_equal(loaded.train[3].mask, masks[3])


def test_arrays_as_cells():
    images, masks = arrays(3)
    data = datasets.Dataset.from_dict({"image": images, "mask": [mask.tolist() for mask in masks]})
    sample = load_segmentation_dataset(datasets.DatasetDict({"train": data, "val": data})).train[1]
    assert np.array_equal(sample.image, images[1]) and np.array_equal(sample.mask, masks[1])


def test_lossy_cells():
    images, masks = arrays(3)
    encoded = []
    for mask in masks:
        buffer = BytesIO()
        Image.fromarray(mask * 255).save(buffer, format="JPEG")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    data = table(images, masks).remove_columns("mask").add_column("mask", encoded)
    with pytest.raises(UserError, match=r"column mask: .*binary"):
        load_segmentation_dataset(data)
    assert load_segmentation_dataset(data, mask_values="binary").mask_values == "binary"


def test_bad_tables(tmp_path):
    images, masks = arrays(4)
    good = table(images, masks)
    with pytest.raises(UserError, match="no column 'mask', only image, label"):
        load_segmentation_dataset(good.rename_column("mask", "label"))
    with pytest.raises(UserError, match="no split named train"):
        load_segmentation_dataset(datasets.DatasetDict({"test": good}))
    with pytest.raises(UserError, match=r"row 000002, column mask: mask of .* pixels, its image"):
        load_segmentation_dataset(table(images, [*masks[:2], masks[2][1:], masks[3]]))
    with pytest.raises(UserError, match=r"row 00000\d, column mask: mask value 3"):
        load_segmentation_dataset(table(images, [mask * 3 for mask in masks]))
    broken = [{"bytes": b"no image", "path": None}] * 4
    with pytest.raises(UserError, match=r"row 00000\d, column image: not a readable image \(of no"):
        load_segmentation_dataset(good.remove_columns("image").add_column("image", broken))
    with pytest.raises(UserError, match="no training images"):
        load_segmentation_dataset(datasets.DatasetDict({"train": good.select([]), "val": good}))
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded as a saved data set"):
        load_segmentation_dataset(tmp_path)
