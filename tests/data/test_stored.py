"""What a file stores is read whole or refused in one line that says what to do; Pillow's mode is not asked."""

import json

import numpy as np
import pytest
import tifffile
from data.test_channels import png16
from PIL import Image

from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.channels import load_header, load_image, read_channels
from hf_sam_adapt.data.encoding import MaskEncoding
from hf_sam_adapt.data.images import read_image, read_mask, read_mask_header
from hf_sam_adapt.demo.images import read_binary_mask, read_picture
from hf_sam_adapt.doctor import examine_dataset
from hf_sam_adapt.errors import UserError


RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (24, 32, 3), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, (24, 32, 3)).astype(np.uint16)
DISC = ((np.mgrid[:24, :32] - np.array([12, 16])[:, None, None]) ** 2).sum(axis=0) <= 64


def frames(path, **options):
    pages = [Image.fromarray(np.roll(RGB, shift, axis=0)) for shift in range(8)]
    pages[0].save(path, save_all=True, append_images=pages[1:], **options)


def transparent(path, mode="RGBA"):
    image = Image.fromarray(np.dstack([RGB, np.where(DISC, 255, 0).astype(np.uint8)]))
    if mode == "P":
        indexed = Image.fromarray(RGB).quantize(16)
        indexed.save(path, transparency=bytes([0] + [255] * 15))
    elif mode == "colour key":
        Image.fromarray(RGB).save(path, transparency=tuple(RGB[0, 0].tolist()))
    else:
        image.convert(mode).save(path)


# How an image is written, what is said of it, and which key reads it.
UNREADABLE = {
    "pages.tif": (lambda path: frames(path), "8 pages, of which only one would be read.*set channels"),
    "pages16.tif": (lambda path: tifffile.imwrite(path, WIDE[..., 0][None].repeat(5, 0)), "5 pages.*channels"),
    "stack.tif": (
        lambda path: tifffile.imwrite(path, np.zeros((3, 24, 32), np.float32), photometric="minisblack"),
        "3 pages.*channels",
    ),
    "animated.gif": (frames, "8 frames, of which only one would be read"),
    "animated.png": (frames, "8 frames, of which only one would be read"),
    "animated.webp": (frames, "8 frames, of which only one would be read"),
    "infrared.tif": (
        lambda path: tifffile.imwrite(
            path, np.dstack([RGB, RGB[..., 0]]), photometric="rgb", extrasamples=["unspecified"]
        ),
        "4 bands.*set channels to 4",
    ),
    "five.tif": (
        lambda path: tifffile.imwrite(
            path, np.dstack([RGB, RGB[..., :2]]), photometric="minisblack", planarconfig="contig"
        ),
        "5 bands.*set channels to 5",
    ),
    "two.tif": (
        lambda path: tifffile.imwrite(path, RGB[..., :2], photometric="minisblack", planarconfig="contig"),
        "2 bands.*set channels to 2",
    ),
    "float.tif": (
        lambda path: tifffile.imwrite(path, RGB.astype(np.float32), photometric="rgb"),
        "floating-point.*set channels to 3",
    ),
    "float1.tif": (
        lambda path: tifffile.imwrite(path, RGB[..., 0].astype(np.float32)),
        "floating-point.*set channels to 1",
    ),
    "signed.tif": (
        lambda path: tifffile.imwrite(path, WIDE.astype(np.int16), photometric="rgb"),
        "int16.*set channels to 3",
    ),
    "transparent.png": (transparent, "transparent.*set channels to 4"),
    "transparent.tif": (transparent, "transparent.*set channels to 4"),
    "grey.png": (lambda path: transparent(path, "LA"), "transparent.*set channels to 2"),
    "palette.png": (lambda path: transparent(path, "P"), "transparent.*without alpha"),
    "key.png": (lambda path: transparent(path, "colour key"), "transparent.*without alpha"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_rgb_would_leave_out_is_refused_and_names_the_key(tmp_path, name):
    write, message = UNREADABLE[name]
    write(tmp_path / name)
    readers = (
        read_image,
        lambda path: load_header(path, None),
        lambda path: read_picture(path, 10**6),
        lambda path: read_image(Image.open(path)),
    )
    for read in readers if name not in ("five.tif", "two.tif", "float.tif", "signed.tif") else readers[:3]:
        with pytest.raises(UserError, match=rf"{name}: .*{message}") as caught:
            read(str(tmp_path / name))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name, channels", [("pages.tif", 24), ("infrared.tif", 4), ("five.tif", 5), ("float.tif", 3)])
def test_the_key_that_the_message_names_reads_all_of_it(tmp_path, name, channels):
    UNREADABLE[name][0](tmp_path / name)
    got = read_channels(str(tmp_path / name), channels)
    assert got.shape == (24, 32, channels)
    assert np.array_equal(got[..., 0], RGB[..., 0])
    if name == "infrared.tif":
        assert np.array_equal(got[..., 3], RGB[..., 0])


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_the_fourth_band_of_a_compressed_tiff(tmp_path, compression):
    image = Image.fromarray(np.dstack([RGB, RGB[..., 1]]), "RGBX")
    image.save(tmp_path / "x.tif", compression=compression)
    assert np.array_equal(read_channels(str(tmp_path / "x.tif"), 4), np.dstack([RGB, RGB[..., 1]]))
    with pytest.raises(UserError, match="set channels to 4"):
        read_image(str(tmp_path / "x.tif"))


SIXTEEN_BITS = {
    "contiguous.tif": lambda path, array: tifffile.imwrite(path, array, photometric="rgb"),
    "planes.tif": lambda path, array: tifffile.imwrite(
        path, array.transpose(2, 0, 1), photometric="rgb", planarconfig="separate"
    ),
    "tiles.tif": lambda path, array: tifffile.imwrite(path, array, photometric="rgb", tile=(16, 16)),
    "big-endian.tif": lambda path, array: tifffile.imwrite(path, array, photometric="rgb", byteorder=">"),
    "deflate.tif": lambda path, array: tifffile.imwrite(path, array, photometric="rgb", compression="zlib"),
    "photograph.png": png16,
}


@pytest.mark.parametrize("name", SIXTEEN_BITS)
@pytest.mark.parametrize("bits", [12, 16])
def test_sixteen_bits_of_colour_are_read_as_those_of_grey(tmp_path, name, bits):
    array = WIDE if bits == 16 else WIDE // 16
    SIXTEEN_BITS[name](tmp_path / name, array)
    expected = (array // (257 if bits == 16 else 16)).astype(np.uint8)
    path = str(tmp_path / name)
    assert np.array_equal(read_image(path), expected)
    assert np.array_equal(read_image(Image.open(path)), expected)
    assert np.array_equal(read_channels(path, 3), array)
    header = load_header(path, None)
    assert (header.height, header.width) == (24, 32)


def test_previews_overviews_and_depth_maps_are_no_pictures_of_their_own(tmp_path):
    with tifffile.TiffWriter(tmp_path / "overviews.tif") as file:
        file.write(RGB, photometric="rgb")
        file.write(RGB[::2, ::2], photometric="rgb", subfiletype=1)
    image = Image.fromarray(RGB)
    image.save(tmp_path / "phone.jpg", format="MPO", quality=100, save_all=True, append_images=[image.resize((8, 6))])
    assert np.array_equal(read_image(str(tmp_path / "overviews.tif")), RGB)
    assert read_image(str(tmp_path / "phone.jpg")).shape == RGB.shape
    image.convert("RGBA").save(tmp_path / "opaque.png")
    assert np.array_equal(read_image(str(tmp_path / "opaque.png")), RGB)


def test_a_picture_that_its_owner_made_smaller_is_not_read_again(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", WIDE, photometric="rgb")
    with Image.open(tmp_path / "a.tif") as image:
        image.thumbnail((12, 12))
        assert read_image(image).shape == (image.height, image.width, 3)


def test_a_frame_that_a_caller_chose_is_read(tmp_path):
    frames(tmp_path / "x.tif")
    with Image.open(tmp_path / "x.tif") as image:
        image.seek(3)
        assert np.array_equal(read_image(image), np.roll(RGB, 3, axis=0))


def on_layer(path, colour, mode="RGBA", kind=None):
    """A disc on a transparent layer: its colour lies everywhere (kind "everywhere") or below the disc only."""
    grey = np.full(DISC.shape, colour, np.uint8) if kind == "everywhere" else np.where(DISC, colour, 0)
    layer = Image.merge(
        "LA", [Image.fromarray(grey.astype(np.uint8)), Image.fromarray(np.where(DISC, 255, 0).astype(np.uint8))]
    )
    layer.convert(mode).save(path)


LAYERS = {
    "white RGBA": {"colour": 255},
    "white everywhere RGBA": {"colour": 255, "kind": "everywhere"},
    "black RGBA": {"colour": 0},
    "ones LA": {"colour": 1, "mode": "LA"},
    "white everywhere LA": {"colour": 255, "mode": "LA", "kind": "everywhere"},
}


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_mask_on_a_transparent_layer_is_refused_or_read_by_its_alpha(tmp_path, name, suffix):
    path = tmp_path / f"m.{suffix}"
    on_layer(path, **LAYERS[name])
    for read in (read_mask, read_mask_header, lambda path: read_binary_mask(path, 10**6)):
        with pytest.raises(UserError, match=rf"m\.{suffix}: .*transparent.*set mask_values to alpha"):
            read(str(path))
    stored = read_mask(str(path), content="alpha")
    assert np.array_equal(MaskEncoding("alpha").decode(stored, False, "m"), DISC)
    with pytest.raises(UserError, match="transparent"):
        read_mask(np.array(Image.open(path).convert("RGBA")))


MASKS = {
    "two bits.png": lambda path: Image.fromarray(DISC.astype(np.uint8) * 3).save(path, bits=2),
    "maxval.pgm": lambda path: path.write_bytes(b"P5 32 24 3\n" + (DISC.astype(np.uint8) * 3).tobytes()),
    "plain.pgm": lambda path: path.write_text("P2 32 24 3\n" + " ".join(map(str, (DISC * 3).ravel()))),
    "float.tif": lambda path: tifffile.imwrite(path, DISC.astype(np.float32) * 3),
    "int32.tif": lambda path: tifffile.imwrite(path, DISC.astype(np.int32) * 3),
    "uint16.png": lambda path: Image.fromarray(DISC.astype(np.uint16) * 3).save(path),
    "wide.png": lambda path: png16(path, np.repeat(DISC[..., None], 3, axis=2).astype(np.uint16) * 3),
    "opaque.png": lambda path: Image.fromarray(DISC.astype(np.uint8) * 3).convert("RGBA").save(path),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks_keep_the_values_that_their_file_stores(tmp_path, name):
    MASKS[name](tmp_path / name)
    got = read_mask(str(tmp_path / name))
    assert got.dtype == np.uint8 and np.array_equal(got, DISC * 3)


MASK_REFUSALS = {
    "pages.tif": (frames, "8 pages"),
    "animated.png": (frames, "8 frames"),
    "animated.gif": (frames, "8 frames"),
    "five.tif": (UNREADABLE["five.tif"][0], r"\(24, 32, 5\)"),
}


@pytest.mark.parametrize("name", MASK_REFUSALS)
def test_masks_of_more_than_a_value_a_pixel_are_refused(tmp_path, name):
    write, message = MASK_REFUSALS[name]
    write(tmp_path / name)
    with pytest.raises(UserError, match=rf"{name}: .*{message}"):
        read_mask(str(tmp_path / name))
    with pytest.raises(UserError, match=rf"{name}: .*{message}"):
        read_mask_header(str(tmp_path / name))


def folder_of(root, mask, suffix="tif", count=6):
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.roll(RGB, number, axis=1)).save(root / "images" / f"{number}.png")
        path = root / "masks" / f"{number}.{suffix}"
        if suffix == "tif":
            tifffile.imwrite(path, mask)
        else:
            Image.fromarray(mask).save(path)
    return root


ANY_VALUES = {
    "ids above 255": (DISC * 300).astype(np.uint16),
    "ids above 65535": (DISC * 70000).astype(np.int32),
    "int32 of one": DISC.astype(np.int32),
    "float of one": DISC.astype(np.float32),
    "float of a half": (DISC * 0.5).astype(np.float32),
    "float64": DISC * 1e6,
    "uint16 pictures": (DISC * 65535).astype(np.uint16),
    "uint32": (DISC * 1000).astype(np.uint32),
}


@pytest.mark.parametrize("name", ANY_VALUES)
def test_binary_takes_everything_above_0(tmp_path, name):
    data = load_segmentation_dataset(folder_of(tmp_path / "data", ANY_VALUES[name]), mask_values="binary")
    for split in (data.train, data.val, data.test):
        assert all(np.array_equal(split[index].mask, DISC) for index in range(len(split)))
    diagnosis = examine_dataset(tmp_path / "data", mask_values="binary", processes=0, mask_size=64)
    codes = {one.code for one in diagnosis.findings.ordered() if one.severity == "error"}
    assert codes <= {"leakage"}, diagnosis.findings.lines()


@pytest.mark.parametrize("mask_values", ["auto", "index"])
@pytest.mark.parametrize("name", ["ids above 255", "float of a half", "uint16 pictures"])
def test_other_encodings_say_which_value_and_which_key(tmp_path, name, mask_values):
    value = ANY_VALUES[name].max()
    folder_of(tmp_path / "data", ANY_VALUES[name])
    with pytest.raises(UserError, match=rf"mask value {value:g}.*set mask_values to binary.*label_map"):
        load_segmentation_dataset(tmp_path / "data", mask_values=mask_values)


def test_label_map_takes_any_stored_value(tmp_path):
    mask = np.where(DISC, 26001, -1).astype(np.int32)
    mask[0] = 0
    folder_of(tmp_path / "data", mask)
    data = load_segmentation_dataset(tmp_path / "data", label_map={26001: 1, -1: 255})
    expected = np.where(DISC, 1, 255)
    expected[0] = 0
    assert np.array_equal(data.train[0].mask, expected)
    with pytest.raises(UserError, match=r"mask value -1, below 0.*label_map"):
        load_segmentation_dataset(tmp_path / "data", mask_values="binary")


def soft_disc() -> tuple[np.ndarray, np.ndarray]:
    """An anti-aliased disc of 0..255, and the disc that its middle level bounds."""
    rows, columns = np.mgrid[:60, :60] + 0.5
    distance = np.hypot(rows - 30, columns - 30)
    return (np.clip((12 - distance) / 4 + 0.5, 0, 1) * 255).round().astype(np.uint8), distance < 12


def test_a_threshold_cuts_soft_edges_in_the_middle(tmp_path):
    soft, disc = soft_disc()
    root = folder_of(tmp_path / "data", soft, "png")
    for path in (root / "images").iterdir():
        Image.open(path).resize((60, 60)).save(path)
    plain = load_segmentation_dataset(root, mask_values="binary")
    assert (plain.train[0].mask == (soft > 0)).all() and (soft > 0).sum() > 1.3 * disc.sum()
    assert "soft edges" in plain.notes[0] and "mask_threshold: 127" in plain.notes[0]
    for mask_values in ("auto", "binary"):
        data = load_segmentation_dataset(root, mask_values=mask_values, mask_threshold=127)
        assert data.mask_values == "binary" and not any("soft" in note for note in data.notes)
        assert np.array_equal(data.train[0].mask, disc) or np.array_equal(data.train[0].mask, soft > 127)
        assert abs(int(data.train[0].mask.sum()) - int(disc.sum())) < 0.03 * disc.sum()
    found = examine_dataset(root, mask_values="binary", processes=0).findings.ordered()
    warned = next(one for one in found if one.code == "soft-edges")
    assert f"{(soft > 0).sum()} pixels above 0" in warned.value and "mask_threshold to 127" in warned.fix
    with pytest.raises(UserError, match="mask_threshold"):
        load_segmentation_dataset(root)  # offers it
    for wrong in ({"mask_values": "index", "mask_threshold": 3}, {"mask_threshold": -1}):
        with pytest.raises(UserError, match=r"^mask_threshold: "):
            load_segmentation_dataset(root, **wrong)


def test_masks_on_transparent_layers_are_a_data_set(tmp_path):
    root = folder_of(tmp_path / "data", DISC.astype(np.uint8), "png")
    for path in (root / "masks").iterdir():
        on_layer(path, 0)
    with pytest.raises(UserError, match="set mask_values to alpha"):
        load_segmentation_dataset(root)
    data = load_segmentation_dataset(root, mask_values="alpha")
    assert data.mask_values == "alpha" and np.array_equal(data.train[0].mask, DISC)
    assert examine_dataset(root, mask_values="alpha", processes=0).encoding.mask_values == "alpha"
    (root / "masks/0.png").unlink()
    Image.fromarray(DISC.astype(np.uint8)).save(root / "masks/0.png")
    with pytest.raises(UserError, match=r"0\.png: a mask without an alpha channel; set mask_values"):
        load_segmentation_dataset(root, mask_values="alpha")


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_an_image_beyond_pillows_limit_says_what_to_do(tmp_path, monkeypatch, channels):
    path = tmp_path / ("orthophoto.tif" if channels else "orthophoto.png")
    Image.fromarray(RGB if channels != 1 else RGB[..., 0]).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(UserError, match=r"orthophoto\..*pixels that are read at once; cut it into smaller images"):
        load_image(str(path), channels)
    with pytest.raises(UserError, match=r"orthophoto\..*cut it into smaller images"):
        load_header(str(path), channels)


@pytest.mark.parametrize(
    "name, message", [("pages.tif", "8 pages"), ("animated.png", "8 frames"), ("infrared.tif", None)]
)
def test_convert_refuses_several_pictures_and_copies_every_band(tmp_path, name, message):
    (tmp_path / "source").mkdir()
    UNREADABLE[name][0](tmp_path / "source" / name)
    shape = {"label": "cell", "points": [[2, 2], [20, 2], [20, 20]], "shape_type": "polygon"}
    content = {"shapes": [shape], "imagePath": name, "imageHeight": 24, "imageWidth": 32}
    (tmp_path / "source/x.json").write_text(json.dumps(content))
    if message is not None:
        with pytest.raises(UserError, match=rf"{name}: {message}, of which only one would be read"):
            convert_annotations("labelme", tmp_path / "source", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    convert_annotations("labelme", tmp_path / "source", tmp_path / "out")
    (written,) = (tmp_path / "out/images").iterdir()
    assert written.read_bytes() == (tmp_path / "source" / name).read_bytes()
