"""Training on tiles: where they lie, that they hold foreground, what is read for them, and runs by the command."""

import json

import numpy as np
import pytest
import yaml
from geotiffs import SIZES, make_scenes, write_geotiff
from PIL import Image

from hf_sam_adapt.cli import main
from hf_sam_adapt.data import load_segmentation_dataset, rasters
from hf_sam_adapt.data.augment import augment
from hf_sam_adapt.data.random_tiles import RandomTiles
from hf_sam_adapt.data.tiles import Tiles
from hf_sam_adapt.training.batches import TrainingSamples


def scenes(root, size=(300, 340)):
    """One small object in each scene: a tile that lies anywhere hardly holds it."""
    for split, count in (("train", 2), ("val", 1), ("test", 1)):
        for number in range(count):
            mask = np.zeros(size, np.uint8)
            top, left = np.random.randint(0, size[0] - 6), np.random.randint(0, size[1] - 6)
            mask[top : top + 6, left : left + 6] = 1
            image = np.random.randint(0, 120, (*size, 3), dtype=np.uint8) + 100 * mask[..., None]
            for kind, values in (("images", image), ("masks", mask)):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
                write_geotiff(root / split / kind / f"{number}.tif", values)
    return load_segmentation_dataset(str(root))


def test_tiles_hold_foreground_as_often_as_asked(tmp_path):
    data = scenes(tmp_path)
    held = {}
    for share in (0.0, 0.5, 1.0):
        tiles = RandomTiles(data.train, Tiles(48, 0), share, seed=3)
        assert len(tiles) == 2 * 7 * 8
        drawn = [tiles.draw(0, index)[0] for index in range(len(tiles))]
        assert all(sample.image.shape == (48, 48, 3) and sample.mask.shape == (48, 48) for sample in drawn)
        held[share] = np.mean([bool((sample.mask == 1).any()) for sample in drawn])
    assert held[0.0] < 0.2 and 0.35 < held[0.5] < 0.7 and held[1.0] == 1


def test_a_tile_comes_from_seed_epoch_and_index_alone(tmp_path):
    data = scenes(tmp_path)
    tiles = [RandomTiles(data.train, Tiles(48, 0), 0.5, seed) for seed in (0, 0, 1)]
    first, again, other = (one.draw(2, 11)[0] for one in tiles)
    assert np.array_equal(first.image, again.image) and np.array_equal(first.mask, again.mask)
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, tiles[0].draw(3, 11)[0].image)
    # The tile is a part of its image, at its scale.
    whole = data.train[0].image
    (top, left), *_ = np.argwhere((whole[:-47, :-47] == first.image[0, 0]).all(axis=2) & _fits(whole, first.image))
    assert np.array_equal(whole[top : top + 48, left : left + 48], first.image)


def _fits(whole, part):
    return (whole[1:-46, 1:-46] == part[1, 1]).all(axis=2) & (whole[47:, 47:] == part[-1, -1]).all(axis=2)


def test_only_a_part_of_the_file_is_read(tmp_path, monkeypatch):
    data, pixels = scenes(tmp_path), []
    read = rasters._ByRasterio.read

    def counted(self, window):
        pixels.append(window.height * window.width)
        return read(self, window)

    tiles = RandomTiles(data.train, Tiles(48, 0), 1.0, seed=0)
    tiles.draw(0, 5)  # looks for the foreground once
    monkeypatch.setattr(rasters._ByRasterio, "read", counted)
    tiles.draw(1, 5)
    assert pixels and max(pixels) <= 48 * 48 and sum(pixels) <= 4 * 48 * 48


def test_small_images_and_masks_without_foreground(tmp_path):
    data = load_segmentation_dataset(str(make_scenes(tmp_path / "data")))
    tiles = RandomTiles(data.train, Tiles(64, 8), 1.0, seed=0)
    shapes = {tiles.draw(0, index)[0].image.shape[:2] for index in range(len(tiles))}
    assert shapes == {(64, 64), SIZES[1]}  # the second is smaller than a tile
    auto = RandomTiles(data.train, Tiles(64, 8, larger_than=180), 0.5, seed=0)
    assert len(auto) == 2 + len(Tiles(64, 8).grid(SIZES[2]))
    Image.fromarray(np.zeros((100, 110), np.uint8)).save(tmp_path / "m.png")
    masks = tmp_path / "data/train/masks"
    write_geotiff(masks / "0.tif", np.zeros(SIZES[0], np.uint8))
    again = load_segmentation_dataset(str(tmp_path / "data"))
    sample, _ = RandomTiles(again.train, Tiles(64, 8), 1.0, seed=0).draw(0, 0)
    assert sample.mask.shape == (64, 64) and not (sample.mask == 1).any()


@pytest.mark.parametrize(("name", "steps"), [("vflip", 2), ("rotate", 4)])
def test_images_of_the_sky_and_the_microscope_have_no_upright(name, steps):
    image = np.random.randint(0, 256, (20, 30, 3), dtype=np.uint8)
    mask = image[..., 0] // 128
    found = {}
    for seed in range(40):
        turned, moved = augment(image, mask, np.random.default_rng(seed), [name])
        assert np.array_equal(moved, turned[..., 0] // 128)  # the mask goes with its image
        found[turned.tobytes()] = turned
    wanted = [image, image[::-1]] if name == "vflip" else [np.rot90(image, turns) for turns in range(4)]
    assert set(found) == {np.ascontiguousarray(one).tobytes() for one in wanted} and len(found) == steps


def test_objects_go_with_their_tile(tmp_path, sam_folder):
    data = scenes(tmp_path)
    numbered = np.zeros((300, 340), np.uint8)
    numbered[:] = np.arange(340) % 200
    data.train.instances = lambda index: numbered
    tiles = RandomTiles(data.train, Tiles(48, 0), 0.5, seed=0)
    sample, objects = tiles.draw(0, 3, instances=True)
    assert objects.shape == sample.mask.shape and len(np.unique(objects)) == 48
    assert tiles.draw(0, 3)[1] is None
    from hf_sam_adapt.inference.loading import load_base

    _, processor = load_base(sam_folder)
    packed = TrainingSamples(tiles, processor, ["box", "none"], ["flip", "rotate", "colour"], 0)[0, 3]
    assert packed["pixel_values"].shape == (1, 3, 64, 64)


def test_a_run_on_tiles(tmp_path, sam_folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = make_scenes(tmp_path / "data")
    command = ["train", "--dataset", str(root), "--model", sam_folder, "--output_dir", str(tmp_path / "run")]
    command += ["--max_steps", "2", "--batch_size", "2", "--tile", "60", "--augment", "flip", "vflip", "rotate"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "tile: 60 is rounded up to 64" in shown and "cut into 18 tiles an epoch" in shown
    recipe = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    assert (recipe["tile"], recipe["overlap"], recipe["tile_foreground"]) == (64, 8, 0.5)
    assert (tmp_path / "run/samples.png").is_file()
    before = json.loads((tmp_path / "run/metrics.json").read_text())["test"]
    # `evaluate` takes the run's tiles.
    assert main(["evaluate", str(tmp_path / "run"), "--output_dir", str(tmp_path / "scores")]) == 0
    again = json.loads((tmp_path / "scores/metrics.json").read_text())["test"]
    assert again["none"]["adapted"] == pytest.approx(before["none"]["adapted"])
    # And so does `predict`.
    assert main(["predict", str(root / "test/images"), "--adapter", str(tmp_path / "run"), "--output_dir", "out"]) == 0
    records = json.loads((tmp_path / "out/predictions.json").read_text())
    assert records["settings"]["tile"] == 64 and records["predictions"][0]["tiles"] == 9
    assert main(["evaluate", str(tmp_path / "run"), "--tile", "200", "--output_dir", str(tmp_path / "whole")]) == 0
    whole = json.loads((tmp_path / "whole/metrics.json").read_text())["test"]
    assert whole["none"]["adapted"]["iou"] != pytest.approx(before["none"]["adapted"]["iou"])
    assert main(["evaluate", str(tmp_path / "run"), "--instances", "components"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--tile", "64", "--overlap", "64"], "overlap: 64 is not smaller"),
        (["--overlap", "8"], "images are not cut"),
        (["--tile", "64", "--tile_foreground", "2"], "tile_foreground"),
        (
            ["--tile", "64", "--method", "decoder", "--cache_embeddings", "true", "--augment", "none"],
            "cache_embeddings",
        ),
    ],
)
def test_bad_keys_are_refused_before_anything_is_written(tmp_path, sam_folder, capsys, options, message):
    command = ["train", "--dataset", str(tmp_path), "--model", sam_folder, "--output_dir", str(tmp_path / "run")]
    assert main([*command, *options]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_classes_on_tiles(tmp_path, sam_folder):
    root = make_scenes(tmp_path / "data", classes=3)
    command = ["train", "--dataset", str(root), "--model", sam_folder, "--output_dir", str(tmp_path / "run")]
    command += ["--max_steps", "2", "--batch_size", "2", "--tile", "64", "--num_labels", "3", "--method", "cwsam"]
    assert main(command) == 0
    assert json.loads((tmp_path / "run/metrics.json").read_text())["test"]["none"]["adapted"]["miou"] is not None
    for key, value in (("--clicks", "2"), ("--prompt_sensitivity", "box")):
        assert main(["evaluate", str(tmp_path / "run"), key, value]) == 2
