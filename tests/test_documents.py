"""Every code block of README, CONTRIBUTING and docs/ runs, on `tiny` and drawn images, with two training steps."""

import dataclasses
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from autogluon import autogluon_state
from drawn_volumes import draw_volume, save_nifti, save_series
from labelme_photos import annotate
from local_hub import LocalHub
from PIL import Image
from sams import random_sam2

import hf_sam_adapt
from hf_sam_adapt import load_tiny_sam
from hf_sam_adapt.config.arguments import parse_arguments
from hf_sam_adapt.config.continual_recipe import ContinualRecipe
from hf_sam_adapt.config.help import GROUPS
from hf_sam_adapt.config.methods import METHODS
from hf_sam_adapt.config.presets import PRESETS
from hf_sam_adapt.config.recipe import Recipe
from hf_sam_adapt.data.synthetic import draw_sample
from hf_sam_adapt.reporting.results import WRITERS
from hf_sam_adapt.sam.tiny import export_tiny


ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
FAST = ("README.md", "CONTRIBUTING.md")
TESTED_ALONE = (
    "docs/own-data.md",  # tests/convert/annotations/test_own_data.py follows it in an empty folder
    "docs/fifty_images.md",  # tests/publishing/test_notebook.py runs its notebook
)
NOT_RUN = ("make ", "pip install")  # .ci/run does; what is installed already
TRAINS = re.compile(r"recipes/(train|continual)\.py|hf-sam-adapt (train|continual) ")
LAUNCH = re.compile(r"accelerate launch(?: --config_file (\S+))?(?: --\w+ \d+)*")
TWO_DOMAINS = " --domains 'one: my_polyps' 'two: my_polyps'"
MADE = {  # page -> files that its commands and scripts leave behind
    "README.md": [
        "runs/polyp/samples.png",
        *(f"{name}/{i}_mask.png" for name in ("predictions", "from_the_hub") for i in range(3)),
    ],
    "docs/backbones.md": ["runs/sam2/metrics.json", "from_sam2/2_mask.png"],
    "docs/continual.md": ["routed/2_mask.png", "runs/grown/pool/wounds/adapter_model.safetensors"],
    "docs/export.md": ["polyp_onnx/decoder.onnx", "polyp_onnx/promptless.onnx", "back/config.json"],
    "docs/instances.md": ["instances/instances.json", "from_grid/instances.json"],
    "docs/label_loop.md": ["corrected/recipe.yaml", "runs/second/metrics.json"],
    "docs/large_images.md": ["runs/tiled/metrics.json", "on_the_map/scene_mask.tif", "on_the_map/scene.gpkg"],
    "docs/methods.md": ["converted/adapter_model.safetensors", "label_maps/2_mask.png", "encoder.pt2"],
    "docs/python.md": ["polyp/adapter_model.safetensors", "runs/from_python/metrics.json"],
    "docs/results.md": [
        *(f"results/{name}" for name in ("0_mask.png", "coco.json", "labelme/0.json")),
        *(f"from_{name}/masks/0.png" for name in ("coco", "yolo", "geojson")),
        *(f"evaluated/{name}" for name in ("per_image.csv", "worst.png")),
    ],
    "docs/training.md": ["estimate.json", "runs/two/metrics.json"],
    "docs/volumes.md": ["organs/per_volume.csv", "segmented/new_mask.nii.gz", "segmented/series_mask.nii.gz"],
}


def blocks(page: str) -> list[tuple[str, str]]:
    """(language, text) of the code blocks of a page that name their language."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)


def shortened(command: str) -> str:
    """The command with two training steps, on the CPU."""
    launch = LAUNCH.match(command)
    if launch is not None:
        if launch[1] is not None:
            assert yaml.safe_load((ROOT / launch[1]).read_text())["num_processes"] >= 1
        command = command.replace(launch[0], "accelerate launch --cpu --num_processes 1")
    if TRAINS.search(command):
        command = f"{re.sub(r' --max_steps [0-9]+', '', command)} --max_steps 2"
    return command + TWO_DOMAINS * ("continual_quickstart.yaml" in command)


class Workplace:
    """What the pages take for granted: the checkout's recipes, images, a Hub with SAMs, a finished run."""

    def __init__(self, folder: Path, hub: LocalHub):
        self.folder = folder
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self.environment = os.environ | hub.environment(folder / "home") | {"PATH": path}
        self.environment |= {"HF_DATASETS_OFFLINE": "0", "HF_SAM_ADAPT_CACHE": str(folder / "cache")}
        self.server: subprocess.Popen | None = None
        self.address = ""

    def run(self, command: str) -> None:
        result = subprocess.run(
            command, shell=True, cwd=self.folder, capture_output=True, text=True, env=self.environment
        )
        assert result.returncode == 0, f"{command}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"

    def serve(self, command: str) -> None:
        """Start a demo in place of the one before, at the first free port, and wait until it answers."""
        self.stop()
        words = shlex.split(re.sub(r" --server_port \d+", "", command))
        self.server = subprocess.Popen(words, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True)
        line = next((line for line in self.server.stdout or () if "answers on" in line), None)
        assert line is not None, f"{command}: ended with {self.server.wait()}"
        self.address = re.findall(r"http://[\d.:]+", line)[0]

    def stop(self) -> None:
        """End the demo that runs, if any."""
        if self.server is not None:
            self.server.terminate()
            self.server.communicate(timeout=60)
            self.server = None

    def follow(self, page: str) -> None:
        """Run the blocks of a page in their order. A Python block that begins with a file's path is that file."""
        done = set()
        for index, (language, block) in enumerate(blocks(page)):
            if language == "bash":
                for line in block.strip().splitlines():
                    command = shortened(shlex.join(shlex.split(line, comments=True)))
                    if command.startswith("hf-sam-adapt demo"):
                        self.serve(command)
                    elif not command.startswith(NOT_RUN) and command not in done:
                        self.run(command)
                    done.add(command)
            elif language == "python":
                named = re.match(r"# (\w+/\w+\.py)\n", block)
                script = self.folder / (named[1] if named else f"block_{index}.py")
                script.parent.mkdir(exist_ok=True)
                script.write_text(block.replace("http://127.0.0.1:7860", self.address))
                if not named:
                    self.run(f"{sys.executable} {script.name}")
            else:
                assert language == "yaml", f"{page}: a block of {language}"
                path = self.folder / f"block_{index}.yaml"
                path.write_text(block)
                recipe = ContinualRecipe if "protocol" in yaml.safe_load(block) else Recipe
                parse_arguments(recipe, ["--config", str(path)])


def make_inputs(folder: Path) -> None:
    (folder / "recipes").symlink_to(ROOT / "recipes")
    for split, count in (("train", 8), ("test", 3)):
        for index in range(count):
            image, mask = (Image.fromarray(array) for array in draw_sample("polyp", split, index))
            for kind, picture, name in (("images", image, f"{index}.jpg"), ("masks", mask, f"{index}.png")):
                path = folder / "my_polyps" / split / kind / name
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
    for name in ("polyp.jpg", "photo.jpg", "a.png", "b.png"):
        image.save(folder / name)
    for name in ("polyp", "a", "b"):
        mask.point(lambda value: 255 * value).save(folder / f"{name}_mask.png")
    annotate(folder / "photos", 12)
    for index in range(7):
        values, organ = draw_volume(np.random.default_rng(index), (4, 48, 56))
        save = save_series if index == 1 else save_nifti
        save(folder / "my_organs/images" / (f"p0{index}" if index == 1 else f"p0{index}.nii.gz"), values)
        save_nifti(folder / "my_organs/masks" / f"p0{index}.nii.gz", organ)
    save_nifti(folder / "scans/new.nii.gz", values)
    save_series(folder / "scans/series", values)
    torch.save({"state_dict": autogluon_state(load_tiny_sam()[0])}, folder / "model.ckpt")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    tiny = tmp_path_factory.mktemp("models") / "tiny"
    export_tiny(tiny)
    with LocalHub() as running:
        for name in ("facebook/sam-vit-base", "facebook/sam-vit-huge"):
            running.add_folder(name, tiny)
        random_sam2().save_pretrained(tiny.with_name("hiera"))
        for name in ("facebook/sam2.1-hiera-tiny", "facebook/sam2.1-hiera-small"):
            running.add_folder(name, tiny.with_name("hiera"))
        yield running


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory, hub) -> Path:
    """The run folder that pages other than README start from: README's own."""
    folder = tmp_path_factory.mktemp("finished")
    make_inputs(folder)
    command = next(line for _, block in blocks("README.md") for line in block.splitlines() if TRAINS.search(line))
    Workplace(folder, hub).run(shortened(command))
    return folder / "runs/polyp"


@pytest.mark.xdist_group("documents")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page in FAST else pytest.mark.slow) for page in PAGES if page not in TESTED_ALONE],
)
def test_every_block_runs(page, request, tmp_path, hub):
    make_inputs(tmp_path)
    if page not in FAST:
        shutil.copytree(request.getfixturevalue("finished_run"), tmp_path / "runs/polyp")
    workplace = Workplace(tmp_path, hub)
    try:
        workplace.follow(page)
    finally:
        workplace.stop()
    assert [name for name in MADE.get(page, []) if not (tmp_path / name).is_file()] == []
    if page == "README.md":
        for name in ("me/polyp-sam-adapter", "me/mine"):
            assert "adapter_model.safetensors" in hub.files(name)


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found: list[str] = []
    for heading in re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        count = sum(re.fullmatch(rf"{re.escape(slug)}(-\d+)?", name) is not None for name in found)
        found.append(f"{slug}-{count}" if count else slug)
    return set(found)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", (ROOT / page).read_text())
    for path, anchor in links:
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), path
        assert not anchor or anchor in anchors(target), f"{path}#{anchor}"


@pytest.mark.parametrize("page", FAST)
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = re.findall(r"^make ([\w-]+)", (ROOT / page).read_text(), flags=re.MULTILINE)
    assert named and set(named) <= targets


def test_citation_has_every_paper():
    """Of the package's own methods; YAML that GitHub and Zenodo read."""
    content = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    values = {entry["value"] for reference in content["references"] for entry in reference["identifiers"]}
    assert content["cff-version"] == "1.2.0" and content["version"] == hf_sam_adapt.__version__
    assert {f"arXiv:{METHODS[name].paper}" for name in ("sam_adapter", "conv_lora", "cwsam", "moda")} < values


def test_presets_page_has_the_presets():
    lines = (ROOT / "docs/training.md").read_text().splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    header = next(row for row in rows if row[0] == "preset")
    shown = {row[0]: dict(zip(header, row)) for row in rows if row[0] in PRESETS}
    assert shown.keys() == PRESETS.keys()
    for name, keys in PRESETS.items():
        for key in ("model", "method", "batch_size", "gradient_accumulation_steps", "precision"):
            assert str(keys.get(key, "\u2013")) == shown[name][key].partition("`,")[0], (name, key)


@pytest.mark.parametrize("recipe", [Recipe, ContinualRecipe], ids=lambda cls: cls.__name__)
def test_every_key_of_a_recipe_is_documented(recipe):
    """As inline code that begins with it, or in a block as a flag or a key of YAML."""
    text = "".join((ROOT / page).read_text() for page in PAGES)
    inline = re.findall(r"`(?:--)?(\w+)[^`\n]*`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    yaml_keys = re.findall(r"^(\w+):", "".join(block for page in PAGES for _, block in blocks(page)), re.MULTILINE)
    flags = re.findall(r"--(\w+)", "".join(block for page in PAGES for _, block in blocks(page)))
    known = {*inline, *yaml_keys, *flags}
    assert [field.name for field in dataclasses.fields(recipe) if field.name not in known] == []


def test_keys_of_the_training_stand_with_their_defaults():
    """In the table of docs/training.md: those of the optimisation, and what else decides a step."""
    page = (ROOT / "docs/training.md").read_text()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| (.+?) \| .+ \|$", page, re.MULTILINE)
    shown = {key: default for keys, default in rows for key in re.findall(r"\w+", keys)}
    assert {*GROUPS["optimisation"], "epochs", "batch_size", "augment", "seed"} - {
        "learning_rates",
        "class_weights",
    } <= {*shown}
    recipe = Recipe()
    for key in ("epochs", "warmup", "weight_decay", "points_per_object", "seed"):
        assert float(shown[key]) == getattr(recipe, key), key
    assert shown["max_grad_norm"] == "1" and recipe.max_grad_norm == 1
    assert shown["lr_scheduler"] == f"`{recipe.lr_scheduler}`" and shown["augment"] == f"`{' '.join(recipe.augment)}`"
    assert shown["batch_size"] == f"{recipe.batch_size}, {recipe.gradient_accumulation_steps}"


def test_readme_leads_to_every_page():
    text = (ROOT / "README.md").read_text()
    assert [page for page in PAGES[1:] if f"]({page}" not in text] == []


def test_results_page_has_every_format():
    rows = [line for line in (ROOT / "docs/results.md").read_text().splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])} == set(WRITERS)
