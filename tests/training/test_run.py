"""Whole runs in this process: what they write, what they refuse, what they never look at."""

import json
import re

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import hf_sam_adapt.training.loop
import hf_sam_adapt.training.run
from hf_sam_adapt import SamAdaptProcessor
from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.data.folder import FileReader
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.training import train


def run(argv):
    return train(parse_recipe(argv))


@pytest.fixture
def finished(short_recipe):
    return run(short_recipe())


def test_a_run_folder_holds_what_it_should(finished):
    top = {path.name for path in finished.iterdir()}
    assert top == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "preprocessor_config.json",
        "README.md",
        "recipe.yaml",
        "metrics.json",
        "samples.png",
        "curve.png",
        "checkpoints",
        "logs",
    }
    steps = {path.name for path in (finished / "checkpoints").iterdir()}
    best = json.loads((finished / "checkpoints" / "best.json").read_text())
    assert steps == {"step_2", "step_4", "best.json"} and best["step"] in (2, 4)
    metrics = json.loads((finished / "metrics.json").read_text())
    assert set(metrics["test"]) == {"none"} and metrics["measured_on"] == "test"
    for scores in metrics["test"]["none"].values():
        assert 0 <= scores["iou"] <= scores["dice"] <= 1
    assert set(metrics["test"]["none"]) == {"zero_shot", "adapted", "constant"}
    train_part = metrics["train"]
    assert train_part["images_per_second"] > 0 and train_part["peak_memory_bytes"] > 0
    tensors = load_file(finished / "adapter_model.safetensors")
    assert train_part["trainable_parameters"] == sum(t.numel() for t in tensors.values())
    assert train_part["adapter_bytes"] == (finished / "adapter_model.safetensors").stat().st_size
    assert len((finished / "logs/per_image.csv").read_text().splitlines()) > 3
    assert Image.open(finished / "logs/worst.png").width > 300
    assert Image.open(finished / "samples.png").width > 300
    card = (finished / "README.md").read_text()
    assert card.index("import hf_sam_adapt") < card.index("PeftModel.from_pretrained")
    assert f"{metrics['test']['none']['adapted']['iou']:.3f}" in card


def test_the_adapter_is_the_best_validated_checkpoint(finished):
    best = json.loads((finished / "checkpoints" / "best.json").read_text())
    checkpoint = load_file(finished / "checkpoints" / f"step_{best['step']}" / "trainable.safetensors")
    model = load_adapted(str(finished)).model
    parameters = dict(model.named_parameters())
    assert checkpoint and all(torch.equal(parameters[name], tensor) for name, tensor in checkpoint.items())


@pytest.mark.slow
def test_the_written_recipe_gives_the_same_run(finished, short_recipe, tmp_path):
    recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
    assert recipe["learning_rate"] == 2e-4 and recipe["mask_values"] == "binary" and recipe["image_size"] == 64
    again = run(["--config", str(finished / "recipe.yaml"), "--output_dir", str(tmp_path / "again")])
    name = "adapter_model.safetensors"
    assert (again / name).read_bytes() == (finished / name).read_bytes()
    other = run([*short_recipe("other"), "--seed", "1"])
    assert (other / name).read_bytes() != (finished / name).read_bytes()


@pytest.mark.parametrize("method", ["decoder", "lora", "full"])
def test_other_methods_train_and_reload(method, short_recipe):
    folder = run(short_recipe(method=method, prompts=["none", "box", "point", "mask"], max_steps=2))
    loaded = load_adapted(str(folder))
    assert isinstance(loaded.processor, SamAdaptProcessor)
    weights = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["train"]["adapter_bytes"] == (folder / weights).stat().st_size
    assert list(metrics["test"]) == ["none", "box", "point", "mask"]
    assert metrics["test"]["box"]["zero_shot"] is not None
    stored = load_file(folder / "checkpoints" / "step_2" / "trainable.safetensors")
    assert metrics["train"]["trainable_parameters"] == sum(tensor.numel() for tensor in stored.values())


def test_training_goes_on_from_an_adapter(finished, short_recipe):
    argv = short_recipe("more", max_steps=1, learning_rate=0, adapter=finished)
    named = argv.index("--model")
    folder = run(argv[:named] + argv[named + 2 :])
    before, after = (load_file(path / "adapter_model.safetensors") for path in (finished, folder))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["model"] and recipe["method"] == "sam_adapter"
    with pytest.raises(UserError, match="method_args"):
        run([*short_recipe("third", adapter=finished), "--method_args.scale_factor", "8"])


def test_the_test_split_is_read_by_the_final_evaluation_only(short_recipe, monkeypatch):
    opened, training = [], [True]
    for name in ("read_image", "read_mask"):
        original = getattr(FileReader, name)

        def watched(self, row, original=original):
            opened.append((training[0], self.name(row)))
            return original(self, row)

        monkeypatch.setattr(FileReader, name, watched)
    finish = hf_sam_adapt.training.run.finish

    def final(*arguments):
        training[0] = False
        finish(*arguments)

    monkeypatch.setattr(hf_sam_adapt.training.run, "finish", final)
    run(short_recipe())
    in_test = re.compile(r"[/\\]test[/\\]")
    early = [name for early, name in opened if early]
    assert any("train" in name for name in early) and any("val" in name for name in early)
    assert not [name for name in early if in_test.search(name)]
    assert [name for early, name in opened if not early and in_test.search(name)]


def test_one_image_trains_and_says_that_nothing_is_held_out(short_recipe, disc_folder, tmp_path, capsys):
    for kind in ("images", "masks"):
        (tmp_path / "one" / kind).mkdir(parents=True)
        source = disc_folder / "train" / kind / "000.png"
        (tmp_path / "one" / kind / "000.png").write_bytes(source.read_bytes())
    folder = run(short_recipe(dataset=tmp_path / "one"))
    assert "one image: nothing is held out" in capsys.readouterr().out
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["measured_on"] == "train" and metrics["train"]["best_step"] is None
    assert "nothing is held out" in (folder / "README.md").read_text()
    last = load_file(folder / "checkpoints" / "step_4" / "trainable.safetensors")
    parameters = dict(load_adapted(str(folder)).model.named_parameters())
    assert all(torch.equal(parameters[name], tensor) for name, tensor in last.items())


def test_splits_drawn_by_seed_are_written(short_recipe, disc_folder, tmp_path):
    (tmp_path / "flat").symlink_to(disc_folder / "train")
    folder = run(short_recipe(dataset=tmp_path / "flat", max_steps=1))
    splits = json.loads((folder / "splits.json").read_text())
    assert sorted(name for part in splits.values() for name in part) == [f"{i:03}" for i in range(10)]
    assert all(splits[name] for name in ("train", "val", "test"))


def test_further_metrics_are_in_the_run_folder(short_recipe):
    folder = run(short_recipe("further", max_steps=1, metrics=["s_measure", "ber"]))
    scores = json.loads((folder / "metrics.json").read_text())["test"]["none"]
    for name in ("zero_shot", "adapted", "constant"):
        assert {"iou", "s_measure", "ber", "ber_pooled"} < set(scores[name])
    assert "S-measure" in (folder / "README.md").read_text()


def test_gradient_checkpointing_and_bf16(short_recipe):
    plain = run(short_recipe("plain", max_steps=2))
    checkpointed = run(short_recipe("gc", max_steps=2, gradient_checkpointing=True))
    half = run(short_recipe("half", max_steps=2, precision="bf16"))
    one, two, three = (load_file(path / "adapter_model.safetensors") for path in (plain, checkpointed, half))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    assert all(torch.allclose(one[name], three[name], atol=2e-3) for name in one)
    assert any(not torch.equal(one[name], three[name]) for name in one)


@pytest.mark.slow
def test_a_batch_is_accumulated_from_smaller_ones(short_recipe):
    whole = run(short_recipe("whole", batch_size=4, max_steps=3, max_grad_norm=0))
    parts = run(short_recipe("parts", batch_size=1, gradient_accumulation_steps=4, max_steps=3, max_grad_norm=0))
    one, two = (load_file(path / "adapter_model.safetensors") for path in (whole, parts))
    assert all(torch.allclose(one[name], two[name], atol=2e-5) for name in one)


def test_images_without_objects_give_no_nan_and_a_set_of_them_is_refused(short_recipe, disc_folder, tmp_path):
    for split, count in (("train", 8), ("val", 2), ("test", 4)):
        for kind in ("images", "masks"):
            (tmp_path / "empty" / split / kind).mkdir(parents=True)
            for number in range(count):
                picture = Image.open(disc_folder / "train" / kind / f"{number:03}.png")
                picture = picture.point(lambda value: 0) if kind == "masks" and number else picture
                picture.save(tmp_path / "empty" / split / kind / f"{number:03}.png")
    flags = {"dataset": tmp_path / "empty", "prompts": ["box"], "mask_values": "binary", "max_steps": 2}
    folder = run(short_recipe(**flags, batch_size=4))
    assert all(torch.isfinite(t).all() for t in load_file(folder / "adapter_model.safetensors").values())
    for kind in ("images", "masks"):
        (tmp_path / "empty/train" / kind / "000.png").unlink()
    with pytest.raises(UserError, match="no foreground in 7 training masks"):
        run(short_recipe("refused", **flags))
    assert not (tmp_path / "refused").exists()


def test_a_loss_that_is_not_finite_stops_with_the_step(short_recipe, monkeypatch):
    original = hf_sam_adapt.training.loop.loss_of_labels
    calls = []

    def broken(*arguments):
        calls.append(1)
        return original(*arguments) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(hf_sam_adapt.training.loop, "loss_of_labels", broken)
    with pytest.raises(UserError, match="loss became nan at step 3; lower learning_rate"):
        run(short_recipe())


def test_tracker_writes_into_logs(short_recipe):
    pytest.importorskip("tensorboard")
    folder = run(short_recipe(report_to="tensorboard"))
    assert list((folder / "logs").rglob("events.out.tfevents.*"))
    assert {path.suffix for path in folder.iterdir() if path.is_file()} <= {
        ".safetensors",
        ".json",
        ".yaml",
        ".md",
        ".png",
    }


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dataset": "nowhere"}, "nowhere"),
        ({"model": "nowhere"}, "nowhere"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"num_labels": 3, "mask_values": "binary", "method": "lora"}, "num_labels"),
        ({"num_labels": 3, "mask_values": "binary", "prompts": ["box"]}, "prompts"),
        ({"method_args.scale_facto": 3}, "scale_factor"),
        ({"image_size": 60}, "image_size|60"),
        ({"report_to": "wandb"}, "pip install wandb"),
        ({"resume_from_checkpoint": "elsewhere/step_2"}, "elsewhere/step_2"),
        ({"adapter": "nowhere"}, "nowhere"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(keys, message, short_recipe, tmp_path, monkeypatch):
    if keys.get("precision") == "fp16" and torch.cuda.is_available():
        pytest.skip("fp16 works here")
    if keys.get("report_to"):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=message) as raised:
        run(short_recipe(**keys))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_missing_dataset(short_recipe, tmp_path):
    with pytest.raises(UserError, match="dataset: missing"):
        run(["--output_dir", str(tmp_path / "run")])


def test_a_folder_that_holds_another_run_is_refused(finished, short_recipe):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    with pytest.raises(UserError, match=r"output_dir: .*already holds recipe.yaml.*resume_from_checkpoint"):
        run(short_recipe())
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*")}


def test_somebody_elses_readme_is_not_overwritten(short_recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"already holds README\.md"):
        run(short_recipe())
    assert (tmp_path / "run" / "README.md").read_text() == "mine"
