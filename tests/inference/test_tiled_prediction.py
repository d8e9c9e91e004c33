"""Prediction by tiles: the single pass of each crop in its interior, instances across borders, pools, classes."""

import numpy as np
import pytest
import torch
from geotiffs import write_geotiff
from sams import perturb

from hf_sam_adapt import ModaConfig, ModaModel, SamAdaptPredictor
from hf_sam_adapt.data.scenes import WholeImage, reduced
from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.data.tiles import Tiles, Window
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.instances import Instance
from hf_sam_adapt.inference.loading import build_model, load_base
from hf_sam_adapt.inference.tiled import cropped, joined, placed, within
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.reporting.results import WriteOptions, make_writers
from hf_sam_adapt.reporting.results.scene import predict_scene


SIDE, OVERLAP = 64, 16  # the tile is the network's input
METHODS = {"sam_adapter": {}, "cwsam": {"num_labels": 3}}


@pytest.fixture(scope="module", params=METHODS)
def predictor(request, sam_folder):
    base, processor = load_base(sam_folder)
    model = perturb(build_model(request.param, METHODS[request.param], base), std=0.2).eval()
    classes = ["soil", "crop", "weed"] if request.param == "cwsam" else None
    return SamAdaptPredictor(model, processor, classes=classes)


def drawn(size=(150, 170)) -> np.ndarray:
    return np.random.randint(0, 256, (*size, 3), dtype=np.uint8)


def logits_of(result) -> np.ndarray:
    return result.logits if result.logits.ndim == 3 else result.logits[None]


def test_where_one_tile_shows_a_pixel_it_is_the_single_pass_of_that_crop(predictor):
    image, grid = drawn(), Tiles(SIDE, OVERLAP).grid((150, 170))
    (found,) = predictor.predict([image], tile=SIDE, overlap=OVERLAP, batch_size=1)
    shown = np.zeros(image.shape[:2], int)
    for window in grid.windows:
        shown[window.slices] += 1
    compared = 0
    for window in grid.windows:
        (crop,) = predictor.predict([image[window.slices]])
        alone = shown[window.slices] == 1
        compared += int(alone.sum())
        inside = logits_of(found)[(slice(None), *window.slices)]
        assert np.array_equal(inside[:, alone], logits_of(crop)[:, alone])  # bit for bit
        assert np.array_equal(found.mask[window.slices][alone], crop.mask[alone])
    assert compared > 0.2 * shown.size


def test_the_batch_of_tiles_does_not_matter(predictor):
    image = drawn()
    one, many = (predictor.predict([image], tile=SIDE, overlap=OVERLAP, batch_size=size)[0] for size in (1, 5))
    difference = np.abs(logits_of(one) - logits_of(many)).max()
    assert difference <= 1e-5 * np.abs(logits_of(one)).max()
    assert not np.array_equal(logits_of(one)[:, :64, :64], logits_of(one)[:, 64:128, 64:128])


def test_a_small_image_is_predicted_as_a_whole(predictor):
    image = drawn((50, 60))
    whole, tiled = predictor.predict([image])[0], predictor.predict([image], tile=SIDE)[0]
    assert np.array_equal(whole.mask, tiled.mask) and np.array_equal(logits_of(whole), logits_of(tiled))
    large = drawn((120, 128))
    whole, auto = predictor.predict([large])[0], predictor.predict([large], tile="auto")[0]
    assert np.array_equal(logits_of(whole), logits_of(auto))
    assert not np.array_equal(logits_of(whole), logits_of(predictor.predict([large], tile=SIDE)[0]))


def test_files_arrays_and_rasters_agree(predictor, tmp_path):
    image = drawn()
    path = write_geotiff(tmp_path / "a.tif", image)
    results = predictor.predict([image, path], tile=SIDE, overlap=OVERLAP, batch_size=1)
    assert np.array_equal(logits_of(results[0]), logits_of(results[1]))


def test_bad_input(predictor):
    for keys, message in (
        ({"tile": 64, "overlap": 64}, "overlap: 64 is not"),
        ({"overlap": 8}, "images are not cut"),
        ({"tile": 0}, "tile: 0"),
    ):
        with pytest.raises(UserError, match=message):
            predictor.predict([drawn()], **keys)
    predictor.set_image(drawn((50, 60)))
    with pytest.raises(UserError, match="encoded as a whole"):
        predictor.predict(tile=64)


def test_a_shifted_grid_changes_little(tmp_path):
    """A drawn scene and `tiny`, whose weights are trained: a random network knows no neighbourhood."""
    image, _ = draw_sample("cells", "test", 0, size=(600, 640))
    predictor = SamAdaptPredictor.from_pretrained("tiny", device="cpu")
    maps = []
    for shift in ((0, 0), (24, -24)):
        tiles = Tiles(256, 128)
        grid = tiles.grid((600, 640), shift)
        run = predictor.run_tiles(Whole(image), ShiftedTiles(grid), batch_size=2)
        logits = torch.empty(1, 600, 640)
        for window, values in run:
            logits[(slice(None), *window.slices)] = values
        maps.append(logits[0].sigmoid())
    assert not torch.equal(*maps)
    # What a crop shows of a scene decides, so the mask moves where the model is unsure: see docs/large_images.md.
    assert (maps[0] - maps[1]).abs().mean() < 0.08
    # And no seam: across the border of a cell the map changes as much as elsewhere.
    steps = (maps[0][1:] - maps[0][:-1]).abs().mean(dim=1)
    borders = [start - 1 for start in Tiles(256, 128).grid((600, 640)).starts[0][1:]]
    assert steps[borders].mean() < 2 * steps.mean()


class Whole:
    place, nodata = None, None

    def __init__(self, pixels):
        self.pixels, self.size = pixels, pixels.shape[:2]

    def image(self, window):
        return self.pixels[window.slices]

    def valid(self, window):
        return None


class ShiftedTiles:
    def __init__(self, grid):
        self._grid = grid

    def grid(self, size):
        return self._grid


def test_prompts_go_to_the_tiles_that_they_lie_in():
    window = Window(50, 100, 64, 64)
    box = within(Prompt.box((90, 60, 120, 80), (0, 0, 20, 20)), window)
    assert box.boxes.tolist() == [[0, 10, 20, 30]]
    clicks = within(Prompt.clicks([(110, 60), (90, 60)], [1, 0]), window)
    assert clicks.points.tolist() == [[[10, 10], [0, 10]]] and clicks.point_labels.tolist() == [[1, 0]]
    assert len(within(Prompt.point((10, 10)), window)) == 0
    mask = np.zeros((200, 200), bool)
    mask[60:70, 110:130] = True
    inside = within(Prompt.mask(mask, np.flipud(mask)), window)
    assert inside.masks.shape == (1, 64, 64) and inside.masks.sum() == 200


def test_a_corrected_box_keeps_its_points_and_its_mask():
    masks = np.zeros((2, 200, 200), bool)
    masks[0, 60:70, 110:130] = True
    boxes, points = np.array([[90, 60, 120, 80], [0, 0, 20, 20]]), np.array([[[110, 60], [90, 60]], [[1, 1], [2, 2]]])
    whole = Prompt("box", boxes, points, np.array([[1, 0], [1, 1]]), masks, masks, labels=np.array([3, 4]))
    found = within(whole, Window(50, 100, 64, 64))
    assert found.boxes.tolist() == [[0, 10, 20, 30]] and found.points.tolist() == [[[10, 10], [0, 10]]]
    assert found.point_labels.tolist() == [[1, 0]] and found.labels.tolist() == [3]
    assert found.masks.shape == found.targets.shape == (1, 64, 64) and found.masks.sum() == 200


@pytest.mark.parametrize("left", [0, 64])
def test_between_two_tiles_one_has_the_prompt(left):
    window = Window(0, left, 64, 64)
    for x, of in ((63.5, 0), (63.99, 0), (64, 64), (127.9, 64)):
        place = [] if of != left else [[pytest.approx(x - left), 5]]
        assert within(Prompt.point((x, 5)), window).points.reshape(-1, 2).tolist() == place
        assert len(within(Prompt.box((x, 5, x, 9)), window)) == len(place)


def test_the_last_half_pixel_of_an_image(sam_folder):
    base, processor = load_base(sam_folder)
    predictor, image = SamAdaptPredictor(base.eval(), processor), drawn((50, 60))
    for prompt in (Prompt.point((59.9, 49.9)), Prompt("box", np.array([[59.4, 20, 59.8, 49.9]], np.float32))):
        whole, tiled = predictor.predict([image], prompt)[0], predictor.predict([image], prompt, tile=SIDE)[0]
        assert np.array_equal(whole.logits, tiled.logits)


def test_a_box_is_found_in_its_tiles_alone(sam_folder):
    base, processor = load_base(sam_folder)
    predictor = SamAdaptPredictor(base.eval(), processor)
    image, box = drawn(), Prompt.box((10, 10, 40, 40))
    (found,) = predictor.predict([image], box, tile=SIDE, overlap=OVERLAP)
    (crop,) = predictor.predict([image[:64, :64]], box)
    alone = (slice(0, 35), slice(0, 35))  # no other tile shows them
    assert np.allclose(found.logits[alone], crop.logits[alone], atol=1e-4)
    assert np.allclose(found.logits[70:, 70:], -10, atol=1e-5) and not found.mask[70:, 70:].any()


def test_an_object_across_tiles_is_one_instance():
    size, grid = (100, 100), Tiles(40, 10).grid((100, 100))
    discs, truth = [((30, 50), 22), ((80, 20), 8), ((80, 80), 9)], []
    rows, columns = np.mgrid[:100, :100]
    for (row, column), radius in discs:
        truth.append((rows - row) ** 2 + (columns - column) ** 2 < radius**2)
    windows, found = list(grid.windows), []
    for window in windows:
        parts = [mask[window.slices] for mask in truth]
        found.append([placed(Instance(part, 0.5), window, size) for part in parts if part.any()])
    assert sum(map(len, found)) > 6
    joint = joined(found, windows)
    assert len(joint) == 3
    for mask in truth:
        assert any(np.array_equal(instance.mask, mask) for instance in joint)
    for instance in joint:
        columns_, rows_ = np.flatnonzero(instance.mask.any(axis=0)), np.flatnonzero(instance.mask.any(axis=1))
        box = [columns_[0], rows_[0], columns_[-1] - columns_[0] + 1, rows_[-1] - rows_[0] + 1]
        assert instance.box == box
        assert np.array_equal(cropped(instance, Window(20, 30, 50, 60)), instance.mask[20:70, 30:90])


@pytest.mark.parametrize("source", ["components", "grid"])
def test_instances_of_tiles(sam_folder, source):
    base, processor = load_base(sam_folder)
    predictor = SamAdaptPredictor(base.eval(), processor, has_estimate=False)
    image, _ = draw_sample("cells", "test", 3, size=(130, 150))
    (found,) = predictor.predict([image], tile=SIDE, overlap=OVERLAP, instances=source, points_per_side=4)
    assert found.instances is not None
    if source == "components":
        union = np.zeros(image.shape[:2], bool)
        for instance in found.instances:
            assert not (union & instance.mask).any() and (found.mask[instance.mask]).all()
            union |= instance.mask
        assert found.mask[union].all()


def test_instances_of_tiles_keep_to_the_threshold():
    predictor, (image, _) = SamAdaptPredictor.from_pretrained("tiny"), draw_sample("cells", "test", 3, size=(100, 120))
    how = {"instances": "grid", "points_per_side": 8, "threshold": 0.9}
    whole, tiled = (predictor.predict([image], tile=tile, **how)[0].instances for tile in (None, 256))
    assert len(whole) > 1 and len(whole) == len(tiled)
    for one, other in zip(whole, tiled):
        assert np.array_equal(one.mask, other.mask)


@pytest.fixture(scope="module")
def pool(sam_folder):
    base, processor = load_base(sam_folder)
    model = ModaModel(base, ModaConfig(inner={"peft_type": "SAM_DECODER"}), "pool")
    sides = {"dark": (0, 60), "bright": (190, 256)}
    for name, (low, high) in sides.items():
        model.add_domain(name)
        perturb(model, seed=len(name), std=0.2)
        images = [np.random.randint(low, high, (64, 64, 3), dtype=np.uint8) for _ in range(6)]
        model.observe(processor(images)["pixel_values"])
        model.finish_domain()
    return SamAdaptPredictor(model.eval(), processor)


def half_bright():
    parts = [np.random.randint(0, 60, (150, 90, 3)), np.random.randint(190, 256, (150, 60, 3))]
    return np.concatenate(parts, axis=1).astype(np.uint8)


def test_a_scene_of_a_pool_says_where_its_tiles_went(pool, tmp_path):
    path = write_geotiff(tmp_path / "scene.tif", half_bright())
    options = WriteOptions(None)
    writers = make_writers(["geotiff"], tmp_path, options)
    record = predict_scene(pool, path, "out", writers, options, Tiles(SIDE, 8), 0.0, 1, route="tile")
    assert list(record["router"]) == ["dark", "bright"] and len(record["domains"]) == 2
    assert record["domain"] == max(record["domains"], key=record["domains"].get)
    assert sum(record["router"].values()) == pytest.approx(1)


def test_a_pool_routes_an_image_or_each_tile(pool):
    image = half_bright()
    runs = {route: pool.run_tiles(Whole(image), Tiles(SIDE, 8), route=route) for route in ("image", "tile")}
    for run in runs.values():
        assert sum(1 for _ in run) == len(run.grid)
        assert sum(run.domains.values()) == len(run.grid)
    assert len(runs["image"].domains) == 1 and len(runs["tile"].domains) == 2
    of_tiles = [pool.predict([image[part.slices]])[0].router_scores for part in runs["tile"].grid.windows]
    expected = {name: np.mean([one[name] for one in of_tiles]) for name in pool.model.domains}
    assert runs["tile"].router_scores == pytest.approx(expected, abs=1e-4)
    (of_image,) = pool.predict([reduced(WholeImage(image), 2 * SIDE)[0]])
    assert runs["image"].router_scores == pytest.approx(of_image.router_scores, abs=1e-4)
    (result,) = pool.predict([image], tile=SIDE, overlap=8, domain="bright")
    assert result.domain == "bright"
