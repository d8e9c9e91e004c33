"""Uploads of every kind: read as `predict` reads them, or refused in one line."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from hf_sam_adapt.data.images import read_image
from hf_sam_adapt.demo.images import LARGEST_SHOWN, SMALLEST_SHOWN, read_binary_mask, read_picture
from hf_sam_adapt.demo.session import Clicks, Session
from hf_sam_adapt.demo.training_images import _matched, check_pairs, read_pairs
from hf_sam_adapt.errors import UserError


RNG = np.random.default_rng()
PIXELS = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)


def save(path, image, **options):
    image.save(path, **options)
    return path


def rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    return save(path / "turned.png", Image.fromarray(PIXELS), exif=exif)


def test_masks_go_by_their_names_or_by_their_order(tmp_path):
    def files(*names):
        for number, name in enumerate(names):
            values = np.full((8, 8), 40 * number + 1, np.uint8)
            Image.fromarray(values).save(tmp_path / name)
        return [str(tmp_path / name) for name in names]

    images = files("a.png", "b.png")
    assert _matched(images, files("b_mask.png", "a_mask.png")) == files("a_mask.png", "b_mask.png")
    assert _matched(images, files("1.png", "2.png")) == files("1.png", "2.png")
    with pytest.raises(UserError, match=r"some masks are named like their images, but not a\.png, c_mask\.png"):
        _matched(images, files("b_mask.png", "c_mask.png"))
    pairs = read_pairs([images[0], images[1], images[0]], files("1.png", "2.png", "3.png"), 10**6)
    with pytest.raises(UserError, match=r"a\.png and a\.png are the same image"):
        check_pairs(pairs)


def test_exif_rotation(tmp_path):
    picture = read_picture(rotated(tmp_path), 10**6)
    assert picture.size == (60, 40)
    assert np.array_equal(picture.image, np.rot90(PIXELS, -1))
    assert np.array_equal(picture.image, np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "turned.png"))))


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
def test_modes_are_read_as_predict_reads_them(tmp_path, mode):
    if mode == "I;16":
        image = Image.fromarray(RNG.integers(0, 65536, (40, 60), dtype=np.uint16))
    else:
        image = Image.fromarray(PIXELS).convert(mode)
    path = save(tmp_path / ("image.tif" if mode == "CMYK" else "image.png"), image)
    picture = read_picture(path, 10**6)
    assert picture.image.shape == (40, 60, 3)
    assert np.array_equal(picture.image, read_image(path))
    assert len(np.unique(picture.image)) > 1


def test_very_large_images_are_shown_small_and_kept_large(tmp_path):
    path = save(tmp_path / "large.jpg", Image.fromarray(np.repeat(np.repeat(PIXELS, 75, 0), 75, 1)))
    picture = read_picture(path, 20_000_000)
    assert picture.size == (3000, 4500)
    assert max(picture.shown.shape) == LARGEST_SHOWN
    assert picture.scale == pytest.approx(4500 / LARGEST_SHOWN)
    with pytest.raises(UserError, match=r"large\.jpg: 4500x3000 pixels are 13.5 million, more than the 10 million"):
        read_picture(path, 10_000_000)


def test_decompression_bombs_are_refused_by_their_header(tmp_path):
    path = save(tmp_path / "bomb.png", Image.new("1", (20000, 20000)))
    with pytest.raises(UserError, match=r"bomb\.png"):
        read_picture(path, 50_000_000)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"x" * 40, b"<svg></svg>"])
def test_broken_files(tmp_path, content):
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(UserError, match=r"holiday\.png"):
        read_picture(tmp_path / "broken.png", 10**6, "holiday.png")
    with pytest.raises(UserError, match=r"holiday\.png"):
        read_binary_mask(tmp_path / "broken.png", 10**6, "holiday.png")


def test_truncated_file(tmp_path):
    whole = save(tmp_path / "whole.jpg", Image.fromarray(np.repeat(PIXELS, 20, 0))).read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"half\.jpg"):
        read_picture(tmp_path / "half.jpg", 10**6)


def test_no_file():
    with pytest.raises(UserError, match="no image"):
        read_picture(None, 10**6)


@pytest.mark.parametrize("values", [[0, 1], [0, 255], [0, 7, 200]])
def test_masks_above_zero_are_foreground(tmp_path, values):
    array = RNG.choice(np.array(values, np.uint8), (40, 60))
    path = save(tmp_path / "mask.png", Image.fromarray(array))
    assert np.array_equal(read_binary_mask(path, 10**6), array > 0)


def test_masks_with_ignored_pixels_and_lossy_ones(tmp_path):
    array = RNG.choice(np.array([0, 1, 255], np.uint8), (40, 60))
    assert np.array_equal(read_binary_mask(save(tmp_path / "a.png", Image.fromarray(array)), 10**6), array)
    blocks = np.zeros((48, 64), np.uint8)
    blocks[8:32, 16:40] = 255
    assert np.array_equal(read_binary_mask(save(tmp_path / "a.jpg", Image.fromarray(blocks)), 10**6), blocks > 127)


def test_clicks_on_the_shown_picture_are_pixels_of_the_image(tmp_path):
    session = Session()
    session.load(read_picture(save(tmp_path / "small.png", Image.fromarray(PIXELS)), 10**6))
    assert session.image.picture.shown.shape[1] == SMALLEST_SHOWN
    scale = SMALLEST_SHOWN / 60
    session.click(
        scale * 30 + scale / 2 - 0.5, scale * 10 + scale / 2 - 0.5, "positive"
    )  # the centre of pixel (30, 10)
    assert session.clicks.points == (pytest.approx((30, 10, 1)),)
    session.click(SMALLEST_SHOWN + 5, -4, "negative")
    assert session.clicks.points[1] == (59, 0, 0)
    session.undo()
    assert len(session.clicks.points) == 1
    session.click(500, 300, "box")
    assert session.clicks.box is None
    assert session.clicks.prompt().kind == "none"
    session.click(100, 50, "box")
    x0, y0, x1, y1 = session.clicks.box
    assert x0 < x1 and y0 < y1
    session.clear()
    assert session.clicks == Clicks()
    for _ in range(9):
        session.undo()
    assert session.clicks == Clicks()
