"""What a run records of its course: kept over an interruption, bounded in length, drawn."""

import json
import random

import pytest
from PIL import Image

import hf_sam_adapt.training.loop
from hf_sam_adapt.recipe import parse_recipe
from hf_sam_adapt.training import train
from hf_sam_adapt.training.history import record_step, save_curve


class Stopped(Exception):
    pass


def history_of(folder):
    return json.loads((folder / "metrics.json").read_text())["history"]


@pytest.mark.parametrize("total", [7, 200, 399, 1234])
def test_rows_are_means_over_all_steps(total):
    rows, values = [], [(random.random(), random.random()) for _ in range(total)]
    for step, (loss, iou) in enumerate(values, start=1):
        record_step(rows, step, total, loss, iou)
    assert len(rows) <= 400 and rows[0]["first"] == 1 and rows[-1]["step"] == total
    for row, following in zip(rows, [*rows[1:], {"first": total + 1}]):
        assert row["step"] + 1 == following["first"]
        part = values[row["first"] - 1 : row["step"]]
        assert row["loss"] == pytest.approx(sum(loss for loss, _ in part) / len(part))
        assert row["train_iou"] == pytest.approx(sum(iou for _, iou in part) / len(part))


def test_a_resumed_run_has_the_history_of_a_straight_one(short_recipe, monkeypatch):
    monkeypatch.setattr("hf_sam_adapt.training.history.ROWS", 2)  # rows of two steps: one is open at the stop
    keys = {"max_steps": 5, "checkpoint_every": 1, "eval_every": 2}
    straight = history_of(train(parse_recipe(short_recipe("straight", **keys))))
    original = hf_sam_adapt.training.loop.seed_micro_step

    def stop(seed, step, *rest):
        if step == 3:
            raise Stopped
        original(seed, step, *rest)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(hf_sam_adapt.training.loop, "seed_micro_step", stop)
        train(parse_recipe(short_recipe(**keys)))
    resumed = train(parse_recipe(short_recipe(**keys, resume_from_checkpoint="latest")))
    assert history_of(resumed) == straight
    assert [row["step"] for row in straight["train"]] == [2, 4, 5]
    assert [row["step"] for row in straight["validation"]] == [2, 4, 5]
    assert Image.open(resumed / "curve.png").size == (800, 280)


def test_a_curve_without_validations(tmp_path):
    save_curve([{"first": 1, "step": 1, "loss": 0.5, "train_iou": 0.1}], [], tmp_path / "curve.png")
    assert Image.open(tmp_path / "curve.png").width == 800
