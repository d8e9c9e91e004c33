"""`hf-sam-adapt evaluate`: what it loads, prints, writes and refuses."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from sams import perturb

from hf_sam_adapt.cli.evaluate import EvaluateArguments, evaluate_command
from hf_sam_adapt.config.arguments import parse_arguments
from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.evaluation import evaluate
from hf_sam_adapt.evaluation.clicks import evaluate_clicks
from hf_sam_adapt.evaluation.sensitivity import prompt_sensitivity
from hf_sam_adapt.inference import variants
from hf_sam_adapt.inference.forward import encode
from hf_sam_adapt.inference.loading import build_model, load_adapted, load_base, save_adapter
from hf_sam_adapt.metrics import constant_mask
from hf_sam_adapt.sam.processing import SamAdaptProcessor
from hf_sam_adapt.training.run import train


def save_run(folder, sam_folder, method="sam_adapter", image_size=None, method_args=None, **recipe):
    """A run folder as training leaves it, as far as evaluation reads it."""
    base, _ = load_base(sam_folder)
    save_adapter(perturb(build_model(method, method_args or {}, base, image_size=image_size), std=0.2), folder)
    SamAdaptProcessor(image_size=image_size or 64, patch_size=8).save_pretrained(folder)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"model": sam_folder, "method": method, **recipe}))
    return str(folder)


def run(*argv) -> EvaluateArguments:
    arguments = parse_arguments(EvaluateArguments, list(map(str, argv)), also_in_config=Recipe)
    return evaluate_command(arguments)


def test_an_earlier_evaluation_is_replaced_as_a_whole(sam_folder, make_dataset, tmp_path):
    data, output = make_dataset(train=5, test=3), tmp_path / "eval"
    adapter = save_run(tmp_path / "run", sam_folder)
    run("--adapter", adapter, "--dataset", data, "--metrics", "f_measure", "--output_dir", output)
    assert (output / "f_measure.png").is_file()
    (output / "notes.txt").write_text("mine")
    run("--adapter", adapter, "--dataset", data, "--prompts", "box", "--output_dir", output)
    assert not (output / "f_measure.png").exists() and (output / "notes.txt").is_file()


def test_adapter_beside_zero_shot(sam_folder, make_dataset, tmp_path, capsys):
    data = make_dataset(train=5, test=4)
    adapter = save_run(tmp_path / "run", sam_folder)
    output = tmp_path / "out" / "eval"
    result = run("--adapter", adapter, "--dataset", data, "--prompts", "none", "box", "--output_dir", output)
    loaded, splits = load_adapted(adapter), load_segmentation_dataset(str(data))
    expected = evaluate(
        loaded.model,
        loaded.processor,
        splits.test,
        ["none", "box"],
        constant=constant_mask(splits.train),
        progress=False,
    )
    assert result == expected
    metrics = json.loads((output / "metrics.json").read_text())
    objects = {"prompted": expected.objects.prompted, "left_out": 0, "left_out_share": 0.0}
    assert metrics == {"test": expected.test, "measured_on": "test", "objects": objects}
    assert objects["prompted"] >= 4
    assert set(metrics["test"]["none"]) == {"zero_shot", "adapted", "constant"}
    assert Image.open(output / "samples.png").size == (4 * 320, 3 * (22 + round(316 * 48 / 64)))
    printed = capsys.readouterr().out
    for name in ("zero_shot", "adapted", "constant"):
        assert f"{expected.test['none'][name]['iou']:.3f} / {expected.test['none'][name]['dice']:.3f}" in printed


def test_plain_sam_is_zero_shot_only(sam_folder, make_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = make_dataset()
    before = sorted(tmp_path.rglob("*"))
    scores = run("--model", sam_folder, "--dataset", data).test
    assert scores["none"]["adapted"] is None and 0 <= scores["none"]["zero_shot"]["iou"] <= 1
    assert sorted(tmp_path.rglob("*")) == before


def test_further_metrics_of_the_run_and_of_the_flag(sam_folder, make_dataset, tmp_path, capsys):
    adapter = save_run(tmp_path / "run", sam_folder, dataset=str(make_dataset()), metrics=["ber", "mae"])
    scores = run("--adapter", adapter, "--output_dir", tmp_path / "out").test["none"]
    keys = {"iou", "dice", "ber", "ber_pooled", "foreground_error", "background_error", "mae"}
    assert set(scores["adapted"]) == set(scores["zero_shot"]) == set(scores["constant"]) == keys
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["test"]["none"] == scores
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    rows = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    expected = [f"{scores[name]['ber_pooled']:.3f}" for name in ("zero_shot", "adapted", "constant")]
    assert rows["BER, pooled"] == expected and "MAE" in rows
    assert "s_measure" in run("--adapter", adapter, "--metrics", "s_measure").test["none"]["adapted"]
    assert set(run("--adapter", adapter, "--prompts", "box").test["box"]["adapted"]) == {"iou", "dice"}


def test_full_model_finds_its_base(sam_folder, make_dataset, tmp_path):
    data = make_dataset()
    zero_shot = run("--model", sam_folder, "--dataset", data).test["none"]["zero_shot"]
    full = save_run(tmp_path / "full", sam_folder, "full")
    scores = run("--adapter", full, "--dataset", data).test["none"]
    assert scores["zero_shot"] == zero_shot != scores["adapted"]
    (tmp_path / "full" / "recipe.yaml").unlink()
    assert run("--adapter", full, "--dataset", data).test["none"]["zero_shot"] is None
    assert run("--adapter", full, "--model", sam_folder, "--dataset", data).test["none"]["zero_shot"] == zero_shot


def test_full_model_at_another_size_compares_with_its_base_at_that_size(sam_folder, make_dataset, tmp_path):
    data = make_dataset()
    full = save_run(tmp_path / "full", sam_folder, "full", image_size=96)
    adapter = save_run(tmp_path / "adapter", sam_folder, image_size=96)
    found = [run("--adapter", run_folder, "--dataset", data).test["none"] for run_folder in (full, adapter)]
    assert found[0]["zero_shot"] == found[1]["zero_shot"]


def test_a_run_is_evaluated_on_its_own_test_images(sam_folder, make_dataset, tmp_path):
    data = make_dataset(flat=20)
    adapter = save_run(tmp_path / "run", sam_folder, dataset=str(data), seed=5, prompts=["box"], mask_suffix=None)
    expected = load_segmentation_dataset(str(data), seed=5).test.ids
    assert expected != load_segmentation_dataset(str(data), seed=0).test.ids
    result = run("--adapter", adapter)
    assert [record.id for record in result.records] == expected
    assert list(result.test) == ["box"]
    assert [record.id for record in run("--adapter", adapter, "--dataset", data, "--seed", 0).records] != expected


def test_without_test_images_the_table_says_so(sam_folder, make_dataset, tmp_path, capsys):
    data = make_dataset(train=3, val=2, test=0)
    output = tmp_path / "out"
    result = run("--model", sam_folder, "--dataset", data, "--output_dir", output)
    assert len(result.records) == 2
    assert json.loads((output / "metrics.json").read_text())["measured_on"] == "val"
    assert "Validation images" in capsys.readouterr().out


def test_classes_are_refused(sam_folder, tmp_path):
    annotations = {"images": [], "annotations": [], "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}]}
    for number in range(4):
        Image.new("RGB", (30, 20)).save(tmp_path / f"{number}.png")
        annotations["images"].append({"id": number, "file_name": f"{number}.png", "height": 20, "width": 30})
        for category, left in ((7, 2), (9, 15)):
            polygon = [left, 3, left + 9, 3, left + 9, 12, left, 12]
            item = {"id": 10 * number + category, "image_id": number, "category_id": category, "iscrowd": 0}
            annotations["annotations"].append({**item, "segmentation": [polygon]})
    (tmp_path / "annotations.json").write_text(json.dumps(annotations))
    with pytest.raises(UserError, match="has 3 classes"):
        run("--model", sam_folder, "--dataset", tmp_path)


def test_only_a_pool_has_domains(sam_folder, make_dataset, tmp_path):
    adapter = save_run(tmp_path / "run", sam_folder, "cwsam", method_args={"num_labels": 2, "scale_factor": 4})
    with pytest.raises(UserError, match="domain: polyp, but the adapter is not a pool"):
        run("--adapter", adapter, "--dataset", make_dataset(), "--domain", "polyp")


def test_bad_input(sam_folder, make_dataset, tmp_path):
    data = make_dataset()
    adapter = save_run(tmp_path / "run", sam_folder)
    (tmp_path / "run" / "metrics.json").write_text("{}")
    for argv, message in [
        (["--dataset", data], "adapter: not given"),
        (["--model", sam_folder], "dataset: not given"),
        (["--model", sam_folder, "--dataset", tmp_path / "nowhere"], "nowhere"),
        (["--model", sam_folder, "--dataset", data, "--batch_size", 0], "batch_size"),
        (["--model", sam_folder, "--dataset", data, "--prompts", "boxes"], "prompts"),
        (["--adapter", adapter, "--dataset", data, "--output_dir", adapter], "holds a run"),
        (["--model", sam_folder, "--dataset", data, "--metrics", "roc"], "metrics: unknown 'roc'; choose from s_mea"),
        (["--model", sam_folder, "--dataset", data, "--prompts", "box", "--metrics", "mae"], "add none to prompts"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            run(*argv)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "metrics.json").read_text() == "{}"


def test_clicks_sensitivity_and_instances(sam_folder, make_dataset, tmp_path, monkeypatch, capsys):
    pytest.importorskip("pycocotools")
    data, adapter, output = make_dataset(train=4, test=3), save_run(tmp_path / "run", sam_folder), tmp_path / "eval"
    flags = ["--clicks", 5, "--prompt_sensitivity", "point", "--instances", "components"]
    encoded = []
    monkeypatch.setattr(variants, "encode", lambda model, images: encoded.append(len(images)) or encode(model, images))
    run("--adapter", adapter, "--dataset", data, *flags, "--batch_size", 2)
    assert encoded == [2, 2, 1, 1]  # three images, with and without the adapter
    monkeypatch.undo()
    capsys.readouterr()
    run("--adapter", adapter, "--dataset", data, *flags, "--output_dir", output)
    metrics = json.loads((output / "metrics.json").read_text())
    assert set(metrics) == {"test", "measured_on", "clicks", "prompt_sensitivity", "instances"}
    loaded, splits = load_adapted(adapter), load_segmentation_dataset(str(data))
    how = {"progress": False, "batch_size": 2}
    assert metrics["clicks"] == evaluate_clicks(loaded.model, loaded.processor, splits.test, 5, **how)
    expected = prompt_sensitivity(loaded.model, loaded.processor, splits.test, "point", **how)
    assert metrics["prompt_sensitivity"] == expected and expected["objects"] == 3
    printed = capsys.readouterr().out
    for value in (metrics["clicks"]["adapted"]["noc"]["0.8"], metrics["instances"]["zero_shot"]["ap"]):
        assert f"{value:.3f}" in printed
    assert "IoU after 3 clicks" in printed and "change when the point is removed" in printed
    assert Image.open(output / "prompt_sensitivity.png").size == (1300, 680)


def test_clicks_are_refused_where_there_are_none(sam_folder, make_dataset, tmp_path):
    adapter, data = save_run(tmp_path / "run", sam_folder), make_dataset()
    with pytest.raises(UserError, match="clicks: -1 is below 0"):
        run("--adapter", adapter, "--dataset", data, "--clicks", -1)
    with pytest.raises(UserError, match="prompt_sensitivity: 'mask' is not one of box, point"):
        run("--adapter", adapter, "--dataset", data, "--prompt_sensitivity", "mask")


@pytest.mark.parametrize("tile", [(), ("--tile", 64, "--overlap", 0)])
def test_objects_without_a_prompt_are_counted(sam_folder, make_dataset, tmp_path, capsys, tile):
    data = make_dataset(test=2, size=(64, 64))
    for number, path in enumerate(sorted((data / "test/masks").iterdir())):
        mask = np.zeros((64, 64), np.uint8)
        mask[4:10, 4:10] = 1
        mask[30, 30 : 31 + number] = 1  # 0.05 % are 2.05 pixels
        Image.fromarray(mask).save(path)
    output = tmp_path / "eval"
    run("--model", sam_folder, "--dataset", data, "--prompts", "none", "point", *tile, "--output_dir", output)
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["objects"] == {"prompted": 2, "left_out": 2, "left_out_share": round(3 / 75, 6)}
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 4 objects, with 4.0% of the foreground, got no prompt: they are below 0.05%" in printed
    run("--model", sam_folder, "--dataset", data, "--prompts", "none")
    assert "got no prompt" not in capsys.readouterr().out


def test_images_without_foreground_are_said(sam_folder, make_dataset, tmp_path, capsys):
    data = make_dataset(test=3)
    for path in sorted((data / "test/masks").iterdir())[:2]:
        Image.new("L", Image.open(path).size).save(path)
    output = tmp_path / "eval"
    result = run("--model", sam_folder, "--dataset", data, "--prompts", "none", "--output_dir", output)
    empty = json.loads((output / "metrics.json").read_text())["without_foreground"]
    scores = [record.scores["none"]["zero_shot"] for record in result.records]
    assert empty["images"] == 2 and empty["of"] == 3 and empty["iou_of_others"] == scores[2].iou
    assert empty["with_findings"] == sum(one.prediction > 0 for one in scores[:2])
    printed = " ".join(capsys.readouterr().out.split())
    assert "2 of 3 images have no foreground: their IoU is 1 where nothing is found, else 0" in printed


def test_a_tolerance_of_surfaces_is_of_volumes(sam_folder, make_dataset):
    with pytest.raises(UserError, match=r"surface_tolerance: of volumes, and .* has none; leave it out"):
        run("--model", sam_folder, "--dataset", make_dataset(), "--surface_tolerance", "3")
    with pytest.raises(UserError, match=r"surface_tolerance: of volumes, and .* has none; leave it out"):
        train(Recipe(model=sam_folder, dataset=str(make_dataset()), surface_tolerance=3.0))
