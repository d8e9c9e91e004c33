"""What a run records of its course: kept over an interruption, bounded in length, drawn."""

import json
import random

import numpy as np
import pytest
from PIL import Image

import hf_sam_adapt.training.loop
from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.training import train
from hf_sam_adapt.training.history import loss_limit, record_step, save_curve, smoothed


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


def pixels_of(path, colour, tolerance=40):
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    rows, columns = np.nonzero((np.abs(picture - colour) < tolerance).all(axis=-1))
    return rows, columns


RED, ORANGE, BLUE = (214, 39, 40), (255, 127, 14), (31, 119, 180)
ROWS = [{"first": n, "step": n, "loss": 1 / n + 0.2, "train_iou": 1 - 1 / n} for n in range(1, 101)]


@pytest.mark.parametrize("spikes", [(1,), (2, 3), (50,), (1, 99)])
@pytest.mark.parametrize("height", [1e2, 1e6])
def test_spikes_do_not_flatten_the_curve(tmp_path, spikes, height):
    usual = [row["loss"] for row in ROWS]
    losses = [height if row["step"] in spikes else row["loss"] for row in ROWS]
    assert loss_limit(losses) < 2 * max(usual)
    assert max(smoothed(losses)) < 2 * max(usual)
    save_curve([{**row, "loss": loss} for row, loss in zip(ROWS, losses)], [], tmp_path / "curve.png")


def test_an_even_curve_is_shown_whole_and_smoothed():
    losses = [1.0, 0.5] * 50
    assert loss_limit(losses) >= 1
    inner = smoothed(losses)
    assert min(inner) > 0.6 and max(inner) < 0.9 and len(inner) == 100


def test_best_step_zero_shot_and_constant_are_marked(tmp_path):
    validations = [{"step": 30, "val_iou": 0.8}, {"step": 60, "val_iou": 0.9}, {"step": 90, "val_iou": 0.4}]
    paths = {name: tmp_path / f"{name}.png" for name in ("plain", "marked", "later")}
    save_curve(ROWS, [], paths["plain"])
    save_curve(ROWS, validations, paths["marked"], {"zero-shot": 0.3, "constant": 0.2})
    later = [{**row, "step": row["step"] + 5} for row in validations]
    save_curve(ROWS, later, paths["later"], {"zero-shot": None, "constant": 0.2})
    assert not len(pixels_of(paths["plain"], RED)[0]) and not len(pixels_of(paths["plain"], ORANGE)[0])
    star, moved = pixels_of(paths["marked"], RED), pixels_of(paths["later"], RED)
    assert len(star[0]) and len(pixels_of(paths["marked"], BLUE)[0])
    assert set(star[1]) != set(moved[1])  # the mark follows the step
    lines, one = (pixels_of(paths[name], ORANGE)[0] for name in ("marked", "later"))
    counts = [sorted({row for row in rows if (rows == row).sum() > 60}) for rows in (lines, one)]
    assert len(counts[0]) == 2 and len(counts[1]) == 1
