"""Results in the formats of other tools: what is written, and that `convert` takes the same masks back."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from sams import perturb
from scipy import ndimage

from hf_sam_adapt.cli import main
from hf_sam_adapt.cli.arguments import PredictArguments
from hf_sam_adapt.cli.predict import predict
from hf_sam_adapt.convert.annotations import convert_annotations
from hf_sam_adapt.data.areas import fill_polygon
from hf_sam_adapt.data.outlines import outlines
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import build_model, load_base, save_adapter
from hf_sam_adapt.reporting.results import WRITERS
from hf_sam_adapt.reporting.results import run as run_module


POLYGONS = {"labelme": "labelme", "coco": "coco.json", "yolo": "yolo", "geojson": "geojson"}


def save_method(sam_folder, folder, method, arguments):
    base, processor = load_base(sam_folder)
    save_adapter(perturb(build_model(method, arguments, base), std=0.2), folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def adapter(sam_folder, tmp_path_factory):
    return save_method(sam_folder, tmp_path_factory.mktemp("runs") / "adapter", "sam_adapter", {})


@pytest.fixture(scope="module")
def class_adapter(sam_folder, tmp_path_factory):
    arguments = {"num_labels": 3, "id2label": {0: "background", 1: "ärea", 2: "road"}}
    return save_method(sam_folder, tmp_path_factory.mktemp("runs") / "classes", "cwsam", arguments)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three images of different sizes, none square, of different kinds."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("images")
    for name, size in (("a.png", (40, 70)), ("b.jpg", (90, 50)), ("c.tif", (61, 33))):
        Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)).save(folder / name)
    return folder


def masks_of(folder):
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((folder / "masks").glob("*.png"))}


def check_all(folder):
    """What a person does in labelme."""
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        path.write_text(json.dumps(content | {"flags": {"checked": True}}))


def near(mask, wanted, tolerance):
    """Whether masks differ only within so many pixels of an edge of `wanted`; the image's edge is one, too."""
    distance = np.zeros(wanted.shape)
    for value in np.unique(wanted):
        padded = np.pad(wanted == value, 1)
        distance += ndimage.distance_transform_edt(padded)[1:-1, 1:-1]
    return (distance[mask != wanted] <= tolerance + 0.5).all()


def test_outlines_draw_their_mask():
    rng = np.random.default_rng()
    for number in range(60):
        mask = rng.random(rng.integers(1, 24, 2)) < rng.uniform(0.1, 0.9)
        mask = np.kron(mask, np.ones((2, 3), bool)) if number % 2 else mask
        parts = outlines(mask)
        assert len(parts) == ndimage.label(mask)[1]
        drawn = np.zeros(mask.shape, int)
        for part in parts:
            inside = np.logical_xor.reduce([fill_polygon(ring.astype(float), *mask.shape) for ring in part.rings])
            assert ndimage.label(inside)[1] == 1
            assert np.array_equal(inside, fill_polygon(part.joined().astype(float), *mask.shape))
            drawn += inside
        assert np.array_equal(drawn, mask)


@pytest.mark.parametrize("tolerance", [0.75, 2.0])
def test_simple_outlines_have_fewer_corners_and_move_little(tolerance):
    rng = np.random.default_rng()
    mask = ndimage.gaussian_filter(rng.normal(size=(150, 230)), 5) > 0
    simple, exact = outlines(mask, tolerance), outlines(mask)
    assert 2 * sum(len(r) for o in simple for r in o.rings) < sum(len(r) for o in exact for r in o.rings)
    for ring, whole in ((r, w) for s, e in zip(simple, exact) for r, w in zip(s.rings, e.rings)):
        starts, ends = ring, np.roll(ring, -1, axis=0)
        along = (ends - starts).astype(float)
        share = ((whole[:, None] - starts) * along).sum(-1) / (along**2).sum(-1)
        distance = np.linalg.norm(whole[:, None] - starts - np.clip(share, 0, 1)[..., None] * along, axis=-1).min(1)
        assert distance.max() <= tolerance + 1e-9


@pytest.mark.parametrize("format", POLYGONS)
@pytest.mark.parametrize("simplify", [0.0, 1.0])
@pytest.mark.parametrize("classes", [False, True], ids=["object", "classes"])
def test_convert_takes_back_what_predict_wrote(format, simplify, classes, adapter, class_adapter, images, tmp_path):
    out, name = tmp_path / "out", class_adapter if classes else adapter
    records = predict([str(images)], name, output_dir=out, format=["png", format], simplify=simplify, progress=False)
    assert len(records) == 3 and all(format in record for record in records)
    check_all(out / "labelme")
    convert_annotations(format, out / POLYGONS[format], tmp_path / "data", images=images)
    taken = masks_of(tmp_path / "data")
    wanted = {
        record["mask"].removesuffix("_mask.png"): np.asarray(Image.open(out / record["mask"])) for record in records
    }
    assert taken.keys() == wanted.keys()
    for stem, mask in wanted.items():
        mask = mask if classes else mask // 255
        assert len(np.unique(mask)) > 1
        assert near(taken[stem], mask, simplify) if simplify else np.array_equal(taken[stem], mask)


def test_instances_are_the_objects_of_polygons(adapter, images, tmp_path):
    out = tmp_path / "out"
    choice = {"format": ["coco"], "simplify": 0.0, "instances": "components", "progress": False}
    records = predict([str(images)], adapter, output_dir=out, **choice)
    content, runs = (json.loads((out / name).read_text()) for name in ("coco.json", "instances.json"))
    assert (
        sum(record["instances"] for record in records) == len(content["annotations"]) == len(runs["annotations"]) > 2
    )
    for area, other in zip(content["annotations"], runs["annotations"]):
        assert area["score"] == other["score"] and area["bbox"] == other["bbox"]
    assert not (out / "a_mask.png").exists()


def test_probability_and_threshold(adapter, class_adapter, images, tmp_path):
    low, high, maps = [], [], {}
    for threshold, into in ((0.2, low), (0.5, high)):
        out = tmp_path / str(threshold)
        into += predict([str(images)], adapter, output_dir=out, threshold=threshold, probability=True, progress=False)
        for record in into:
            chances = np.asarray(Image.open(out / record["probability"])) / 65535
            mask = np.asarray(Image.open(out / record["mask"])) > 0
            assert mask[chances > threshold + 1e-4].all() and not mask[chances < threshold - 1e-4].any()
            assert np.abs(maps.setdefault(record["file"], chances) - chances).max() == 0
    assert sum(record["foreground"] for record in low) > sum(record["foreground"] for record in high)
    (record,) = predict(
        [str(images / "a.png")], class_adapter, output_dir=tmp_path / "k", probability=True, progress=False
    )
    chances = np.stack([np.asarray(Image.open(tmp_path / "k" / file)) for file in record["probability"]]) / 65535
    assert np.abs(chances.sum(0) - 1).max() < 1e-4
    assert np.array_equal(chances.argmax(0), np.asarray(Image.open(tmp_path / "k" / record["mask"])))


def test_skipping_what_is_there(adapter, images, tmp_path, monkeypatch):
    choice = {"output_dir": tmp_path / "out", "format": ["labelme", "coco", "png"], "progress": False}
    first = predict([str(images / "a.png"), str(images / "b.jpg")], adapter, **choice)
    kept = (tmp_path / "out/labelme/a.json").stat().st_mtime_ns
    (tmp_path / "out/b_mask.png").unlink()
    records = predict([str(images)], adapter, skip_existing=True, **choice)
    assert [record.pop("skipped", False) for record in records] == [True, False, False]
    assert records[:2] == first
    assert (tmp_path / "out/labelme/a.json").stat().st_mtime_ns == kept
    whole = predict([str(images)], adapter, **choice | {"output_dir": tmp_path / "whole"})
    assert len(whole) == 3
    coco = [json.loads((tmp_path / name / "coco.json").read_text()) for name in ("out", "whole")]
    assert coco[0] == coco[1]
    with pytest.raises(UserError, match="other threshold"):
        predict([str(images)], adapter, skip_existing=True, threshold=0.4, **choice)
    check_all(tmp_path / "out/labelme")
    with pytest.raises(UserError, match="3 annotations in it are checked"):
        predict([str(images)], adapter, **choice)
    assert all("skipped" in record for record in predict([str(images)], adapter, skip_existing=True, **choice))


def test_results_of_other_weights_are_not_kept(sam_folder, images, tmp_path):
    adapter = save_method(sam_folder, tmp_path / "adapter", "sam_adapter", {})
    choice = {"output_dir": tmp_path / "out", "progress": False, "skip_existing": True}
    predict([str(images / "a.png")], adapter, **choice)
    assert predict([str(images / "a.png")], adapter, **choice)[0]["skipped"]
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: value + 0.01 for key, value in load_file(path).items()}, path, {"format": "pt"})
    with pytest.raises(UserError, match="have other weights"):
        predict([str(images)], adapter, **choice)


def test_masks_beside_their_images_are_not_replaced(adapter, images, tmp_path):
    for name in ("a.png", "b.jpg"):
        shutil.copy(images / name, tmp_path / name)
    Image.fromarray(np.full((40, 70), 255, np.uint8)).save(tmp_path / "a_mask.png")
    with pytest.raises(UserError, match=r"a_mask\.png is there already, and no prediction has written it"):
        predict([str(tmp_path / "a.png")], adapter, output_dir=tmp_path, progress=False)
    assert np.asarray(Image.open(tmp_path / "a_mask.png")).min() == 255
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a_mask.png", "b.jpg"]
    for _ in range(2):  # its own results may be made anew
        predict([str(tmp_path / "b.jpg")], adapter, output_dir=tmp_path, progress=False)


def test_a_run_folder_takes_no_predictions(adapter, images):
    with pytest.raises(UserError, match="holds a run"):
        predict([str(images / "a.png")], adapter, output_dir=adapter, progress=False)


def test_annotations_of_other_images_stay(adapter, images, tmp_path):
    choice = {"output_dir": tmp_path, "format": ["labelme"], "progress": False}
    predict([str(images / "a.png"), str(images / "b.jpg")], adapter, **choice)
    kept = {path: path.read_bytes() for path in (tmp_path / "labelme").iterdir()}
    predict([str(images / "c.tif")], adapter, **choice)
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert sorted(path.stem for path in (tmp_path / "labelme").glob("*.json")) == ["a", "b", "c"]


def test_what_is_interrupted_is_listed(adapter, images, tmp_path, monkeypatch):
    original = run_module.described

    def stop(prediction):
        if prediction.mask.shape == (90, 50):
            raise KeyboardInterrupt
        return original(prediction)

    monkeypatch.setattr(run_module, "described", stop)
    choice = {"output_dir": tmp_path / "out", "format": ["coco", "yolo"], "batch_size": 1, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        predict([str(images)], adapter, **choice)
    monkeypatch.undo()
    assert [r["file"] for r in json.loads((tmp_path / "out/predictions.json").read_text())["predictions"]] == [
        str(images / "a.png")
    ]
    records = predict([str(images)], adapter, skip_existing=True, **choice)
    assert [record.get("skipped") for record in records] == [True, None, None]
    assert not list((tmp_path / "out").rglob(".tmp*"))


def test_the_least_sure_come_first_and_only_checked_ones_are_taken_back(adapter, images, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["predict", str(images), "--adapter", adapter, "--output_dir", str(out)]
    assert main([*argv, "--format", "labelme", "--rank", "uncertain"]) == 0
    records = json.loads((out / "predictions.json").read_text())["predictions"]
    unsure = [tuple(record["uncertainty"].values()) for record in records]
    assert unsure == sorted(unsure, reverse=True) and len(set(unsure)) == 3
    files = sorted(path.name for path in (out / "labelme").iterdir())
    stems = [record["file"].rpartition("/")[2] for record in records]
    assert files == sorted(
        name for place, image in enumerate(stems, 1) for name in (f"000{place}_{image}", f"000{place}_{image[0]}.json")
    )
    with pytest.raises(UserError, match="none of the 3 predictions in it is checked"):
        convert_annotations("labelme", out / "labelme", tmp_path / "none")
    best = out / records[0]["labelme"]
    content = json.loads(best.read_text())
    corner = [[0, 0], [5, 0], [5, 4], [0, 4]]
    shapes = [{"label": "object", "points": corner, "shape_type": "polygon"}]
    best.write_text(json.dumps(content | {"flags": {"checked": True}, "shapes": shapes}))
    notes = convert_annotations("labelme", out / "labelme", tmp_path / "data")
    assert any("2 x prediction that nobody has looked at" in note for note in notes)
    ((name, mask),) = masks_of(tmp_path / "data").items()
    assert mask.sum() == 20 and name[0] == stems[0][0] and "0001" not in name  # without its rank
    # A second ranking neither loses the correction nor leaves an image twice.
    assert main([*argv, "--format", "labelme", "--rank", "uncertain", "--skip_existing"]) == 0
    assert "3 of them were there and are kept" in capsys.readouterr().out
    assert sorted(path.name for path in (out / "labelme").iterdir()) == files


def test_bad_choices(adapter, class_adapter, images, tmp_path):
    cases = [
        (adapter, {"format": ["pdf"]}, "'pdf' is unknown; choose from png"),
        (adapter, {"threshold": 1.0}, "threshold: 1.0 is not a probability"),
        (adapter, {"simplify": -1.0}, "simplify: -1.0"),
        (class_adapter, {"threshold": 0.3}, "the most probable class wins"),
    ]
    for name, choice, message in cases:
        with pytest.raises(UserError, match=message):
            predict([str(images)], name, output_dir=tmp_path / "out", progress=False, **choice)
        assert not (tmp_path / "out").exists()
    (tmp_path / "out/labelme").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "out/labelme/x.png")
    with pytest.raises(UserError, match="lies beside one"):
        predict([str(tmp_path / "out/labelme")], adapter, output_dir=tmp_path / "out", format=["labelme"])


def test_flags_name_the_formats_of_the_table():
    import typing

    (literal, _) = typing.get_args(typing.get_type_hints(PredictArguments)["format"])
    assert set(typing.get_args(typing.get_args(literal)[0])) == set(WRITERS)
