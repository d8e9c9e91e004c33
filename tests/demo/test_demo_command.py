"""`hf-sam-adapt demo`: its settings, its list of adapters, and what the core must not import."""

import shutil
import subprocess
import sys

import pytest
import yaml

from hf_sam_adapt.cli import main
from hf_sam_adapt.demo import catalog
from hf_sam_adapt.demo.app import DemoApp
from hf_sam_adapt.demo.examples import EXAMPLES
from hf_sam_adapt.demo.session import Session
from hf_sam_adapt.demo.settings import DemoArguments
from hf_sam_adapt.errors import UserError


def test_the_core_does_not_import_gradio():
    code = (
        "import sys, hf_sam_adapt, hf_sam_adapt.cli, hf_sam_adapt.training, hf_sam_adapt.demo.engine, "
        "hf_sam_adapt.demo.job, hf_sam_adapt.demo.app, hf_sam_adapt.hub.space\n"
        "assert not {'gradio', 'playwright', 'fastapi'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_gradio_one_line_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "hf_sam_adapt.demo.page", raising=False)
    assert main(["demo"]) == 2
    assert "hf-sam-adapt[demo]" in capsys.readouterr().err


def test_settings_from_the_environment(monkeypatch):
    monkeypatch.setenv("HF_SAM_ADAPT_DEMO_MODEL", "facebook/sam-vit-base")
    monkeypatch.setenv("HF_SAM_ADAPT_DEMO_ADAPTERS", "me/polyp, me/pool")
    args = DemoArguments()
    assert (args.model, args.adapters) == ("facebook/sam-vit-base", ["me/polyp", "me/pool"])
    assert DemoArguments(adapters=["mine"], model="tiny").adapters == ["mine"]
    with pytest.raises(UserError, match="max_seconds: 0 is below 1"):
        DemoArguments(max_seconds=0)


def test_folders_with_spaces_in_the_environment(monkeypatch, tmp_path):
    (tmp_path / "my runs/polyp").mkdir(parents=True)
    for text, wanted in (
        (f"{tmp_path}/my runs/polyp", [f"{tmp_path}/my runs/polyp"]),
        (f"me/a me/b, {tmp_path}/my runs,", ["me/a", "me/b", f"{tmp_path}/my runs"]),
    ):
        monkeypatch.setenv("HF_SAM_ADAPT_DEMO_ADAPTERS", text)
        assert DemoArguments().adapters == wanted


def test_paths_of_no_adapter_are_refused_at_the_start(adapters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(adapters["hq"], "checkpoints/polyp")
    for name in ("checkpoints/typo", "/data/gone", "./gone", "~/gone", "checkpoints/polyp/adapter_config.json"):
        with pytest.raises(UserError, match=f"adapters: {name} is no folder; name a run folder"):
            catalog.choices([name], "tiny")
    with pytest.raises(UserError, match="neither a folder nor the name of a repository"):
        catalog.choices(["me/polyp@one@two"], "tiny")
    assert [one.value for one in catalog.choices(["me/polyp", "checkpoints/polyp@main"], "tiny")][1:3] == [
        "me/polyp",
        "checkpoints/polyp@main",
    ]
    assert " 0 B" not in catalog.choices(["checkpoints"], "tiny")[1].label
    for text in ("{", "[]"):
        (tmp_path / "checkpoints/polyp/adapter_config.json").write_text(text)
        with pytest.raises(UserError, match=r"polyp/adapter_config\.json: not readable .*; save the adapter again"):
            catalog.choices(["checkpoints"], "tiny")


def test_adapters_that_are_offered(adapters, tmp_path):
    root = adapters["hq"].rpartition("/")[0]
    listed = catalog.choices([root, "me/polyp"], "tiny")
    assert listed[0].value == catalog.PLAIN
    assert {example.adapter for example in EXAMPLES} <= {choice.value for choice in listed}
    assert {choice.source for choice in listed} >= set(adapters.values())
    assert [choice.value for choice in listed if choice.pool] == [
        adapters["pool_encoder"],
        adapters["pool_hq"],
        "three-domains",
    ]
    names = [choice.value for choice in listed]
    built_in = sorted(folder.name for folder in catalog.built_in_folder().iterdir() if folder.is_dir())
    assert names[-len(built_in) - 1 :] == ["me/polyp", *built_in]  # the user's own come first
    with pytest.raises(UserError, match="holds neither an adapter"):
        catalog.choices([str(tmp_path)], "tiny")


@pytest.fixture(scope="module")
def several(adapters, tmp_path_factory):
    """A demo of runs in folders: `first/polyp`, `second/polyp`, a pool in `ward/pool`, and a Hub id."""
    root = tmp_path_factory.mktemp("runs")
    for place, name in (("first/polyp", "hq"), ("second/polyp", "hq"), ("ward/pool", "pool_hq"), ("leaf", "decoder")):
        shutil.copytree(adapters[name], root / place)
    places = [str(root / place) for place in ("first", "second", "ward", "leaf")]
    return root, DemoApp(DemoArguments(adapters=[*places, "me/polyps"]))


def test_labels_tell_adapters_apart(several):
    root, app = several
    labels = [label for label, _ in app.listed()]
    assert len(set(labels)) == len(labels)
    titles = [label.split(" · ")[0] for label in labels]
    assert titles[1:6] == ["first/polyp", "second/polyp", "ward/pool", "leaf", "me/polyps"]
    assert "pool of 2 domains" in labels[3] and "pool of 3 domains" in labels[-1]
    mine = Session()
    mine.own = {"/somewhere": "Yours"}
    assert app.listed(mine)[1] == ("Yours", "/somewhere")
    assert app.pools()[0][1] == str(root / "ward/pool")


@pytest.mark.parametrize("place", range(9))
def test_whatever_the_page_lists_can_be_named_so(several, monkeypatch, place):
    _, app = several
    asked = []
    monkeypatch.setattr(app.loaded, "get", asked.append)
    choice = app.choices[place]
    title = choice.label.split(" · ")[0]
    for name in (choice.label, title, choice.value):
        app.entry(name)
    assert asked == [choice.source] * 3
    assert len(app.choices) == 9


def test_names_that_mean_two_or_none(several):
    _, app = several
    with pytest.raises(UserError, match=r"polyp: several adapters are called so; name one of .*first/polyp, .*second"):
        app.entry("polyp")
    with pytest.raises(UserError, match=r"rust: no such adapter here; use one of .*land-cover.*leaf.*or a Hub id"):
        app.entry("rust")
    assert app.entry("leaf").method == "decoder"


def test_built_in_adapters_are_small():
    files = [path for path in catalog.built_in_folder().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3_000_000


def test_visitors_cannot_name_each_others_folders(adapters, monkeypatch):
    app, mine, other = DemoApp(DemoArguments()), Session(), Session()
    assert app.entry(adapters["hq"], other).method == "decoder"  # on one's own machine any folder can be typed
    inside = app.folder / "adapt_x" / "adapter"
    inside.mkdir(parents=True)
    mine.own[str(inside)] = "Yours"
    with pytest.raises(UserError, match="folders cannot be named here"):
        app.entry(str(inside), other)
    with pytest.raises(UserError, match="neither"):  # mine, but it holds nothing
        app.entry(str(inside), mine)
    monkeypatch.setenv("SPACE_ID", "me/demo")
    with pytest.raises(UserError, match="folders cannot be named here"):
        app.entry(adapters["hq"], mine)
    assert app.entry("radar-fields", mine).method == "conv_lora"


def test_the_space_matches_the_tested_versions(request):
    root = request.config.rootpath
    pinned = set((root / "constraints.txt").read_text().split())
    lines = (root / "spaces/sam-adapt-demo/requirements.txt").read_text().split()
    assert set(lines[1:]) <= pinned
    front = yaml.safe_load((root / "spaces/sam-adapt-demo/README.md").read_text().split("---")[1])
    assert front["sdk"] == "docker"
    assert front["app_port"] == 7860
    steps = (root / "spaces/sam-adapt-demo/Dockerfile").read_text()
    assert steps.index("COPY") < steps.index("--requirement requirements.txt") < steps.index('["python", "app.py"]')
