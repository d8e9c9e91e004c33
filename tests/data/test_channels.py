"""Images of any number of channels and type: read as stored, counted, refused where they are not what was said."""

import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import tifffile
from PIL import Image

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.channels import displayable, read_channel_header, read_channels
from hf_sam_adapt.errors import UserError


def array_of(dtype, size=(20, 30), channels=6) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = (
        rng.normal(0, 1e4, (*size, channels))
        if np.dtype(dtype).kind == "f"
        else rng.integers(0, np.iinfo(dtype).max, (*size, channels))
    )
    return values.astype(dtype)


def check(path, expected, channels):
    got = read_channels(path, channels)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    assert np.array_equal(got, expected.astype(np.float32))
    header = read_channel_header(path, channels)
    assert (header.height, header.width, header.lossy) == (*expected.shape[:2], False)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "int32", "float32", "float64", "float16"])
@pytest.mark.parametrize("channels", [1, 2, 3, 6])
def test_numpy_and_tiff_of_every_type(tmp_path, dtype, channels):
    array = (array_of(dtype, channels=channels) % 200).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    check(tmp_path / "x.npy", array, channels)
    check(str(tmp_path / "x.npy"), array, channels)
    planes = {"planarconfig": "contig"} if channels > 1 else {}
    tifffile.imwrite(tmp_path / "samples.tif", array, photometric="minisblack", **planes)
    tifffile.imwrite(tmp_path / "pages.tif", array.transpose(2, 0, 1), photometric="minisblack")
    tifffile.imwrite(tmp_path / "plain.tif", array.transpose(2, 0, 1), photometric="minisblack", metadata=None)
    # What imwrite makes of (H, W, C) when it is told nothing: H pages, or RGB samples.
    tifffile.imwrite(tmp_path / "untold.tif", array)
    for name in ("samples", "pages", "plain", "untold"):
        check(tmp_path / f"{name}.tif", array, channels)
    for source in (BytesIO((tmp_path / name).read_bytes()) for name in ("pages.tif", "x.npy")):
        check(source, array, channels)
    check(array, array, channels)


def test_tiff_tiles_planes_compression_and_byte_order(tmp_path):
    array = array_of("uint16", (70, 90))
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", planarconfig="contig", tile=(32, 32))
    tifffile.imwrite(
        tmp_path / "b.tif", array.transpose(2, 0, 1), photometric="minisblack", planarconfig="separate", byteorder=">"
    )
    tifffile.imwrite(
        tmp_path / "c.tif", array, photometric="minisblack", planarconfig="contig", compression="zlib", bigtiff=True
    )
    for name in "abc":
        check(tmp_path / f"{name}.tif", array, 6)


@pytest.mark.parametrize("channels, mode", [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA")])
def test_what_pillow_reads_keeps_its_values(tmp_path, channels, mode):
    array = array_of("uint8", channels=channels)
    image = Image.fromarray(array[..., 0] if channels == 1 else array)
    assert image.mode == mode
    image.save(tmp_path / "x.png")
    check(tmp_path / "x.png", array, channels)
    if channels != 2:
        image.save(tmp_path / "x.tif", compression="tiff_lzw")
        check(tmp_path / "x.tif", array, channels)
    assert np.array_equal(read_channels(image, channels), array)


@pytest.mark.parametrize("extension", ["png", "tif"])
@pytest.mark.parametrize("largest", [4095, 65535])
def test_sixteen_bits_are_not_rescaled(tmp_path, extension, largest):
    array = np.random.default_rng(1).integers(0, largest + 1, (20, 30, 1)).astype(np.uint16)
    Image.fromarray(array[..., 0]).save(tmp_path / f"x.{extension}")
    check(tmp_path / f"x.{extension}", array, 1)


def test_sixteen_bit_colours_of_a_tiff(tmp_path):
    array = array_of("uint16", channels=3)
    tifffile.imwrite(tmp_path / "x.tif", array, photometric="rgb")
    check(tmp_path / "x.tif", array, 3)


def png16(path, array: np.ndarray) -> None:
    """A PNG of 16 bits and 2 to 4 channels, which Pillow cannot write."""
    height, width, channels = array.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    content = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_sixteen_bit_colours_of_a_png(tmp_path):
    for channels in (2, 3, 4):
        array = array_of("uint16", channels=channels)
        png16(tmp_path / "x.png", array)
        check(tmp_path / "x.png", array, channels)


def test_exif_rotation_applies(tmp_path):
    array = array_of("uint8", channels=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "x.tif", exif=exif)
    check(tmp_path / "x.tif", np.rot90(array, 3), 3)


@pytest.mark.parametrize("read", [read_channels, read_channel_header])
def test_another_number_of_channels_names_the_file(tmp_path, read):
    array = array_of("float32")
    np.save(tmp_path / "x.npy", array)
    np.save(tmp_path / "first.npy", array.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "x.tif", array.transpose(2, 0, 1))
    Image.fromarray(array_of("uint8", channels=3)).save(tmp_path / "x.png")
    for name, channels, found in (("x.npy", 5, 6), ("x.tif", 5, 6), ("x.png", 1, 3), ("first.npy", 6, 30)):
        with pytest.raises(UserError, match=rf"{name}: {found} channels, but channels is {channels}") as caught:
            read(tmp_path / name, channels)
        assert ("come first" in str(caught.value)) == (name == "first.npy") and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_not_finite_are_counted(tmp_path, value):
    array = array_of("float64")
    array[3, 4:9, 2] = value
    array[3, 4, 5] = value
    np.save(tmp_path / "x.npy", array)
    tifffile.imwrite(tmp_path / "x.tif", array.transpose(2, 0, 1))
    for name in ("x.npy", "x.tif"):
        with pytest.raises(UserError, match=rf"{name}: 5 of 600 pixels are NaN or infinite"):
            read_channels(tmp_path / name, 6)
    with pytest.raises(UserError, match="600 of 600"):
        read_channels(np.full((20, 30), 1e39), 1)


def test_files_that_are_no_images_are_named(tmp_path):
    tifffile.imwrite(tmp_path / "cut.tif", array_of("float32"), photometric="minisblack", planarconfig="contig")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "cut.tif").read_bytes()[:9000])
    np.save(tmp_path / "cut.npy", array_of("float32"))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:500])
    np.save(tmp_path / "objects.npy", np.array([{}, 1], object))
    np.save(tmp_path / "complex.npy", np.ones((4, 5, 6), np.complex64))
    np.save(tmp_path / "empty.npy", np.ones((0, 5, 6)))
    np.save(tmp_path / "deep.npy", np.ones((2, 4, 5, 6)))
    Image.new("P", (5, 4)).save(tmp_path / "palette.png")
    (tmp_path / "text.tif").write_text("no image")
    for name, message in {
        "cut.tif": "not a readable TIFF",
        "cut.npy": "not a readable .npy",
        "objects.npy": "not a readable .npy",
        "complex.npy": "complex64.*amplitude",
        "empty.npy": "without pixels",
        "deep.npy": r"\(2, 4, 5, 6\)",
        "palette.png": "mode P",
        "text.tif": "of no known format",
        "absent.tif": "No such file",
    }.items():
        with pytest.raises(UserError, match=rf"{name}: .*{message}") as caught:
            read_channels(tmp_path / name, 1 if name == "palette.png" else 6)
        assert "\n" not in str(caught.value)


def test_unsigned_numbers_of_32_bits(tmp_path):
    values = np.array([[3_000_000_000, 7]], np.uint32)
    tifffile.imwrite(tmp_path / "a.tif", values)
    assert np.array_equal(read_channels(tmp_path / "a.tif", 1)[..., 0], values.astype(np.float32))


def write_pairs(root, kind: str, count: int = 20) -> dict[str, np.ndarray]:
    """A flat folder of six-channel float or one-channel 16-bit images with masks, the first as an array file."""
    rng = np.random.default_rng(3)
    images = {}
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(count):
        size = (24 + number % 3, 36)
        mask = np.zeros(size, np.uint8)
        mask[5:15, 3 + number % 7 : 20] = 1
        name = f"{number:03d}"
        if kind == "png":
            image = (rng.integers(0, 3000, size) + 20000 * mask.astype(int)).astype(np.uint16)
            Image.fromarray(image).save(root / "images" / f"{name}.png")
            image = image[:, :, None]
        else:
            image = (rng.gamma(1, 1, (*size, 6)) * (1 + 3 * mask[..., None])).astype(np.float32)
            if kind == "npy":
                np.save(root / "images" / f"{name}.npy", image)
            else:
                tifffile.imwrite(root / "images" / f"{name}.tif", image.transpose(2, 0, 1), photometric="minisblack")
        if number:
            Image.fromarray(mask).save(root / "masks" / f"{name}.png")
        else:
            np.save(root / "masks" / f"{name}.npy", mask)
        images[name] = image
    return images


@pytest.mark.parametrize("kind, channels", [("npy", 6), ("tif", 6), ("png", 1)])
def test_a_data_set_loads_and_splits(tmp_path, kind, channels):
    images = write_pairs(tmp_path, kind)
    data = load_segmentation_dataset(tmp_path, channels=channels)
    assert [len(split) for split in (data.train, data.val, data.test)] == [14, 3, 3]
    seen = set()
    for split in (data.train, data.val, data.test):
        for index in range(len(split)):
            sample = split[index]
            assert sample.image.dtype == np.float32 and np.array_equal(sample.image, images[sample.id])
            assert sample.mask.shape == sample.image.shape[:2] and sample.mask[7, 15] == 1
            seen.add(sample.id)
    assert seen == set(images)


def test_every_file_is_checked_before_training(tmp_path):
    write_pairs(tmp_path, "npy")
    data = load_segmentation_dataset(tmp_path, channels=6)
    held_out = data.test.ids[0]
    original = np.load(tmp_path / "images" / f"{held_out}.npy")
    np.save(tmp_path / "images" / f"{held_out}.npy", original[..., :4])
    with pytest.raises(UserError, match=rf"{held_out}\.npy: 4 channels, but channels is 6"):
        load_segmentation_dataset(tmp_path, channels=6)
    np.save(tmp_path / "images" / f"{held_out}.npy", original[1:])
    with pytest.raises(UserError, match=rf"{held_out}\..*they must be equal"):
        load_segmentation_dataset(tmp_path, channels=6)
    np.save(tmp_path / "images" / f"{held_out}.npy", original)
    trained = data.train.ids[0]
    np.save(tmp_path / "images" / f"{trained}.npy", np.where(original < 0.1, np.nan, original))
    with pytest.raises(UserError, match=rf"{trained}\.npy: \d+ of \d+ pixels are NaN"):
        load_segmentation_dataset(tmp_path, channels=6)


def test_arrays_need_channels(tmp_path):
    write_pairs(tmp_path, "npy")
    with pytest.raises(UserError, match=r"only \.npy arrays; set channels"):
        load_segmentation_dataset(tmp_path)
    with pytest.raises(UserError, match="channels: 0 is below 1"):
        load_segmentation_dataset(tmp_path, channels=0)


def test_columns_of_arrays(tmp_path):
    datasets = pytest.importorskip("datasets")
    rng = np.random.default_rng(5)
    images = rng.normal(0, 5, (8, 12, 14, 6)).astype(np.float32)
    masks = rng.integers(0, 2, (8, 12, 14)).astype(np.uint8)
    features = datasets.Features(
        {"image": datasets.Array3D((12, 14, 6), "float32"), "mask": datasets.Array2D((12, 14), "uint8")}
    )
    table = datasets.Dataset.from_dict({"image": list(images), "mask": list(masks)}, features=features)
    data = load_segmentation_dataset(table, channels=6)
    for index in range(len(data.train)):
        sample = data.train[index]
        number = int(sample.id)
        assert np.array_equal(sample.image, images[number]) and np.array_equal(sample.mask, masks[number])
    with pytest.raises(UserError, match="column image: 6 channels, but channels is 5"):
        load_segmentation_dataset(table, channels=5)


def test_drawn_images_have_three_channels():
    photographs = load_segmentation_dataset("synthetic:polyp").train
    floats = load_segmentation_dataset("synthetic:polyp", channels=3).train
    assert floats[1].image.dtype == np.float32 and np.array_equal(floats[1].image, photographs[1].image)
    with pytest.raises(UserError, match="3 channels, but channels is 6"):
        _ = load_segmentation_dataset("synthetic:polyp", channels=6).train[0]


def test_pictures_of_other_images():
    rng = np.random.default_rng(6)
    photograph = rng.integers(0, 256, (9, 8, 3)).astype(np.uint8)
    assert displayable(photograph) is photograph
    for channels in (1, 2, 3, 6):
        image = (rng.normal(0, 1, (40, 50, channels)) * 1000 + np.arange(channels) * 1e5).astype(np.float32)
        image[0, 0] = 1e9
        shown = displayable(image)
        assert shown.shape == (40, 50, 3) and shown.dtype == np.uint8
        drawn = min(channels, 3)
        for channel in range(drawn):
            order = np.argsort(image[..., channel].ravel())
            levels = shown[..., channel].ravel()[order].astype(int)
            assert levels[0] == 0 and levels[-1] == 255 and (np.diff(levels) >= 0).all()
            assert 90 < levels[len(levels) // 2] < 165  # the outlier has not stretched the rest away
        if channels == 1:
            assert (shown == shown[..., :1]).all()
        if channels == 2:
            assert (shown[..., 2] == 0).all()
    assert (displayable(np.full((3, 4, 1), 7.0, np.float32)) == 0).all()
