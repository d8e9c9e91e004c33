"""Checkpoints and what is continued from them: the same weights as the straight run, bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import ROOT, environment, recipe_flags
from safetensors.torch import load_file

import hf_sam_adapt.training.loop
from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.training import train
from hf_sam_adapt.training.checkpoints import Checkpoints
from hf_sam_adapt.training.task import BinaryTask


ADAPTER = "adapter_model.safetensors"
pytestmark = pytest.mark.xdist_group("resume")  # one worker makes the straight run
# Everything random at once: dropout, augmentation, prompt kinds, objects; and more than one micro-step.
RANDOM = {
    "method": "lora",
    "method_args.lora_dropout": 0.3,
    "augment": ["flip", "scale", "crop", "colour"],
    "prompts": ["none", "box", "point", "mask"],
    "correction_rounds": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 12,
    "checkpoint_every": 3,
    "eval_every": 4,
    "learning_rate": 1e-2,
}


def run(argv):
    return train(parse_recipe(argv))


@pytest.fixture(scope="module")
def straight(sam_folder, disc_folder, tmp_path_factory):
    """The run folder that all interrupted runs of RANDOM must end with."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    return run(recipe_flags(model=sam_folder, dataset=disc_folder, output_dir=folder, **RANDOM))


class Stopped(Exception):
    pass


def stop_after(monkeypatch, step):
    """Make the training end abruptly in the micro-steps of optimizer step `step`."""
    original = hf_sam_adapt.training.loop.seed_micro_step

    def seed(seed, at, micro_step, rank):
        if (at, micro_step) == (step, 1):
            raise Stopped
        original(seed, at, micro_step, rank)

    monkeypatch.setattr(hf_sam_adapt.training.loop, "seed_micro_step", seed)


@pytest.mark.slow
@pytest.mark.xdist_group("torchrun")
def test_two_processes_killed_in_the_middle_resume_bit_for_bit(short_recipe, command_line, tmp_path):
    keys = {**RANDOM, "max_steps": 9, "batch_size": 1}
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    launcher = (*launch, ROOT / "recipes" / "train.py")
    straight = command_line(*short_recipe("straight", **keys), launcher=launcher)
    assert straight.returncode == 0, straight.stderr
    argv = short_recipe("killed", **keys, resume_from_checkpoint="latest")
    with open(tmp_path / "log", "w") as log:
        command = [*map(str, launcher), *map(str, argv)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(), stdout=log, stderr=log, start_new_session=True
        )
        while process.poll() is None and newest(tmp_path / "killed" / "checkpoints") < 3:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)  # both, and torchrun
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    resumed = command_line(*argv, launcher=launcher)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at step" in resumed.stdout
    assert (tmp_path / "killed" / ADAPTER).read_bytes() == (tmp_path / "straight" / ADAPTER).read_bytes()


@pytest.mark.slow
def test_resumed_after_sigkill_equals_the_straight_run(short_recipe, command_line, tmp_path):
    keys = {**RANDOM, "num_workers": 1, "max_steps": 40}
    straight = command_line("train", *short_recipe("straight", **keys))
    assert straight.returncode == 0, straight.stderr
    argv = short_recipe("killed", **keys, resume_from_checkpoint="latest")
    checkpoints = tmp_path / "killed" / "checkpoints"
    for wanted in (2, 5):
        log = open(tmp_path / "log", "w")
        command = [sys.executable, "-m", "hf_sam_adapt.cli", "train", *argv]
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
        while process.poll() is None and newest(checkpoints) < 3 * wanted:
            time.sleep(0.005)
        time.sleep(random.random() * 0.1)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
        assert not (tmp_path / "killed" / "metrics.json").exists()
    resumed = command_line("train", *argv)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at step" in resumed.stdout
    assert (tmp_path / "killed" / ADAPTER).read_bytes() == (tmp_path / "straight" / ADAPTER).read_bytes()
    scores = [json.loads((tmp_path / name / "metrics.json").read_text())["test"] for name in ("killed", "straight")]
    assert scores[0] == scores[1]


def newest(checkpoints: Path) -> int:
    return max((int(path.name[5:]) for path in checkpoints.glob("step_*")), default=0)


@pytest.mark.parametrize("stop", [0, 4, 11, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 3, 8))])
def test_resumed_anywhere_equals_the_straight_run(stop, straight, short_recipe, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Stopped):
            run(short_recipe("broken", **RANDOM))
    resumed = run(short_recipe("broken", **RANDOM, resume_from_checkpoint="latest"))
    assert (resumed / ADAPTER).read_bytes() == (straight / ADAPTER).read_bytes()
    for step in ("step_9", "step_12"):
        one, two = (load_file(path / "checkpoints" / step / "trainable.safetensors") for path in (straight, resumed))
        assert one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)
    assert (resumed / "checkpoints" / "best.json").read_text() == (straight / "checkpoints" / "best.json").read_text()


def test_without_a_checkpoint_latest_starts_from_the_beginning(short_recipe, capsys):
    run(short_recipe(resume_from_checkpoint="latest"))
    assert "No checkpoint yet" in capsys.readouterr().out


@pytest.mark.slow
def test_an_older_checkpoint_can_be_named(short_recipe, tmp_path):
    keys = {**RANDOM, "checkpoint_every": 1}
    folder = run(short_recipe(**keys))
    expected = (folder / ADAPTER).read_bytes()
    step = max(s for s in saved_steps(folder) if s < 12)
    run(short_recipe(**keys, resume_from_checkpoint=folder / "checkpoints" / f"step_{step}"))
    assert (folder / ADAPTER).read_bytes() == expected


def saved_steps(folder):
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints").glob("step_*"))


def test_newest_two_and_the_best_are_kept(short_recipe, monkeypatch):
    scores = iter([0.1, 0.9, 0.3, 0.4, 0.5])
    original = BinaryTask.validate

    def validate(*arguments):
        return next(scores), original(*arguments)[1]

    monkeypatch.setattr(BinaryTask, "validate", validate)
    folder = run(short_recipe(max_steps=10, checkpoint_every=2, eval_every=2))
    assert saved_steps(folder) == [4, 8, 10]
    assert json.loads((folder / "checkpoints" / "best.json").read_text()) == {"step": 4, "iou": 0.9}


def test_a_better_validation_between_checkpoints_is_saved(short_recipe):
    folder = run(short_recipe(max_steps=4, checkpoint_every=100, eval_every=1))
    best = json.loads((folder / "checkpoints" / "best.json").read_text())["step"]
    assert best in saved_steps(folder)


def damage_state(folder):
    (folder / "state.json").unlink()


def damage_weights(folder):
    file = folder / "trainable.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def leave_temporary(folder):
    folder.rename(folder.with_name(f".tmp_{folder.name}"))


@pytest.mark.parametrize(
    "damage",
    [damage_weights, *(pytest.param(done, marks=pytest.mark.slow) for done in (damage_state, leave_temporary))],
)
def test_a_torn_checkpoint_is_passed_over_and_removed(damage, straight, short_recipe, monkeypatch, tmp_path, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 10)
        with pytest.raises(Stopped):
            run(short_recipe("torn", **RANDOM))
    torn = tmp_path / "torn"
    newest_two = saved_steps(torn)[-2:]
    damage(torn / "checkpoints" / f"step_{newest_two[1]}")
    with pytest.raises(UserError, match="missing or incomplete"):
        path = torn / "checkpoints" / f"step_{newest_two[1]}"
        run(short_recipe("torn", **RANDOM, resume_from_checkpoint=path))
    capsys.readouterr()
    run(short_recipe("torn", **RANDOM, resume_from_checkpoint="latest"))
    assert f"Resumed at step {newest_two[0]} " in capsys.readouterr().out
    assert (torn / ADAPTER).read_bytes() == (straight / ADAPTER).read_bytes()
    assert not list((torn / "checkpoints").glob(".tmp*"))


def test_a_finished_run_resumed_gives_the_same_files(short_recipe):
    folder = run(short_recipe())
    before = (folder / ADAPTER).read_bytes(), json.loads((folder / "metrics.json").read_text())
    run(short_recipe(resume_from_checkpoint="latest"))
    assert before == ((folder / ADAPTER).read_bytes(), json.loads((folder / "metrics.json").read_text()))


def test_only_own_checkpoints_are_read(short_recipe, tmp_path):
    folder = run(short_recipe())
    shutil.copytree(folder / "checkpoints" / "step_4", tmp_path / "copy" / "step_4")
    with pytest.raises(UserError, match="only own checkpoints"):
        run(short_recipe(resume_from_checkpoint=tmp_path / "copy" / "step_4"))


def test_a_pickle_with_code_is_not_run(short_recipe, tmp_path):
    folder = run(short_recipe())
    best = json.loads((folder / "checkpoints" / "best.json").read_text())["step"]
    assert best
    target = tmp_path / "touched"
    optimizer = folder / "checkpoints" / "step_4" / "optimizer.bin"

    import torch

    class Evil:
        def __reduce__(self):
            return (Path.touch, (target,))

    torch.save({"state": Evil()}, optimizer)
    state = optimizer.with_name("state.json")
    content = json.loads(state.read_text())
    content["files"]["optimizer.bin"] = optimizer.stat().st_size
    state.write_text(json.dumps(content))
    with pytest.raises(Exception, match=r"weights_only|Weights only|Unsupported"):
        run(short_recipe(resume_from_checkpoint="latest"))
    assert not target.exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rate": 0.5}, "learning_rate is 0.5, the run .* has"),
        ({"method": "decoder"}, "method is 'decoder'"),
        ({"batch_size": 3}, "took 2 images per optimizer step, this run takes 3"),
        ({"seed": 9}, "seed is 9"),
    ],
)
def test_a_resumed_run_must_be_the_same(keys, message, short_recipe):
    run(short_recipe())
    with pytest.raises(UserError, match=message):
        run(short_recipe(**keys, resume_from_checkpoint="latest"))


def test_a_run_that_stands_behind_its_end_is_left_as_it_is(short_recipe):
    folder = run(short_recipe())
    before = (folder / "recipe.yaml").read_bytes()
    with pytest.raises(UserError, match=r"stands at step 4, and this run ends at step 2; raise max_steps or epochs"):
        run(short_recipe(max_steps=2, resume_from_checkpoint="latest"))
    assert (folder / "recipe.yaml").read_bytes() == before


def test_a_run_goes_on_with_more_steps_and_other_divisions(short_recipe):
    folder = run(short_recipe())
    keys = {"max_steps": 6, "batch_size": 1, "gradient_accumulation_steps": 2, "num_workers": 1}
    run(short_recipe(**keys, resume_from_checkpoint="latest"))
    assert saved_steps(folder)[-1] == 6


def test_only_trained_parameters_are_stored(short_recipe):
    folder = run(short_recipe())
    checkpoint = folder / "checkpoints" / "step_4"
    assert {path.name for path in checkpoint.iterdir()} == {
        "trainable.safetensors",
        "optimizer.bin",
        "random_states_0.pkl",
        "state.json",
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    stored = load_file(checkpoint / "trainable.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == metrics["train"]["trainable_parameters"]


def test_checkpoints_class_needs_no_folder_before_the_first_save(tmp_path):
    class Accelerator:
        def register_save_state_pre_hook(self, hook): ...

        def register_load_state_pre_hook(self, hook): ...

    checkpoints = Checkpoints(tmp_path / "none", Accelerator(), None)
    assert checkpoints.find("latest") is None and not (tmp_path / "none").exists()
