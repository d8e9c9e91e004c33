"""What `predict` neither replaces nor takes for a result of its own: true masks, annotations, another's results."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from hf_sam_adapt.cli.predict import predict as predict_files
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.reporting.results import index as index_module


@pytest.fixture
def images(tmp_path):
    """Two images of different sizes."""
    rng, folder = np.random.default_rng(0), tmp_path / "data/images"
    folder.mkdir(parents=True)
    for name, size in (("a.png", (40, 70)), ("b.jpg", (50, 30))):
        Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)).save(folder / name)
    return folder


def predict(paths, output, *formats, **choice):
    named = {"format": list(formats) or None} | choice
    inputs = [str(path) for path in (paths if isinstance(paths, list) else [paths])]
    return predict_files(inputs, model="tiny", output_dir=output, progress=False, **named)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listed(folder):
    return json.loads((folder / "predictions.json").read_text())


HAND_MADE = {
    "a_mask.png": ["png"],
    "b_overlay.png": ["png"],
    "a_probability.png": ["png"],
    "labelme/a.json": ["labelme"],
    "labelme/b.jpg": ["labelme"],
    "coco.json": ["coco"],
    "instances.json": ["coco"],
    "a_instances.png": ["coco"],
    "yolo/data.yaml": ["yolo"],
    "yolo/labels/a.txt": ["yolo"],
    "yolo/images/b.jpg": ["yolo"],
    "geojson/b.geojson": ["geojson"],
    "predictions.json": ["png"],
}


@pytest.mark.parametrize("file", HAND_MADE)
@pytest.mark.parametrize("before", [False, True], ids=["first", "after another format"])
def test_files_that_no_prediction_has_written_stay(file, before, images, tmp_path, monkeypatch):
    output = tmp_path / "data/masks"
    choice = {"probability": True, "instances": "components"}
    if before and file != "predictions.json":
        other = "geojson" if HAND_MADE[file] != ["geojson"] else "yolo"
        predict(images, output, other)
    (output / file).parent.mkdir(parents=True, exist_ok=True)
    (output / file).write_text("mine")
    kept = content(output)
    words = "not the list" if file == "predictions.json" else f"{file} is there already, and no prediction"
    with pytest.raises(UserError, match=words):
        predict(images, output, *HAND_MADE[file], **choice)
    assert content(output) == kept


def test_results_of_any_earlier_call_are_made_anew(images, tmp_path):
    output, every = tmp_path / "out", ["png", "labelme", "coco", "yolo", "geojson"]
    for formats in (["png"], ["geojson"], every, every):
        predict(images, output, *formats, instances="components")
    predict(images / "b.jpg", output, *every)
    predict(images / "a.png", output, *every)
    predict(images, output, "labelme", rank="uncertain")
    predict(images, output, "labelme", rank="uncertain")
    predict(images, output, *every, probability=True)
    files = {path.relative_to(output).as_posix() for path in content(output)} - {"predictions.json"}
    assert files == set(listed(output)["written"])


def test_an_older_list_names_its_files(images, tmp_path):
    output, every = tmp_path / "out", ["png", "labelme", "coco", "yolo", "geojson"]
    predict(images, output, *every, instances="components", probability=True)
    old = listed(output)
    old.pop("written")
    for record in old["predictions"]:
        record.pop("source")
    (output / "predictions.json").write_text(json.dumps(old))
    records = predict(images, output, *every, instances="components", probability=True, skip_existing=True)
    assert not any("skipped" in record for record in records)


def test_an_annotation_that_was_drawn_anew_stays(images, tmp_path):
    predict(images, tmp_path, "labelme", rank="uncertain")
    path = sorted((tmp_path / "labelme").glob("*.json"))[0]
    path.write_text(json.dumps({"shapes": [], "flags": {}}))
    kept = content(tmp_path)
    with pytest.raises(UserError, match=f"{path.name} is there already"):
        predict(images, tmp_path, "labelme", rank="uncertain")
    assert content(tmp_path) == kept


@pytest.mark.parametrize("formats", [["coco", "geojson"], ["yolo"], ["labelme"], ["png"]])
def test_results_of_other_settings_are_not_kept(formats, images, tmp_path):
    output, wanted = tmp_path / "out", tmp_path / "wanted"
    predict(images, output, *formats, threshold=0.4, instances="components")
    predict(images, output, "png" if formats != ["png"] else "geojson", threshold=0.6)
    predict(images, output, *formats, threshold=0.6, skip_existing=True)
    predict(images, wanted, *formats, threshold=0.6)
    for path in (path for path in content(wanted) if path.name != "predictions.json"):
        assert (output / path.relative_to(wanted)).read_bytes() == path.read_bytes(), path


def test_probabilities_of_other_settings_are_not_kept(images, tmp_path):
    predict(images, tmp_path / "out", probability=True, box=[1, 1, 9, 9])
    predict(images, tmp_path / "out")
    (record, _) = predict(images, tmp_path / "out", probability=True, skip_existing=True)
    predict(images, tmp_path / "wanted", probability=True)
    assert "skipped" not in record
    file = record["probability"]
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "wanted" / file).read_bytes()


def test_another_image_of_the_same_relative_path_is_not_kept(images, tmp_path, monkeypatch):
    for folder, name in (("one", "a.png"), ("two", "b.jpg")):
        (tmp_path / folder).mkdir()
        shutil.copy2(images / name, tmp_path / folder / "scan.png")
        monkeypatch.chdir(tmp_path / folder)
        (record,) = predict("scan.png", tmp_path / "out", skip_existing=True)
        assert "skipped" not in record
    assert predict("scan.png", tmp_path / "out", skip_existing=True)[0]["skipped"]


def test_an_image_replaced_by_an_older_file_is_not_kept(images, tmp_path):
    first = predict(images / "a.png", tmp_path / "out")
    Image.new("RGB", (20, 30)).save(images / "a.png")
    os.utime(images / "a.png", (10**9, 10**9))
    (record,) = predict(images / "a.png", tmp_path / "out", skip_existing=True)
    assert "skipped" not in record and (record["width"], first[0]["width"]) == (20, 70)


def test_a_killed_call_leaves_no_results_under_the_list_of_another(images, tmp_path, monkeypatch):
    output = tmp_path / "out"
    predict(images / "a.png", output, "geojson", threshold=0.4)

    class Killed(BaseException):
        pass

    def killed(index):
        raise Killed

    monkeypatch.setattr(index_module.Index, "write", killed)
    with pytest.raises(Killed):
        predict(images, output, "geojson", threshold=0.6)
    monkeypatch.undo()
    found = listed(output)
    assert found["settings"]["threshold"] == 0.6 and found["predictions"] == []
    records = predict(images, output, "geojson", threshold=0.6, skip_existing=True)  # its files are our own
    assert not any("skipped" in record for record in records)
    with pytest.raises(UserError, match="other threshold"):
        predict(images, output, "geojson", threshold=0.4, skip_existing=True)


def test_a_name_too_long_for_its_result_is_said_before_anything_is_computed(images, tmp_path):
    (images / "a.png").rename(images / f"{'a' * 245}.png")
    with pytest.raises(UserError, match="its name is too long"):
        predict(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (images / f"{'a' * 245}.png").rename(images / f"{'a' * 240}.png")
    assert len(predict(images, tmp_path / "out", "png", "labelme", "yolo")) == 2


def test_labels_of_other_images_are_counted(images, tmp_path, capsys):
    choice = {"format": ["yolo"], "model": "tiny", "output_dir": tmp_path / "out"}
    predict_files([str(images)], **choice)
    assert "labels of other images" not in capsys.readouterr().out
    predict_files([str(images / "a.png")], **choice)
    assert f"{tmp_path}/out/yolo: 1 labels of other images are there, too\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"min_score": 0.5}, "min_score: no instances are asked for; set instances, or leave it out"),
        ({"points_per_side": 4}, "points_per_side: no instances are asked for"),
        ({"min_score": 7.0, "instances": "components"}, "min_score: 7.0 is not a score, 0 to 1"),
        ({"min_score": float("nan"), "instances": "grid"}, "min_score: nan is not"),
        ({"output_dir": "file/x"}, "output_dir: .*file is a file; name a folder"),
    ],
)
def test_options_without_effect_are_refused(choice, message, images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=message):
        predict_files([str(images)], model="tiny", progress=False, **{"output_dir": "out", **choice})
    assert not (tmp_path / "out").exists()


def test_paths_at_home(images, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(images)
    (record,) = predict("~/data/images/a.png", "~/out")
    assert record["file"] == str(images / "a.png") and (tmp_path / "out/a_mask.png").is_file()
    assert not list(images.glob("~*"))
