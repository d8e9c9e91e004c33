"""The grid of tiles and the blending of their maps, beside a literal weighted mean."""

import numpy as np
import pytest
import torch

from hf_sam_adapt.data.tiles import Tiles, Window, resolve_tiles
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.blending import NOTHING, Blender, blended


GRIDS = [
    ((50, 70), 16, 4),
    ((50, 70), 16, 0),
    ((33, 16), 16, 5),
    ((61, 40), 16, 11),  # three tiles over some pixels
    ((10, 90), 16, 3),
    ((16, 16), 16, 4),
    ((9, 11), 16, 4),
]


@pytest.mark.parametrize(("size", "side", "overlap"), GRIDS)
def test_tiles_cover_the_image_and_overlap_as_asked(size, side, overlap):
    grid = Tiles(side, overlap).grid(size)
    shown, cells = np.zeros(size, int), np.zeros(size, int)
    for window in grid.windows:
        assert window.size == (min(side, size[0]), min(side, size[1])) and shown[window.slices].shape == window.size
        shown[window.slices] += 1
    for cell in grid.cells:
        cells[cell.slices] += 1
    assert shown.min() == 1 and (cells == 1).all()
    for starts, length in zip(grid.starts, size):
        assert len(starts) == 1 or (side - np.diff(starts) >= overlap).all()
        # One tile fewer would not do.
        assert len(starts) == 1 or (len(starts) - 1) * (side - overlap) + overlap < length


def literal_blend(grid, maps):
    """Every tile with the product of two ramps, divided by their sum: the definition, pixel by pixel."""
    total, weights = np.zeros((maps[0].shape[0], *grid.size)), np.zeros(grid.size)
    for number, window in enumerate(grid.windows):
        place = divmod(number, len(grid.starts[1]))
        one = np.ones(window.size)
        for axis in range(2):
            starts, tile, at = grid.starts[axis], window.size[axis], place[axis]
            for k in range(tile):
                ramp = 1.0
                if at > 0 and (common := starts[at - 1] + tile - starts[at]) > k:
                    ramp *= np.sin(np.pi / 2 * (k + 0.5) / common) ** 2
                if at + 1 < len(starts) and (common := starts[at] + tile - starts[at + 1]) > tile - 1 - k:
                    ramp *= np.sin(np.pi / 2 * (tile - k - 0.5) / common) ** 2
                one[(k, slice(None)) if axis == 0 else (slice(None), k)] *= ramp
        total[(slice(None), *window.slices)] += maps[number] * one
        weights[window.slices] += one
    return total / weights


def assembled(grid, maps):
    blender, result = Blender(grid), np.full((maps[0].shape[0], *grid.size), np.nan)
    for one in maps:
        cell, values = blender.add(torch.from_numpy(one))
        result[(slice(None), *cell.slices)] = values.numpy()
    return result


@pytest.mark.parametrize(("size", "side", "overlap"), GRIDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_blending_is_the_weighted_mean(size, side, overlap, channels):
    grid = Tiles(side, overlap).grid(size)
    maps = [np.random.randn(channels, *window.size) for window in grid.windows]
    found, wanted = assembled(grid, maps), literal_blend(grid, maps)
    assert np.abs(found - wanted).max() <= 2e-6 * np.abs(wanted).max()


@pytest.mark.parametrize(("size", "side", "overlap"), GRIDS)
def test_a_constant_stays_constant_and_a_single_tile_stays_itself(size, side, overlap):
    grid = Tiles(side, overlap).grid(size)
    constant = assembled(grid, [np.full((1, *window.size), 3.7, np.float32) for window in grid.windows])
    assert np.abs(constant - np.float32(3.7)).max() <= 1e-6
    maps = [np.random.randn(1, *window.size).astype(np.float32) for window in grid.windows]
    found, shown = assembled(grid, maps), np.zeros(size, int)
    for window in grid.windows:
        shown[window.slices] += 1
    for window, one in zip(grid.windows, maps):
        alone = shown[window.slices] == 1
        assert np.array_equal(found[0][window.slices][alone], one[0][alone])  # bit for bit


def test_a_shifted_grid_still_covers():
    plain, shifted = Tiles(16, 8).grid((60, 75)), Tiles(16, 8).grid((60, 75), shift=(3, -2))
    assert plain.starts != shifted.starts
    shown = np.zeros((60, 75), int)
    for window in shifted.windows:
        shown[window.slices] += 1
    assert shown.min() >= 1
    maps = [np.random.randn(1, *window.size) for window in shifted.windows]
    assert np.abs(assembled(shifted, maps) - literal_blend(shifted, maps)).max() < 1e-5


class Drawn:
    size = (40, 52)

    def __init__(self):
        self.pixels, self.data = np.random.rand(*self.size, 3).astype(np.float32), np.ones(self.size, bool)
        self.data[:20, :20] = False

    def image(self, window):
        return self.pixels[window.slices]

    def valid(self, window):
        return self.data[window.slices]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_tiles_without_data_are_not_predicted(batch_size):
    drawn, grid, seen = Drawn(), Tiles(16, 4).grid(Drawn.size), []

    def predict(images, windows):
        seen.extend(windows)
        means = [torch.from_numpy(image.mean(axis=2)) for image in images]
        return {"mean": [one[None] for one in means], "twice": [2 * one[None] for one in means]}

    result, covered = np.full(Drawn.size, np.nan), np.zeros(Drawn.size, int)
    for cell, values in blended(drawn, grid, predict, ["mean", "twice"], batch_size=batch_size):
        if cell.top >= 20:
            assert torch.allclose(2 * values["mean"], values["twice"], atol=1e-6)
        result[cell.slices] = values["twice"][0].numpy()
        covered[cell.slices] += 1
    assert (covered == 1).all() and Window(0, 0, 16, 16) not in seen and len(seen) == len(grid) - 1
    assert np.allclose(result[20:, 20:], 2 * drawn.pixels.mean(axis=2)[20:, 20:], atol=1e-5)
    assert (result[:10, :10] == NOTHING).all()


def test_what_the_keys_mean():
    assert resolve_tiles(None, None, 64, 8) == (None, [])
    tiles, notes = resolve_tiles(50, None, 64, 8)
    assert (tiles.side, tiles.overlap) == (56, 7) and "rounded up to 56" in notes[0]
    tiles, notes = resolve_tiles("auto", "auto", 64, 8)
    assert notes == [] and len(tiles.grid((128, 100))) == 1 and len(tiles.grid((129, 100))) > 1
    for tile, overlap in ((64, 64), (64, 100), (64, -1), (0, 0)):
        with pytest.raises(UserError):
            resolve_tiles(tile, overlap, 64, 8)
    with pytest.raises(UserError, match="not cut"):
        resolve_tiles(None, 8, 64, 8)
