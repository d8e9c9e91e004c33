"""A folder that grows after a run on it: what was trained on is never tested, and who goes on says so."""

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_sam_adapt.cli.evaluate import EvaluateArguments, evaluate_command
from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.training import train
from hf_sam_adapt.training.earlier_run import EarlierRun


def add(folder, names, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        rows, columns = np.mgrid[:48, :60]
        disc = (rows - rng.integers(10, 38)) ** 2 + (columns - rng.integers(10, 50)) ** 2 < 80
        image, mask = rng.integers(0, 90, (48, 60, 3), np.uint8) + 120 * disc[..., None], 255 * disc.astype(np.uint8)
        for kind, array in (("images", image), ("masks", mask)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(folder / kind / f"{name}.png")


def run(argv):
    return train(parse_recipe(argv))


def splits_of(folder):
    return json.loads((folder / "splits.json").read_text())


@pytest.fixture
def first(short_recipe, tmp_path):
    """A run on 10 images, which 12 others have joined since; its `splits.json` is as an older version dealt it."""
    rng = np.random.default_rng(4)
    names = ["".join(row) for row in rng.choice(list("abcdefgh"), (22, 8)).tolist()]
    add(tmp_path / "data", names[:10])
    folder = run(short_recipe("first", dataset=tmp_path / "data", max_steps=1, method="decoder", seed=7))
    mixed = rng.permutation(names[:10]).tolist()
    splits = {"train": mixed[:6], "val": mixed[6:8], "test": mixed[8:]}
    (folder / "splits.json").write_text(json.dumps(splits))
    add(tmp_path / "data", names[10:], seed=1)
    return folder


def continued(how, first, flags, data):
    """The splits of what goes on from the run."""
    if how == "resume":
        keys = {"dataset": data, "max_steps": 2, "method": "decoder", "seed": 7, "resume_from_checkpoint": "latest"}
        return splits_of(run(flags("first", **keys)))
    if how == "adapter":
        argv = flags("second", dataset=data, max_steps=1, adapter=first, seed=7)
    else:
        argv = flags("second", dataset=data, max_steps=1, adapter=first, seed=3)
    model = argv.index("--model")
    return splits_of(run(argv[:model] + argv[model + 2 :]))


@pytest.mark.parametrize("how", ["adapter", "adapter and another seed", "resume"])
def test_training_goes_on_with_the_sides_of_the_run(how, first, short_recipe, tmp_path, capsys):
    before = splits_of(first)
    capsys.readouterr()
    after = continued(how, first, short_recipe, tmp_path / "data")
    assert all(set(names) <= set(after[side]) for side, names in before.items())
    assert sum(map(len, after.values())) == 22 and len(after["train"]) > 10
    shown = capsys.readouterr().out
    assert re.search(r"data has changed since \S+ was trained: \d+ new in train.*the others keep their sides", shown)


@pytest.mark.parametrize("dataset", [None, "data", "data/../data"])
def test_evaluation_tests_what_the_run_has_not_trained_on(dataset, first, tmp_path, capsys):
    before = splits_of(first)
    dataset = None if dataset is None else str(tmp_path / dataset)
    result = evaluate_command(EvaluateArguments(adapter=str(first), dataset=dataset))
    tested = {record.id for record in result.records}
    assert set(before["test"]) <= tested and not tested & {*before["train"], *before["val"]}
    assert "has changed since" in capsys.readouterr().out


def test_a_copy_is_split_by_the_seed_of_the_run_and_another_set_is_said(first, tmp_path, capsys):
    (tmp_path / "data").rename(tmp_path / "copy")
    result = evaluate_command(EvaluateArguments(adapter=str(first), dataset=str(tmp_path / "copy")))
    own = EarlierRun.read(str(first))
    assert own.recipe["seed"] == 7 and own.known(tmp_path / "copy") is None
    shown = capsys.readouterr().out
    assert f"{first} was trained on {tmp_path / 'data'}, not on {tmp_path / 'copy'}" in shown
    assert "seed 7" in shown and "may have been trained" not in shown and result.records


def test_another_seed_on_a_copy_is_said(first, short_recipe, tmp_path, capsys):
    (tmp_path / "data").rename(tmp_path / "copy")
    argv = short_recipe("third", dataset=tmp_path / "copy", max_steps=1, adapter=first, seed=3)
    model = argv.index("--model")
    run(argv[:model] + argv[model + 2 :])
    assert "trained with the split of seed 7, this one is of seed 3" in capsys.readouterr().out


def test_nothing_is_said_of_an_unchanged_set(first, tmp_path, capsys):
    splits = splits_of(first)
    for path in [*(tmp_path / "data/images").iterdir(), *(tmp_path / "data/masks").iterdir()]:
        if path.stem not in {name for names in splits.values() for name in names}:
            path.unlink()
    evaluate_command(EvaluateArguments(adapter=str(first)))
    assert "changed" not in capsys.readouterr().out


def test_a_named_split_that_grew_is_said(short_recipe, tmp_path, capsys):
    for split, count in (("train", 5), ("val", 2), ("test", 2)):
        add(tmp_path / "named" / split, map(str, range(count)))
    folder = run(short_recipe("named_run", dataset=tmp_path / "named", max_steps=1, method="decoder"))
    assert not (folder / "splits.json").exists()
    add(tmp_path / "named/train", ["new", "newer"])
    add(tmp_path / "named/test", ["new"])
    capsys.readouterr()
    evaluate_command(EvaluateArguments(adapter=str(folder)))
    assert "was trained: 2 new in train, 1 new in test\n" in capsys.readouterr().out


def test_a_damaged_splits_file_is_one_clear_line(first):
    (first / "splits.json").write_text("[1, 2")
    with pytest.raises(ValueError, match=r"splits\.json: not a readable splits\.json"):
        evaluate_command(EvaluateArguments(adapter=str(first)))


def test_the_recipe_of_the_run_is_untouched(first):
    assert yaml.safe_load((first / "recipe.yaml").read_text())["seed"] == 7


def test_a_test_split_without_foreground_ends_in_an_error_and_loses_nothing(short_recipe, tmp_path):
    for split, count in (("train", 5), ("val", 2), ("test", 2)):
        add(tmp_path / "named" / split, map(str, range(count)))
    masks = list((tmp_path / "named/test/masks").iterdir())
    kept = {path: path.read_bytes() for path in masks}
    for path in masks:
        Image.fromarray(np.zeros((48, 60), np.uint8)).save(path)
    flags = {"dataset": tmp_path / "named", "method": "decoder", "mask_values": "binary"}
    with pytest.raises(ValueError, match=r"test: none of the 2 masks .*resume_from_checkpoint: latest") as error:
        run(short_recipe("empty_test", **flags))
    assert "\n" not in str(error.value)
    for path, content in kept.items():
        path.write_bytes(content)
    folder = run(short_recipe("empty_test", **flags, resume_from_checkpoint="latest"))
    assert json.loads((folder / "metrics.json").read_text())["measured_on"] == "test"
