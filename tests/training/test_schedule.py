"""When a training validates, when it ends, and that what it costs does not depend on what ran before it."""

import json
import subprocess
import sys

import pytest
from launching import environment

import hf_sam_adapt.training.loop
from hf_sam_adapt.config.continual_recipe import ContinualRecipe
from hf_sam_adapt.config.recipe import Recipe, parse_recipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.training import train
from hf_sam_adapt.training.loop import Schedule


@pytest.mark.parametrize(
    ("images", "interval"), [(1, 10), (4, 10), (6, 10), (9, 12), (20, 10), (37, 10), (40, 10), (44, 11), (400, 100)]
)
def test_small_data_sets_are_not_validated_after_every_step(images, interval):
    """Whole epochs, at least ten steps; batch 4."""
    schedule = Schedule.of(Recipe(epochs=50), images, 1)
    assert (schedule.eval_every, schedule.checkpoint_every) == (interval, interval)
    named = Schedule.of(Recipe(epochs=50, eval_every=1, checkpoint_every=3), images, 1)
    assert (named.eval_every, named.checkpoint_every) == (1, 3)


def validations(monkeypatch, values):
    """Training with the validation IoUs of `values`, by step."""
    monkeypatch.setattr(
        hf_sam_adapt.training.loop.TrainingLoop,
        "_validate",
        lambda loop: loop._remember_best(values[loop.state.step - 1], "IoU"),
    )


def found(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return metrics["history"]["validation"][-1]["step"], metrics["train"]["best_step"]


@pytest.mark.parametrize(
    ("patience", "values", "last", "best"),
    [
        (1, [0.1, 0.2, 0.1, 0.9, 0.9, 0.9], 3, 2),
        (2, [0.1, 0.2, 0.1, 0.9, 0.8, 0.7], 6, 4),
        pytest.param(2, [0.5, 0.4, 0.3, 0.9, 0.9, 0.9], 3, 1, marks=pytest.mark.slow),
        # No better is not better, though the later of equals is kept.
        (2, [0.0, 0.0, 0.0, 0.9, 0.9, 0.9], 3, 3),
        pytest.param(9, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 6, 1, marks=pytest.mark.slow),
        pytest.param(None, [0.5, 0.4, 0.3, 0.2, 0.1, 0.0], 6, 1, marks=pytest.mark.slow),
    ],
)
def test_early_stopping(short_recipe, monkeypatch, patience, values, last, best):
    validations(monkeypatch, values)
    keys = {} if patience is None else {"early_stopping": patience}
    argv = short_recipe(method="decoder", max_steps=6, eval_every=1, checkpoint_every=100, **keys)
    folder = train(parse_recipe(argv))
    assert found(folder) == (last, best)
    (folder / "metrics.json").unlink()  # finished again, and not trained on
    again = train(parse_recipe([*argv, "--resume_from_checkpoint", "latest"]))
    assert found(again) == (last, best)


def test_learning_rates_of_tasks(tmp_path):
    keys = {"domains": ["synthetic:polyp", "synthetic:shadow"], "protocol": "naive", "learning_rate": 1e-4}
    recipe = ContinualRecipe(**keys, learning_rates=[1e-2, 3e-3])
    rates = [recipe.task(domain, tmp_path).learning_rate for domain in recipe.read_domains()]
    assert rates == [1e-2, 3e-3]
    assert ContinualRecipe(**keys).task(recipe.read_domains()[1], tmp_path).learning_rate == 1e-4
    for wrong in ({"learning_rates": [1e-2]}, {"learning_rates": [1e-2, 1e-3], "protocol": "joint"}):
        with pytest.raises(UserError, match=r"^learning_rates: "):
            ContinualRecipe(**keys | wrong)
    with pytest.raises(UserError, match=r"^learning_rates: "):
        ContinualRecipe(**keys, learning_rates=[1e-2, -1.0])


SERIES = """
import json, sys
from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.training import train
for number in range(2):
    keys = json.loads(sys.argv[2])
    recipe = Recipe(max_steps=2, batch_size=3, output_dir=f"{sys.argv[1]}/{number}", **keys)
    folder = train(recipe, keep_processes=True)
    print("cost", (json.loads((folder / "metrics.json").read_text())["train"]["peak_memory_bytes"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"method": "decoder", "cache_embeddings": True, "augment": []}])
def test_memory_is_the_same_whatever_ran_before(disc_folder, tmp_path, keys):
    keys = {"dataset": str(disc_folder), "model": "tiny", **keys}
    command = [sys.executable, "-c", SERIES, str(tmp_path), json.dumps(keys)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, timeout=500)
    first, second = (int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("cost "))
    assert second == pytest.approx(first, rel=0.2)
