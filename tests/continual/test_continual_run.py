"""Continual runs in this process: what they write, repeat, refuse."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image
from sams import random_sam

import hf_sam_adapt.continual.protocols.naive as naive_module
import hf_sam_adapt.continual.scoring as scoring
from hf_sam_adapt.config.continual_recipe import ContinualRecipe
from hf_sam_adapt.continual.metrics import summary
from hf_sam_adapt.continual.run import continual
from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.sam.windows import remove_windows


@pytest.fixture
def counted(monkeypatch):
    """Counts trainings and evaluations."""
    counts = {"train": [], "evaluate": 0}
    train, evaluate = naive_module.train, scoring.evaluate

    def counted_train(recipe, **how):
        counts["train"].append(recipe.output_dir.rsplit("/", 1)[-1])
        return train(recipe, **how)

    def counted_evaluate(*args, **how):
        counts["evaluate"] += 1
        return evaluate(*args, **how)

    monkeypatch.setattr(naive_module, "train", counted_train)
    monkeypatch.setattr(scoring, "evaluate", counted_evaluate)
    return counts


def results_of(folder):
    return json.loads((folder / "continual.json").read_text())


def test_a_run_holds_what_it_should(continual_recipe, domain_folders, capsys):
    folder = continual(continual_recipe(natural=domain_folders["third"]))
    assert {path.name for path in folder.iterdir()} == {
        "tasks",
        "evaluations",
        "continual.json",
        "matrix.png",
        "curves.png",
        "recipe.yaml",
    }
    assert {path.name for path in (folder / "tasks").iterdir()} == {"1-first", "2-second"}
    results = results_of(folder)
    assert results["domains"] == ["first", "second"] and results["protocol"] == "naive"
    for metric in ("iou", "biou"):
        matrix = np.array(results[f"matrix_{metric}"], float)
        assert matrix.shape == (2, 2) and ((matrix >= 0) & (matrix <= 1)).all()
        assert {name: results[name] for name in summary(matrix, metric)} == summary(matrix, metric)
        assert len(results[f"zero_shot_{metric}"]) == 2 == len(results[f"natural_curve_{metric}"])
    # The last task's own test is what its training measured.
    own = json.loads((folder / "tasks/2-second/metrics.json").read_text())["test"]["none"]
    assert own["adapted"]["iou"] == pytest.approx(results["matrix_iou"][1][1], abs=1e-9)
    assert own["zero_shot"]["iou"] == pytest.approx(results["zero_shot_iou"][1], abs=1e-9)
    shown = capsys.readouterr().out
    assert "Over all test sets" in shown and f"{results['last_iou']:.3f}" in shown


@pytest.mark.slow
def test_nothing_is_repeated_and_a_domain_can_be_added(continual_recipe, counted, weights):
    folder = continual(continual_recipe())
    assert counted["train"] == ["1-first", "2-second"] and counted["evaluate"] == 4 + 2
    before, written = weights(folder, 1), (folder / "continual.json").read_bytes()
    continual(continual_recipe())
    assert len(counted["train"]) == 2 and counted["evaluate"] == 6
    assert (folder / "continual.json").read_bytes() == written
    continual(continual_recipe(domains=("first", "second", "third")))
    assert counted["train"][2:] == ["3-third"] and counted["evaluate"] == 6 + 1 + 3 + 1
    matrix = results_of(folder)["matrix_iou"]
    assert matrix[0][2] is None and all(cell is not None for row in matrix[1:] for cell in row)
    assert all((before[name] == value).all() for name, value in weights(folder, 1).items())
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert [domain["name"] for domain in recipe["domains"]] == ["first", "second", "third"]


def test_an_unfinished_task_goes_on(continual_recipe, monkeypatch, weights):
    straight = continual(continual_recipe("straight", max_steps=4, checkpoint_every=1, eval_every=2))
    from hf_sam_adapt.training.loop import TrainingLoop

    step, count = TrainingLoop._optimizer_step, [0]

    def interrupted(self, *args):
        count[0] += 1
        if count[0] == 7:
            raise KeyboardInterrupt
        return step(self, *args)

    monkeypatch.setattr(TrainingLoop, "_optimizer_step", interrupted)
    recipe = continual_recipe(max_steps=4, checkpoint_every=1, eval_every=2)
    with pytest.raises(KeyboardInterrupt):
        continual(recipe)
    folder = continual(recipe)
    assert count[0] == 9  # 4 + 2 and the interrupted one, then two more
    one, other = weights(straight, 1), weights(folder, 1)
    assert all((one[name] == value).all() for name, value in other.items())
    assert results_of(folder) == results_of(straight)


def test_images_of_other_channels_and_sizes(continual_recipe, tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "radar" / kind).mkdir(parents=True)
    for number in range(12):
        mask = np.zeros((40, 50), np.uint8)
        mask[rng.integers(20) :, :20] = 255
        image = rng.normal(size=(40, 50, 5)).astype(np.float32) + mask[:, :, None] / 100
        np.save(tmp_path / f"radar/images/{number}.npy", image)
        Image.fromarray(mask).save(tmp_path / f"radar/masks/{number}.png")
    recipe = continual_recipe(domains=("first",), channels=5, image_size=48, max_steps=1)
    recipe.domains = [{"name": "radar", "dataset": str(tmp_path / "radar")}]
    results = results_of(continual(recipe))
    assert results["zero_shot_iou"] and len(results["matrix_iou"]) == 1


def test_what_is_finished_cannot_be_changed(continual_recipe, domain_folders):
    continual(continual_recipe(domains=("first",), max_steps=1))
    with pytest.raises(UserError, match=r"domains: number 1 is .*second.* has .*first.*add domains at the end"):
        continual(continual_recipe(domains=("second", "first"), max_steps=1))
    with pytest.raises(UserError, match=r"max_steps: 2, the run in .* has 1"):
        continual(continual_recipe(domains=("first",), max_steps=2))
    with pytest.raises(UserError, match="protocol: 'er'"):
        continual(continual_recipe(domains=("first",), max_steps=1, protocol="er"))
    more = {"natural": domain_folders["third"], "attention": "sdpa", "compile": True}
    continual(continual_recipe(domains=("first",), max_steps=1, **more))


def test_a_single_run_is_not_continued(continual_recipe, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.yaml").write_text("dataset: x\n")
    with pytest.raises(UserError, match="holds a run on one data set"):
        continual(continual_recipe())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"domains": []}, "domains: missing"),
        ({"domains": ["synthetic:polyp", "synthetic:polyp"]}, "polyp is there twice"),
        ({"domains": ["synthetic:polyp"], "dataset": "x"}, "dataset: x: name data sets under domains"),
        ({"domains": ["synthetic:polyp"], "num_labels": 3}, "num_labels: 3: a continual run segments one class"),
        ({"domains": [{"name": "auto", "dataset": "x"}]}, "'auto' is reserved"),
        ({"domains": [{"name": "x", "mask_suffix": "_m"}]}, "names no dataset"),
        ({"domains": [{"name": "x", "dataset": "y", "mask_sufix": "_m"}]}, "mask_sufix.*did you mean 'mask_suffix'"),
        ({"domains": ["synthetic:polyp"], "resume_from_checkpoint": "x"}, "always goes on"),
    ],
)
def test_bad_recipes(keys, message):
    with pytest.raises(UserError, match=message):
        ContinualRecipe(**keys)


def test_short_forms_of_a_domain():
    recipe = ContinualRecipe(domains=["synthetic:polyp", {"tiles": "data/magnetic"}, "data/road"], natural="a/coco")
    assert recipe.domains == [
        {"name": "polyp", "dataset": "synthetic:polyp"},
        {"name": "tiles", "dataset": "data/magnetic"},
        {"name": "road", "dataset": "data/road"},
    ]
    assert recipe.read_natural().name == "natural" and recipe.read_natural().dataset == "a/coco"


def test_bad_data_and_arguments_are_refused_before_anything_is_written(continual_recipe, tmp_path):
    where = {"output_dir": str(tmp_path / "run")}
    with pytest.raises(UserError, match=r"domain gone: .*missing folder"):
        continual(ContinualRecipe(domains=[{"gone": str(tmp_path / "none")}], **where))
    with pytest.raises(UserError, match="domain classes: synthetic:landcover has 5 classes"):
        continual(ContinualRecipe(domains=[{"classes": "synthetic:landcover"}], **where))
    with pytest.raises(UserError, match="protocol_args of er: unknown key 'replays'; did you mean 'replay'"):
        continual(continual_recipe(protocol="er", protocol_args={"replays": 0.3}))
    with pytest.raises(UserError, match=r"and replay 1\.5 in"):
        continual(continual_recipe(protocol="er", protocol_args={"replay": 1.5}))
    assert not (tmp_path / "run").exists()


def test_embeddings_of_plain_sam_are_not_those_without_windows(monkeypatch):
    class Cache:
        def __init__(self, recipe, model, processor):
            self.model = model

        def embed(self, images):
            return (self.model,)

    monkeypatch.setattr(scoring, "embedding_cache", Cache)
    tests = scoring.TestImages({}, SimpleNamespace(cache_embeddings=True))
    monkeypatch.setattr(tests, "images", lambda name: name)
    plain, changed = random_sam(), random_sam()
    remove_windows(changed)
    assert tests.for_model("a", changed, None) is changed and tests.for_model("a", plain, None) is plain
    assert tests.for_model("a", random_sam(), None) is plain


def test_scores_of_other_test_images_are_computed_anew(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"none": {"iou": 0.5}}

    path = tmp_path / "scores" / "a.json"
    for digest, count in (("x", 1), ("x", 1), ("y", 2), ("y", 2)):
        assert scoring.remembered(path, digest, compute) == {"none": {"iou": 0.5}} and len(calls) == count
    path.write_text(json.dumps({"none": {"iou": 0.25}}))  # by an earlier version
    assert scoring.remembered(path, "x", compute) == {"none": {"iou": 0.25}} and len(calls) == 2


def test_a_corrected_mask_makes_other_test_images(make_dataset):
    data = make_dataset(test=2)

    def digest():
        return scoring.TestImages({"a": load_segmentation_dataset(str(data))}, None).digest("a")

    before = digest()
    assert digest() == before
    path = sorted((data / "test/masks").iterdir())[1]
    mask = np.array(Image.open(path))
    mask[0, 0] = not mask[0, 0]
    Image.fromarray(mask).save(path)
    assert digest() != before
