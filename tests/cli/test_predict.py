"""`predict` end to end: which files, which masks, which names, which refusals."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sams import perturb

from hf_sam_adapt.cli.predict import PredictArguments, find_images, output_names, predict, predict_command
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import build_model, load_adapted, save_adapter
from hf_sam_adapt.sam.fingerprint import weights_digest


def save_method(sam_folder, folder, method, arguments):
    from hf_sam_adapt.inference.loading import load_base

    base, processor = load_base(sam_folder)
    save_adapter(perturb(build_model(method, arguments, base), std=0.2), folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(sam_folder, tmp_path_factory):
    return save_method(sam_folder, tmp_path_factory.mktemp("runs") / "adapter", "sam_adapter", {})


@pytest.fixture
def images(tmp_path):
    """Three images of different sizes, one in a subfolder with the stem of another."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for name, size in (("a.png", (40, 70)), ("b.jpg", (90, 50)), ("more/a.png", (64, 64))):
        Image.fromarray(rng.integers(0, 255, (*size, 3)).astype(np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def plain_logits(adapter, path, **prompt) -> np.ndarray:
    loaded = load_adapted(str(adapter))
    image = np.asarray(Image.open(path).convert("RGB"))
    inputs = loaded.processor([image])
    with torch.no_grad():
        low = loaded.model(pixel_values=inputs["pixel_values"], multimask_output=False, **prompt).pred_masks[:, 0]
    height, width = inputs["reshaped_input_sizes"][0].tolist()
    full = F.interpolate(low, (64, 64), mode="bilinear")[..., :height, :width]
    return F.interpolate(full, image.shape[:2], mode="bilinear")[0, 0].numpy()


def test_masks_overlays_and_json(adapter, images, tmp_path):
    output = tmp_path / "out" / "deeper"
    records = predict([str(images)], str(adapter), output_dir=output, batch_size=2, progress=False)
    assert sorted(path.name for path in output.iterdir()) == [
        "a_mask.png",
        "a_overlay.png",
        "b_mask.png",
        "b_overlay.png",
        "predictions.json",
    ]
    saved = json.loads((output / "predictions.json").read_text())
    settings = saved.pop("settings")
    weights = saved.pop("weights")
    assert len(weights) == 32 and weights == weights_digest(load_adapted(str(adapter)).model)
    assert saved.pop("written") == ["a_mask.png", "a_overlay.png", "b_mask.png", "b_overlay.png"]
    assert saved == {"adapter": str(adapter), "model": None, "predictions": records}
    assert settings["threshold"] == 0.5 and settings["prompt"] == {"kind": "none"}
    for record, name in zip(records, ("a.png", "b.jpg"), strict=True):
        logits = plain_logits(adapter, images / name)
        mask, shown = Image.open(output / record["mask"]), Image.open(output / record["overlay"])
        assert mask.mode == "L" and mask.size == shown.size == (record["width"], record["height"])
        assert np.array_equal(np.asarray(mask), np.where(logits > 0, 255, 0))
        assert record["foreground"] == pytest.approx((logits > 0).mean())
        assert record["logits"]["mean"] == pytest.approx(logits.mean(), abs=1e-4)
        assert record["logits"]["min"] == pytest.approx(logits.min(), abs=1e-4)
        assert record["file"] == str(images / name)
        assert record["prompt"] == {"kind": "none"} and record["iou_estimate"] is None
    assert 0 < records[0]["foreground"] < 1


@pytest.mark.parametrize("prompt", [{"box": [5, 6, 30, 35]}, {"point": [20, 10]}])
def test_prompts_are_in_image_pixels(adapter, images, tmp_path, prompt):
    path = images / "a.png"
    record = predict([str(path)], str(adapter), output_dir=tmp_path / "out", progress=False, **prompt)[0]
    scale = 64 / 70
    if "box" in prompt:
        # The height of 40 becomes int(40 * 64 / 70 + 0.5) = 37 rows.
        boxes = torch.tensor([[[5 * scale, 6 * 37 / 40, 30 * scale, 35 * 37 / 40]]])
        logits = plain_logits(adapter, path, input_boxes=boxes)
        assert record["prompt"] == {"kind": "box", "box": [5, 6, 30, 35]}
    else:
        logits = plain_logits(adapter, path, input_points=torch.tensor([[[[20 * scale, 10 * 37 / 40]]]]))
        assert record["prompt"] == {"kind": "point", "point": [20, 10]}
    assert record["logits"]["max"] == pytest.approx(logits.max(), abs=1e-4)
    promptless = predict([str(path)], str(adapter), output_dir=tmp_path / "out", progress=False)[0]
    assert promptless["logits"]["max"] != pytest.approx(record["logits"]["max"], abs=1e-3)


def test_exif_rotated_image_has_a_mask_as_it_is_shown(adapter, tmp_path):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3)).astype(np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "rotated.jpg", exif=exif)
    box = [0, 0, 29, 49]  # inside only if the image is upright
    predict([str(tmp_path / "rotated.jpg")], str(adapter), output_dir=tmp_path / "out", box=box, progress=False)
    assert Image.open(tmp_path / "out" / "rotated_mask.png").size == (30, 50)


def test_iou_estimate_only_where_it_was_trained(sam_folder, adapter, images, tmp_path):
    scored = save_method(sam_folder, tmp_path / "scored", "sam_adapter", {"train_iou_head": True})
    estimates = []
    for source, model in ((adapter, None), (scored, None), (None, sam_folder)):
        name = None if source is None else str(source)
        records = predict([str(images)], name, model=model, output_dir=tmp_path / "out", progress=False)
        estimates.append([record["iou_estimate"] for record in records])
    assert estimates[0] == [None, None]
    assert all(isinstance(estimate, float) for estimate in estimates[1] + estimates[2])
    assert estimates[1] != estimates[2]


def test_same_stems_do_not_overwrite_each_other(adapter, images, tmp_path):
    pattern = str(images / "**" / "*.png")
    records = predict([pattern, str(images / "a.png")], str(adapter), output_dir=tmp_path / "out", progress=False)
    assert [record["mask"] for record in records] == ["images_a_mask.png", "more_a_mask.png"]
    assert Image.open(tmp_path / "out" / "images_a_mask.png").size == (70, 40)
    assert Image.open(tmp_path / "out" / "more_a_mask.png").size == (64, 64)


def test_names_are_unique_whatever_the_files(tmp_path):
    files = ["x/a.png", "x/a.jpg", "y/A.png", "z/b.png", "x_a.png", "z/x_a_2.png"]
    names = output_names([tmp_path / file for file in files])
    assert len({name.casefold() for name in names}) == len(files)
    assert names[:4] == ["x_a", "x_a_2", "y_A", "b"]


def test_a_second_prediction_replaces_the_first(adapter, images, tmp_path):
    for _ in range(2):
        predict_command(
            PredictArguments(inputs=[str(images / "a.png")], adapter=str(adapter), output_dir=str(tmp_path / "out"))
        )
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_glob_characters_in_a_file_name(adapter, images, tmp_path):
    path = images / "scan[1].png"
    (images / "a.png").rename(path)
    assert find_images([str(path)]) == [path]


def test_bad_input_writes_nothing(adapter, images, tmp_path):
    (images / "broken.png").write_bytes((images / "a.png").read_bytes()[:20])
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    good = str(images / "a.png")
    cases = [
        ([], {}, "none given"),
        ([str(tmp_path / "nowhere.png")], {}, "nowhere.png does not exist"),
        ([str(images / "*.tiff")], {}, "matches no file"),
        ([str(tmp_path / "empty")], {}, "folder without images"),
        ([str(images / "notes.txt")], {}, "notes.txt"),
        ([str(images / "broken.png"), str(images / "notes.txt")], {}, "broken.png.*and so 1 further"),
        ([good], {"box": [10, 10, 70, 20]}, "outside .*a.png, which has 70x40"),
        ([good], {"box": [10, 10, 5, 20]}, "not a box"),
        ([good], {"box": [10, 10, 20]}, "not a box"),
        ([good], {"point": [-1, 3]}, "outside"),
        ([good], {"point": [float("nan"), 3]}, "outside"),
        ([good], {"point": [1, 3], "box": [0, 0, 3, 3]}, "both given"),
        ([good], {"batch_size": 0}, "batch_size"),
        ([good], {"output_dir": tmp_path / "file"}, "is a file"),
    ]
    for inputs, choice, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            predict(inputs, str(adapter), **{"output_dir": tmp_path / "out", **choice}, progress=False)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--model"):
        predict([good], output_dir=tmp_path / "out")
    with pytest.raises(UserError, match="neither"):
        predict([good], str(tmp_path / "empty"), output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def unreadable(path, kind):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 50, 3)).astype(np.uint8))
    if kind == "several pages":
        image.save(path, "TIFF", save_all=True, append_images=[image] * 7)
    elif kind == "transparent":
        image.putalpha(0)
        image.save(path, "PNG")
    elif kind == "too large":
        Image.new("1", (200, 100)).save(path, "PNG")
    elif kind == "damaged within":  # what the header does not tell
        image.save(path, "BMP")
        path.write_bytes(path.read_bytes()[:-3000])
    else:
        path.write_bytes(b"" if kind == "empty" else b"no image")


KINDS = {
    "empty": "not a readable image",
    "text": "not a readable image",
    "several pages": "8 pages",
    "transparent": "transparent",
    "too large": "read at once; cut it into smaller images",
    "damaged within": "corrupt image",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", [0, 6, 12])
def test_one_unreadable_image_of_thirteen_costs_no_other(adapter, tmp_path, capsys, monkeypatch, kind, place):
    if kind == "too large":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8000)
    folder, names = tmp_path / "images", [f"{number:02d}.png" for number in range(13)]
    folder.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(np.full((30, 40 + number, 3), 9 * number, np.uint8)).save(folder / name)
    unreadable(folder / names[place], kind)
    arguments = PredictArguments(inputs=[str(folder)], adapter=str(adapter), output_dir=str(tmp_path / "out"))
    assert predict_command(arguments) == 1
    shown = capsys.readouterr()
    errors = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and f"images/{names[place]}: " in errors[0] and KINDS[kind] in errors[0]
    assert "12 masks" in shown.out and "1 of 13 images could not be read" in shown.err
    records = json.loads((tmp_path / "out/predictions.json").read_text())["predictions"]
    assert [record["file"] for record in records] == [str(folder / name) for name in names]
    assert [set(record) == {"file", "error"} for record in records] == [number == place for number in range(13)]
    for number, record in enumerate(records):
        if number != place:
            assert Image.open(tmp_path / "out" / record["mask"]).size == (40 + number, 30)


def test_an_input_is_never_overwritten(adapter, images):
    (images / "b.jpg").unlink()
    Image.new("RGB", (30, 20)).save(images / "a_mask.png")
    with pytest.raises(UserError, match=r"a_mask\.png is an input"):
        predict([str(images)], str(adapter), output_dir=images, progress=False)
    assert Image.open(images / "a_mask.png").size == (30, 20)
