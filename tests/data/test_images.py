"""Images and masks of every kind load as they look."""

import warnings

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.data.images import load_array, read_header, read_image, read_mask, read_mask_header
from hf_sam_adapt.errors import UserError


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def save(array_or_image, path, **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return str(path)


def test_lossless_rgb(rgb, tmp_path):
    for extension in ("png", "bmp", "tif", "ppm"):
        got = read_image(save(rgb, tmp_path / f"x.{extension}"))
        assert got.dtype == np.uint8 and np.array_equal(got, rgb)
    assert np.array_equal(read_image(Image.fromarray(rgb)), rgb)


def test_grey_and_bilevel_become_three_channels(rgb, tmp_path):
    grey = rgb[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(read_image(save(grey, tmp_path / "grey.png")), expected)
    bilevel = Image.fromarray(grey > 100)
    assert np.array_equal(read_image(save(bilevel, tmp_path / "one.png"))[..., 1], (grey > 100) * 255)


def test_opaque_alpha_is_dropped(rgb, tmp_path):
    alpha = np.full((20, 30, 1), 255, np.uint8)
    got = read_image(save(np.concatenate([rgb, alpha], axis=2), tmp_path / "alpha.png"))
    assert np.array_equal(got, rgb)
    got = read_image(save(np.concatenate([rgb[..., :1], alpha], axis=2), tmp_path / "la.png"))
    assert np.array_equal(got[..., 2], rgb[..., 0])
    assert np.array_equal(read_image(np.concatenate([rgb, alpha], axis=2)), rgb)


def test_palette_image_shows_its_colours(tmp_path):
    indices = np.random.default_rng(2).integers(0, 3, (10, 12), dtype=np.uint8)
    palette = np.array([[10, 20, 30], [200, 100, 0], [0, 0, 255]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(read_image(save(image, tmp_path / "p.png")), palette[indices])
        path = save(image, tmp_path / "t.png", transparency=bytes([255, 255, 255]))
        assert np.array_equal(read_image(path), palette[indices])


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (8, 6), (0, 255, 255, 0))
    got = read_image(save(image, tmp_path / "c.jpg", quality=100))
    assert got.shape == (6, 8, 3) and (abs(got.astype(int) - [255, 0, 0]) < 6).all()


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_sixteen_bits(tmp_path, extension):
    values = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    got = read_image(save(values, tmp_path / f"wide.{extension}"))
    assert got.shape == (16, 16, 3) and np.array_equal(got[..., 0].ravel(), np.arange(256))


def test_twelve_bits_in_sixteen(tmp_path):
    values = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)
    got = read_image(save(values, tmp_path / "wide.png"))
    assert np.array_equal(got[..., 0].ravel(), np.arange(256))


def test_float_images_are_refused(tmp_path):
    path = save(np.random.rand(5, 5).astype(np.float32), tmp_path / "f.tif")
    with pytest.raises(UserError, match=r"f\.tif: floating-point"):
        read_image(path)


def oriented(tmp_path, rgb, orientation: int) -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return save(rgb, tmp_path / f"{orientation}.tif", exif=exif)


@pytest.mark.parametrize("orientation, turn", [(3, 2), (6, 3), (8, 1)])
def test_exif_orientation(rgb, tmp_path, orientation, turn):
    path = oriented(tmp_path, rgb, orientation)
    expected = np.rot90(rgb, turn)
    assert np.array_equal(read_image(path), expected)
    header = read_header(path)
    assert (header.height, header.width) == expected.shape[:2]


def test_exif_orientation_of_a_jpeg(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(np.zeros((10, 40, 3), np.uint8), tmp_path / "x.jpg", exif=exif)
    assert read_image(path).shape == (40, 10, 3)
    header = read_header(path)
    assert (header.height, header.width, header.lossy) == (40, 10, True)


def test_masks_as_stored(tmp_path):
    mask = np.random.default_rng(3).integers(0, 256, (9, 14), dtype=np.uint8)
    for name, stored in {
        "grey.png": mask,
        "three.png": np.repeat(mask[..., None], 3, axis=2),
        "wide.png": mask.astype(np.uint16),
        "x.tif": mask.astype(np.int32),
        "la.png": np.stack([mask, np.full_like(mask, 255)], axis=2),
        "float.tif": mask.astype(np.float32),
    }.items():
        got = read_mask(save(stored, tmp_path / name))
        assert got.dtype == np.uint8 and np.array_equal(got, mask), name
    palette = Image.fromarray(mask)
    palette.putpalette(np.random.default_rng(4).integers(0, 256, 768, dtype=np.uint8).tobytes())
    assert palette.mode == "P"
    assert np.array_equal(read_mask(save(palette, tmp_path / "p.png")), mask)
    assert np.array_equal(read_mask(save(Image.fromarray(mask > 9), tmp_path / "one.png")), mask > 9)
    assert read_mask(mask > 9).dtype == np.uint8


def test_masks_of_gifs_by_their_colours(tmp_path):
    """Every GIF has a palette; which index is white in it is its writer's choice."""
    disc = np.zeros((20, 30), np.uint8)
    disc[5:12, 8:20] = 1
    Image.fromarray(disc * 255).save(tmp_path / "grey.gif")
    inverted = Image.fromarray(1 - disc, "P")
    inverted.putpalette([255, 255, 255, 0, 0, 0])
    inverted.save(tmp_path / "inverted.gif")
    for name in ("grey", "inverted"):
        assert np.array_equal(read_mask(tmp_path / f"{name}.gif"), disc * 255)
    classes = Image.fromarray(disc, "P")
    classes.putpalette([0, 0, 0, 200, 30, 10])
    classes.save(tmp_path / "classes.gif")
    assert read_mask_header(tmp_path / "classes.gif", content="colours").coloured
    with pytest.raises(UserError, match=r"coloured mask.*set palette"):
        read_mask(tmp_path / "classes.gif")
    assert read_mask(tmp_path / "classes.gif", content="colours")[8, 10].tolist() == [200, 30, 10]


@pytest.mark.parametrize(
    "stored, message",
    [
        (np.full((4, 4, 3), [1, 2, 3], np.uint8), "coloured mask"),
        (np.full((4, 4), np.nan, np.float32), "NaN"),
        (np.full((4, 4, 4), [1, 1, 1, 128], np.uint8), "transparent"),
    ],
)
def test_masks_that_are_none(tmp_path, stored, message):
    with pytest.raises(UserError, match=rf"m\.tif: .*{message}"):
        read_mask(save(stored, tmp_path / "m.tif"))


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
def test_corrupt_files_are_named(rgb, tmp_path, extension):
    path = tmp_path / f"bad.{extension}"
    big = np.random.default_rng(5).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    save(big, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    for read in (read_image, read_mask) if extension != "tif" else (read_image,):
        with pytest.raises(UserError, match=rf"bad\.{extension}: "):
            read(str(path))
    path.write_bytes(b"no image at all")
    for read in (read_image, read_mask, read_header):
        with pytest.raises(UserError, match=rf"bad\.{extension}: not a readable image"):
            read(str(path))
    with pytest.raises(UserError, match="absent"):
        read_image(str(tmp_path / "absent.png"))


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_header_reveals_a_file_cut_short(tmp_path, extension):
    path = tmp_path / f"bad.{extension}"
    save(np.random.default_rng(6).integers(0, 256, (200, 100, 3), dtype=np.uint8), path)
    header = read_header(str(path))
    assert (header.height, header.width, header.lossy) == (200, 100, extension == "jpg")
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 20)
    read_header(str(path))
    path.write_bytes(whole[:-3000])
    with pytest.raises(UserError, match=rf"bad\.{extension}: corrupt image"):
        read_header(str(path))


@pytest.mark.parametrize("head", [b"{'descr': '|u1'(", b"{'descr': '|u9', ", b"{'descr: '|u1', ", b"\xff\xfe\xfd"])
def test_a_damaged_array_file_is_named(rgb, tmp_path, head):
    np.save(tmp_path / "a.npy", rgb)
    content = bytearray((tmp_path / "a.npy").read_bytes())
    content[10 : 10 + len(head)] = head
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.npy: not a readable \.npy array"):
        load_array(str(tmp_path / "a.npy"))
