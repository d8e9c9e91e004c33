"""`hf-sam-adapt demo`: its settings, its list of adapters, and what the core must not import."""

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
        "hf_sam_adapt.demo.job, hf_sam_adapt.demo.app, hf_sam_adapt.space\n"
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


def test_adapters_that_are_offered(adapters, tmp_path):
    root = adapters["hq"].rpartition("/")[0]
    listed = catalog.choices([root, "me/polyp"], "tiny")
    assert listed[0].value == catalog.PLAIN
    assert {example.adapter for example in EXAMPLES} <= {choice.value for choice in listed}
    assert {choice.source for choice in listed} >= set(adapters.values())
    assert [choice.value for choice in listed if choice.pool] == [
        "three-domains",
        adapters["pool_encoder"],
        adapters["pool_hq"],
    ]
    assert listed[-1].value == "me/polyp"
    with pytest.raises(UserError, match="holds neither an adapter"):
        catalog.choices([str(tmp_path)], "tiny")


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
