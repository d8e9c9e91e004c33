"""Recipes from files and flags: precedence, nesting, types, and one clear error for each mistake."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from hf_sam_adapt.cli.arguments import EvaluateArguments, PredictArguments
from hf_sam_adapt.config.arguments import parse_arguments
from hf_sam_adapt.config.paths import absolute
from hf_sam_adapt.config.recipe import Recipe, parse_recipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.tuners.conv_lora import ConvLoraConfig


RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return ["--config", str(path)]

    return write


def test_flags_win_over_the_file_and_the_file_over_defaults(config):
    argv = config("epochs: 3\nbatch_size: 2\nmethod: lora\nmethod_args: {r: 4, lora_alpha: 8}\n")
    recipe = parse_recipe([*argv, "--batch_size", "7", "--method_args.r", "16"])
    assert (recipe.epochs, recipe.batch_size, recipe.seed) == (3, 7, 0)
    assert recipe.method_args == {"r": 16, "lora_alpha": 8}


def test_order_of_config_and_flags_does_not_matter(config):
    assert parse_recipe(["--epochs", "5", *config("epochs: 3")]).epochs == 5


def test_values_are_typed():
    recipe = parse_recipe(
        "--learning_rate 3e-4 --warmup 10 --gradient_checkpointing --group_by none --prompts none box point "
        "--label_map.4 1 --id2label.1 polyp --report_to=tensorboard --method_args.features embedding high "
        "--method_args.frequency_rate 1e-1 --method_args.inner.r 8".split()
    )
    assert recipe.learning_rate == 3e-4 and recipe.warmup == 10.0 and recipe.gradient_checkpointing is True
    assert parse_recipe(["--gradient_checkpointing", "selective"]).gradient_checkpointing == "selective"
    assert recipe.group_by is None and recipe.prompts == ["none", "box", "point"]
    assert recipe.label_map == {4: 1} and recipe.id2label == {1: "polyp"} and recipe.report_to == ["tensorboard"]
    assert recipe.method_args == {"features": ["embedding", "high"], "frequency_rate": 0.1, "inner": {"r": 8}}


def test_yaml_of_a_file(config):
    text = "precision: no\nlearning_rate: 2e-4\nlabel_map: {0: 255, 1: 0}\nprompts: box\naugment: none\nmax_steps: 5\n"
    recipe = parse_recipe(config(text))
    assert recipe.precision == "no" and recipe.learning_rate == 2e-4 and recipe.label_map == {0: 255, 1: 0}
    assert recipe.prompts == ["box"] and recipe.augment == [] and recipe.max_steps == 5


def test_numbers_with_an_exponent_and_no_point(config):
    recipe = parse_recipe(config("method_args: {balance_loss_coef: 1e-2, r: 4}\nlearning_rate: 3e-4\n"))
    assert recipe.method_args == {"balance_loss_coef": 0.01, "r": 4} and recipe.learning_rate == 3e-4


def test_two_files_are_refused(config):
    with pytest.raises(UserError, match="--config is given twice"):
        parse_recipe([*config("epochs: 1"), *config("epochs: 2")])


def test_learning_rate_defaults_by_model():
    assert parse_recipe([]).learning_rate == 3e-4
    assert parse_recipe(["--model", "facebook/sam-vit-base"]).learning_rate == 2e-4
    assert parse_recipe(["--adapter", "some/adapter"]).model is None


def test_written_recipe_reads_back_equal(config, tmp_path):
    recipe = parse_recipe("--model x/y --method_args.r 8 --prompts none box --precision bf16 --augment none".split())
    file = config(recipe.to_yaml(tmp_path))
    assert parse_recipe(file).with_paths(absolute) == recipe.with_paths(absolute)
    assert set(yaml.safe_load(recipe.to_yaml())) == {field.name for field in dataclasses.fields(Recipe)}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--lerning_rate 1", "--lerning_rate.*'learning_rate'"),
        ("--methd_args.r 8", "--methd_args.r.*'method_args'"),
        ("--epochs ten", "epochs: 'ten' is not an integer"),
        ("--epochs 1.5", "epochs: '1.5' is not an integer"),
        ("--warmup x", "warmup: 'x' is not a number"),
        ("--gradient_checkpointing maybe", "gradient_checkpointing: 'maybe' is not true or false"),
        ("--precision fp8", "precision: 'fp8' is not one of no, bf16, fp16"),
        ("--method magic", "method: 'magic' is not one of sam_adapter"),
        ("--label_map 3", "label_map: '3' is not a mapping"),
        ("--label_map.a 3", "label_map: .* is not a mapping"),
        ("--epochs", "--epochs needs a value"),
        ("polyp", "unexpected argument 'polyp'"),
        ("--epochs 1 2", "unexpected argument '2'"),
        ("--epochs 0", "epochs: 0 is below 1"),
        ("--max_steps -1", "max_steps: -1 is below 0"),
        ("--warmup inf", "warmup: inf is not finite"),
        ("--seed 4294967296", r"seed: 4294967296 is above 2\*\*32 - 1"),
        ("--prompts boxes", "prompts: unknown 'boxes'"),
        ("--metrics roc", "metrics: unknown 'roc'; choose from s_measure, e_measure"),
        ("--lr_min 1", "lr_min: 1.0 is not between 0 and the learning_rate 0.0003"),
        ("--lr_min -1", "lr_min: -1.0 is not between"),
        ("--early_stopping 0", "early_stopping: 0 is below 1"),
        ("--points_per_object 0 --prompts point", "points_per_object: 0 is below 1"),
        ("--points_per_object 3", "points_per_object: of point prompts; add point"),
        ("--beta2 0.3", "beta2: of f_measure and weighted_f"),
        ("--ignore_background perhaps", "ignore_background: 'perhaps' is not true or false or one of official"),
        ("--metrics mae --prompts box", "metrics: mae are computed without prompts"),
        ("--metrics mae --num_labels 3", "metrics: mae are of binary masks"),
        ("--augment none flip", "augment: 'none' excludes"),
        ("--loss bce+fokal", "loss: unknown term 'fokal'"),
        ("--loss bce+focal", r"loss: 'bce\+focal' mixes the losses of binary masks"),
        ("--report_to mlflow", "report_to: unknown 'mlflow'"),
        ("--config missing.yaml", "missing.yaml: No such file"),
        ("--method_args.a 1 --method_args.a.b 2", "method_args.a is '1', not a mapping"),
        ("--method_args.a {", "method_args.a: not valid YAML"),
        ("--epochs 1 --epochs 2", "--epochs is given twice; give it once"),
        ("--epochs=1 --seed 3 --epochs 1", "--epochs is given twice"),
        ("--prompts none --prompts box", "--prompts is given twice"),
        ("--method_args.r 4 --method_args.r 8", "--method_args.r is given twice"),
        ("--method_args.r 4 --method_args {a:1}", "--method_args is given twice"),
        ("--label_map {1:2,1:3}", "label_map: .* is not a mapping"),
    ],
)
def test_each_mistake_is_one_line(argv, message):
    with pytest.raises(UserError, match=message) as raised:
        parse_recipe(argv.split())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr_schedular: cosine", "unknown key 'lr_schedular'.*'lr_scheduler'"),
        ("seed: 1\nepochs: 2\nseed: 3", "recipe.yaml: not valid YAML .*'seed' is given twice.*line 3"),
        ("id2label: {0: a, 1: b, 1: c}", "'1' is given twice"),
        ("method_args:\n  r: 4\n  r: 8", "'r' is given twice"),
        ("epochs: [1, 2]", "epochs: '1 2' is not an integer"),
        ("batch_size: true", "batch_size: 'True' is not an integer"),
        ("model: {a: b}", "model: .* is not text"),
        ("seed: null", "seed: 'None' is not an integer"),
        ("- epochs", "must hold keys and values"),
        ("epochs: [", "not valid YAML"),
    ],
)
def test_mistakes_in_a_file(config, text, message):
    with pytest.raises(UserError, match=message) as raised:
        parse_recipe(config(text))
    assert "\n" not in str(raised.value)


def test_help_names_every_key_with_its_default(capsys):
    with pytest.raises(SystemExit) as ended:
        parse_recipe(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for field in dataclasses.fields(Recipe):
        assert f"--{field.name} " in shown
    assert "default: cosine)" in shown and "default: flip scale colour)" in shown and "default: unset)" in shown


# Those of a continual run are read by its own tests.
SINGLE = [path for path in sorted(RECIPES.glob("*.yaml")) if "domains" not in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", SINGLE, ids=lambda path: path.name)
def test_committed_recipes_parse(path):
    recipe = parse_recipe(["--config", str(path)])
    assert recipe.dataset and Path(recipe.output_dir).is_relative_to(RECIPES.parent / "runs")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("conv_lora_*.yaml")), ids=lambda path: path.name)
def test_conv_lora_recipes_have_the_published_settings(path):
    recipe = parse_recipe(["--config", str(path)])
    name = path.stem.removeprefix("conv_lora_")
    config = ConvLoraConfig(**recipe.method_args)
    assert (config.r, config.lora_alpha, config.num_experts, config.top_k, config.num_mask_tokens) == (3, 32, 8, 1, 1)
    assert config.router == "faithful" and recipe.batch_size * recipe.gradient_accumulation_steps == 4
    assert (recipe.resize, recipe.augment, recipe.lr_scheduler, recipe.warmup) == ("squash", ["flip"], "linear", 0)
    assert recipe.learning_rate == (3e-4 if name in ("leaf", "massachusetts_roads") else 1e-4)
    assert recipe.epochs == {"sbu": 10, "camo": 20, "massachusetts_roads": 20}.get(name, 30)
    assert recipe.loss == ("bbce" if name == "sbu" else "structure_unweighted")
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"--config recipes/{path.name}" in line for line in header)
    assert "Licence of the data:" in " ".join(line.removeprefix("# ") for line in header)


def test_values_without_a_flag_go_to_one_key_once():
    def inputs(line):
        return parse_arguments(PredictArguments, line.split(), positional="inputs").inputs

    assert inputs("a.jpg b.jpg --adapter x c.jpg") == ["a.jpg", "b.jpg", "c.jpg"]
    assert inputs("--inputs a.jpg b.jpg") == ["a.jpg", "b.jpg"]
    with pytest.raises(UserError, match=r"^--inputs is given twice, also as 'a\.jpg' without it; give it once$"):
        inputs("a.jpg --inputs b.jpg")
    with pytest.raises(UserError, match=r"unexpected argument 'b\.jpg'"):
        inputs("--inputs=a.jpg b.jpg")


def test_what_a_file_merges_may_be_given_again(config):
    text = "id2label: &names {0: a, 1: b}\nmethod_args: {<<: *names, 1: c}\n"
    assert parse_recipe(config(text)).method_args == {0: "a", 1: "c"}


@pytest.mark.parametrize("beside", ["adapter_config.json", "config.json"])
@pytest.mark.parametrize("arguments", [PredictArguments, EvaluateArguments])
def test_a_runs_recipe_without_its_run_is_refused(config, tmp_path, arguments, beside):
    def parse(*flags):
        return parse_arguments(arguments, [*config("seed: 1\nadapter: some/start\n"), *flags], also_in_config=Recipe)

    assert parse().adapter == "some/start"  # no run's
    (tmp_path / beside).write_text("{}")
    with pytest.raises(UserError, match=r"^adapter: not given, and .*recipe\.yaml is that of a run; name the run"):
        parse("--model", "tiny")
    assert parse("--adapter", str(tmp_path)).adapter == str(tmp_path)
    assert parse("--adapter", "none", "--model", "tiny").adapter is None
