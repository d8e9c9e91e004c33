"""Drawn scenes: seeded, aligned with their masks, of every kind; the pool on disk holds the same ones."""

import numpy as np
import pytest
from tiny_images import pool as pool_module
from tiny_images.parts import random_material
from tiny_images.pool import MAX_PARTS, MIN_PART, connected_parts, draw_pool, draw_record
from tiny_images.scenes import SCENES, draw_scene

from hf_sam_adapt.data.drawing.materials import FAMILIES
from hf_sam_adapt.data.drawing.noise import cell_distances, smooth_noise, soften
from hf_sam_adapt.data.drawing.shapes import Stencil, patch


@pytest.mark.parametrize("size", [(64, 96), (128, 128)])
def test_a_scene_is_its_seed_and_index(size):
    scenes = [draw_scene(5, index, size) for index in range(8)]
    for index, scene in enumerate(scenes):
        again = draw_scene(5, index, size)
        for name in ("image", "objects", "salient"):
            assert np.array_equal(getattr(scene, name), getattr(again, name))
        assert scene.image.shape == (*size, 3) and scene.objects.shape == scene.salient.shape == size
        assert scene.image.dtype == scene.objects.dtype == scene.salient.dtype == np.uint8
        assert set(np.unique(scene.salient)) <= {0, 1}
        assert not np.array_equal(scene.image, draw_scene(6, index, size).image)
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)
    assert sum(bool(scene.objects.any()) for scene in scenes) >= 7


@pytest.mark.parametrize("maker", [maker for maker, _ in SCENES], ids=lambda maker: maker.__name__)
def test_every_kind_of_scene_shows_its_objects(maker):
    """An object can be seen: over several scenes the picture changes more at the objects' borders than elsewhere."""
    at_borders, elsewhere = [], []
    for seed in range(6):
        canvas = maker(np.random.default_rng(seed), (128, 128))
        assert canvas.picture.shape == (128, 128, 3) and np.isfinite(canvas.picture).all()
        assert canvas.objects.any() and canvas.objects.max() <= canvas.count
        change = np.abs(np.diff(canvas.picture.mean(2), axis=1))
        border = np.diff(canvas.objects.astype(int), axis=1) != 0
        at_borders.append(change[border].mean())
        elsewhere.append(change[~border].mean())
    assert np.mean(at_borders) > 1.2 * np.mean(elsewhere)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_material_painted_twice_is_alike_and_not_equal(family):
    rng = np.random.default_rng(3)
    material = random_material(rng, np.full(3, 0.5))
    material = type(material)(**{**material.__dict__, "family": family, "scale": 8.0})
    first, second = (material.pattern(rng, (96, 96)) for _ in range(2))
    assert first.shape == (96, 96) and not np.array_equal(first, second)
    assert first.std() == pytest.approx(second.std(), rel=0.5)


def test_noise_has_its_scale_and_voronoi_borders_lie_between_cells():
    rng = np.random.default_rng(0)
    fine, coarse = (np.abs(np.diff(smooth_noise(rng, (128, 96), scale), axis=0)).mean() for scale in (3.0, 30.0))
    assert fine > 4 * coarse
    nearest, gap = cell_distances(rng, (128, 96), 12)
    between = np.diff(nearest, axis=1) != 0
    assert gap[:, 1:][between].mean() < 0.3 * gap[:, 1:][~between].mean()
    field = rng.standard_normal((64, 64)).astype(np.float32)
    assert soften(field, 4.0).std() < 0.4 * field.std()


def test_coverage_is_the_share_of_a_pixel_inside():
    stencil = Stencil((20, 30))
    stencil.polygon(np.array([(5, 4), (14.5, 4), (14.5, 9.5), (5, 9.5)]))
    coverage = stencil.coverage()
    assert coverage.shape == (20, 30) and coverage[6, 8] == 1 and coverage[15, 25] == 0
    assert coverage.sum() == pytest.approx(10 * 6, rel=0.1)
    assert patch(np.random.default_rng(1), (128, 128), 0.25).mean() == pytest.approx(0.25, abs=0.02)


def test_parts_are_numbered_from_the_largest():
    mask = np.zeros((100, 100), np.uint8)
    mask[5:10, 5:10] = 1
    mask[30:60, 30:60] = 1
    mask[60:70, 60:70] = 1  # touches the second at a corner: one part
    mask[90, 90] = 1  # below MIN_PART
    parts = connected_parts(mask)
    assert (parts == 1).sum() == 1000 and (parts == 2).sum() == 25 and parts.max() == 2
    assert parts[90, 90] == 0 and 1 < MIN_PART * mask.size
    crowd = np.zeros((100, 100), np.uint8)
    crowd[::10, ::10] = crowd[1::10, ::10] = crowd[::10, 1::10] = crowd[2::10, ::10] = crowd[::10, 2::10] = 1
    crowd[::10, 3::10] = 1
    assert connected_parts(crowd).max() == MAX_PARTS


def test_pool_holds_the_scenes_and_keeps_finished_files(tmp_path, monkeypatch):
    monkeypatch.setattr(pool_module, "SHARD", 2)
    paths = draw_pool(tmp_path, seed=4, shards=2)
    records = np.concatenate([np.load(path, mmap_mode="r") for path in paths])
    assert records.shape == (4, 256, 256, 6) and records.dtype == np.uint8
    scene = draw_scene(4, 3)
    assert np.array_equal(records[3, ..., :3], scene.image)
    assert np.array_equal(records[3, ..., 3], scene.objects) and np.array_equal(records[3, ..., 4], scene.salient)
    assert np.array_equal(draw_record(4, 3), records[3])
    before = [path.stat().st_mtime_ns for path in paths]
    assert [path.stat().st_mtime_ns for path in draw_pool(tmp_path, seed=4, shards=2)] == before
    assert {path.suffix for path in tmp_path.iterdir()} == {".npy"}
