"""Colours to classes and back; what is in no class is ignored, and counted."""

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.palettes import FUSAR_MAP_1, FUSAR_MAP_2, Palette, resolve_palette, to_labels, unknown_colours
from hf_sam_adapt.errors import UserError


# From the data note of FUSAR-Map and the preprocessing of ClassWise-SAM-Adapter, in the order of its classes.
MAP_1 = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 0, 0)]
MAP_2 = [
    (0, 0, 255),
    (0, 139, 0),
    (0, 255, 0),
    (139, 0, 0),
    (255, 0, 0),
    (205, 173, 0),
    (83, 134, 139),
    (0, 139, 139),
    (139, 105, 20),
    (189, 183, 107),
]


def to_rgb(labels, palette):
    """The inverse of `to_labels`; ignored pixels are white, which is no class of the built-in palettes."""
    table = np.full((256, 3), 255, np.uint8)
    table[: len(palette)] = palette.colours()
    return table[labels]


@pytest.mark.parametrize("palette, colours", [(FUSAR_MAP_1, MAP_1), (FUSAR_MAP_2, MAP_2)])
def test_round_trip_of_the_built_in_palettes(palette, colours, tmp_path):
    labels = np.random.default_rng(0).integers(0, len(colours) + 1, (50, 70))
    labels = np.where(labels == len(colours), 255, labels).astype(np.uint8)
    rgb = to_rgb(labels, palette)
    assert rgb.dtype == np.uint8 and rgb.shape == (50, 70, 3)
    for index, colour in enumerate(colours):
        assert (rgb[labels == index] == colour).all() and (labels == index).any()
    assert not any((rgb[labels == 255] == colour).all(axis=1).any() for colour in colours)
    Image.fromarray(rgb).save(tmp_path / "x.png")
    back = to_labels(np.asarray(Image.open(tmp_path / "x.png")), palette)
    assert back.dtype == np.uint8 and np.array_equal(back, labels)
    assert list(palette.id2label) == list(range(len(colours)))
    assert palette.id2label[2] == ("water" if palette is FUSAR_MAP_1 else "vegetation")


def test_a_random_palette_against_a_search_per_pixel():
    rng = np.random.default_rng(1)
    colours = rng.choice(4, (9, 3), replace=True) * 60 + np.arange(9)[:, None]
    palette = resolve_palette({f"class {i}": colour.tolist() for i, colour in enumerate(colours)})
    rgb = np.concatenate([colours, rng.integers(0, 256, (6, 3))])[rng.integers(0, 15, (13, 17))].astype(np.uint8)
    expected = np.full((13, 17), 255)
    for index, colour in enumerate(colours):
        expected[(rgb == colour).all(axis=2)] = index
    assert np.array_equal(to_labels(rgb, palette), expected)
    unknown = unknown_colours(rgb, palette)
    assert unknown.total() == (expected == 255).sum() > 0
    for colour, count in unknown.items():
        assert ((rgb == colour).all(axis=2)).sum() == count
    assert max(unknown.values()) == unknown.most_common(1)[0][1]


def test_palettes_from_names_mappings_and_files(tmp_path):
    plain = {"sea": [0, 0, 255], "land": [10, 20, 30]}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    palette = Palette({"sea": (0, 0, 255), "land": (10, 20, 30)})
    assert resolve_palette(plain) == resolve_palette(str(tmp_path / "own.yaml")) == palette
    assert palette.plain() == plain and resolve_palette(palette) is palette and resolve_palette(None) is None
    assert resolve_palette("fusar_map_1") is FUSAR_MAP_1
    for wrong, message in [
        ("FUSARMAP1", "did you mean FUSAR_MAP_1"),
        (str(tmp_path / "absent.yaml"), "absent.yaml cannot be read"),
        ({"sea": [0, 0, 1]}, "2 to 255 classes"),
        ({"sea": [0, 0, 256], "land": [1, 2, 3]}, "sea: .* is not a colour"),
        ({"sea": [0, 0], "land": [1, 2, 3]}, "sea: .* is not a colour"),
        ({"sea": "blue", "land": [1, 2, 3]}, "'blue' is not a colour"),
        ({"sea": [1, 2, 3], "land": [1, 2, 3]}, "of land is that of another class"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            resolve_palette(wrong)
        assert "\n" not in str(caught.value)


@pytest.fixture
def folder(tmp_path):
    """12 RGB label images of FUSAR-Map's first palette; four of them hold 6 pixels of other colours each."""
    rng = np.random.default_rng(2)
    labels = {}
    for part in ("images", "masks"):
        (tmp_path / "train" / part).mkdir(parents=True)
    for number in range(12):
        mask = rng.integers(0, 5, (16, 20)).astype(np.uint8)
        rgb = to_rgb(mask, FUSAR_MAP_1)
        if number < 4:
            rgb[0, :5], rgb[1, 0] = (178, 34, 34), (1, 2, number)
            mask[0, :5] = mask[1, 0] = 255
        labels[f"{number:02d}"] = mask
        Image.fromarray(rng.integers(0, 255, (16, 20, 3)).astype(np.uint8)).save(
            tmp_path / "train" / "images" / f"{number:02d}.png"
        )
        Image.fromarray(rgb).save(tmp_path / "train" / "masks" / f"{number:02d}.png")
    return tmp_path, labels


def test_a_data_set_of_colours(folder):
    root, labels = folder
    data = load_segmentation_dataset(root, palette="FUSAR_MAP_1")
    assert data.num_labels == 5 and data.mask_values == "index" and data.palette == FUSAR_MAP_1
    assert data.id2label == {0: "building", 1: "vegetation", 2: "water", 3: "road", 4: "background"}
    for split in (data.train, data.val):
        for index in range(len(split)):
            assert split[index].mask.dtype == np.uint8
            assert np.array_equal(split[index].mask, labels[split[index].id])
    assert data.notes[0] == (
        "24 pixels of unknown colours in 4 of 12 masks read as ignore, the most frequent (178, 34, 34) (20 pixels)"
    )
    merged = load_segmentation_dataset(root, palette="FUSAR_MAP_1", label_map={0: 1, 1: 0, 2: 0, 3: 0, 4: 0})
    assert merged.num_labels is None
    assert np.array_equal(merged.train[0].mask == 1, labels[merged.train.ids[0]] == 0)


def test_the_names_of_a_palette_and_of_the_model(folder):
    root, _ = folder
    names = [*reversed(FUSAR_MAP_1.classes)]
    with pytest.raises(UserError, match=r"building is class 0 in .* and class 4 of the model"):
        load_segmentation_dataset(root, palette="FUSAR_MAP_1", id2label=names)


def test_a_palette_of_two_is_binary(folder):
    root, labels = folder
    data = load_segmentation_dataset(root, palette={"rest": [0, 0, 0], "water": [0, 0, 255]})
    assert data.num_labels is None and data.id2label == {0: "rest", 1: "water"}
    mask = data.train[0].mask
    assert set(np.unique(mask)) == {0, 1, 255}
    assert np.array_equal(mask == 1, labels[data.train.ids[0]] == 2)


def test_what_does_not_fit_a_palette(folder, tmp_path_factory):
    root, _ = folder
    with pytest.raises(UserError, match="coloured mask, and no palette is given; set palette"):
        load_segmentation_dataset(root, num_labels=5)
    with pytest.raises(UserError, match=r"none of the colours of the masks, whose most frequent one is"):
        load_segmentation_dataset(root, palette={"a": [7, 7, 7], "b": [8, 8, 8]})
    with pytest.raises(UserError, match="num_labels: 4, but the palette holds 5"):
        load_segmentation_dataset(root, palette="FUSAR_MAP_1", num_labels=4)
    with pytest.raises(UserError, match="mask_values: binary"):
        load_segmentation_dataset(root, palette="FUSAR_MAP_1", mask_values="binary")
    with pytest.raises(UserError, match="says its classes itself"):
        load_segmentation_dataset("synthetic:polyp", palette="FUSAR_MAP_1")
    mask = root / "train" / "masks" / "07.png"
    Image.fromarray(np.zeros((16, 20), np.uint8)).save(mask)
    with pytest.raises(UserError, match=r"mixed: .*00\.png holds colours, .*07\.png one value a pixel"):
        load_segmentation_dataset(root, palette="FUSAR_MAP_1")
    Image.new("RGB", (20, 16)).save(mask.with_suffix(".jpg"))
    mask.unlink()
    with pytest.raises(UserError, match=r"07\.jpg: a mask stored lossily"):
        load_segmentation_dataset(root, palette="FUSAR_MAP_1")


@pytest.mark.parametrize("palette", [None, "FUSAR_MAP_1"])
def test_palette_images_are_indices_with_and_without_a_palette(folder, palette):
    root, labels = folder
    for name, mask in labels.items():
        image = Image.fromarray(mask)
        image.putpalette(np.random.default_rng(3).integers(0, 256, 768).astype(np.uint8).tobytes())
        image.save(root / "train" / "masks" / f"{name}.png")
    data = load_segmentation_dataset(root, palette=palette, num_labels=5)
    assert not any("unknown colours" in note for note in data.notes)
    assert all(np.array_equal(data.train[i].mask, labels[data.train.ids[i]]) for i in range(len(data.train)))
