"""Train, push, and load by id in a fresh process with an empty cache: the same masks, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, hf_hub_download
from pages import Page, read_page
from peft import AutoPeftModel, PeftModel
from PIL import Image
from sams import perturb
from transformers import SamModel

from hf_sam_adapt import ModaConfig, ModaModel, SamAdapterConfig, SamAdaptProcessor, load_tiny_sam
from hf_sam_adapt.cli import main
from hf_sam_adapt.hub.push import push_folder
from hf_sam_adapt.inference.loading import build_model, load_adapted, load_base, save_adapter


ROOT = Path(__file__).parents[2]
DOMAINS = ["red", "green", "blue"]
KINDS = {".safetensors", ".json", ".yaml", ".md", ".png"}


def pixels(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 3, 256, 256, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def masks(model, **kwargs) -> torch.Tensor:
    return model.requires_grad_(False).eval()(pixel_values=pixels(), multimask_output=False, **kwargs).pred_masks


def everything(places: dict[str, str], image: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the adapters, the pool and the processor at `places` give; run here on folders, elsewhere on Hub ids."""
    found = {}
    run, other, base, pool, exported = (places[name] for name in ("run", "other", "base", "pool", "exported"))
    swapped = PeftModel.from_pretrained(load_tiny_sam()[0], run)
    found["PeftModel"] = masks(swapped)
    swapped.load_adapter(other, "other")
    swapped.set_adapter("other")
    found["swapped"] = masks(swapped)
    swapped.set_adapter("default")
    found["back"] = masks(swapped)
    found["load_adapted"] = masks(load_adapted(run).model)
    found["AutoPeftModel"] = masks(AutoPeftModel.from_pretrained(exported))
    by_transformers = SamModel.from_pretrained(base)
    by_transformers.load_adapter(exported)
    found["SamModel.load_adapter"] = masks(by_transformers)
    moda = ModaModel.from_pretrained(load_tiny_sam()[0], pool)
    for domain in (*DOMAINS, "base", DOMAINS, "auto"):
        found[f"pool {domain}"] = masks(moda, domain=domain)
    found["pool by command"] = masks(load_adapted(pool).model, domain="green")
    alone = PeftModel.from_pretrained(load_tiny_sam()[0], pool, subfolder="green")
    found["one domain"] = masks(alone)
    found["one domain by command"] = masks(load_adapted(f"{pool}/green").model)
    found["processor"] = SamAdaptProcessor.from_pretrained(run)(image)["pixel_values"]
    return found


def by_card(repo: str) -> torch.Tensor:
    """What the model gives that the code of a published card loads."""
    space: dict = {}
    exec(read_page(Path(hf_hub_download(repo, "README.md")).parent).code["python"][0], space)
    return masks(space["model"])


def domain_folder(make_dataset, number: int) -> str:
    """A data set whose images are of one colour; its name."""
    folder = make_dataset(Path("data", DOMAINS[number]), train=6, val=2, test=3, seed=number)
    for path in folder.glob("*/images/*.png"):
        image = np.array(Image.open(path))
        image[..., [channel for channel in range(3) if channel != number]] //= 4
        Image.fromarray(image).save(path)
    return str(folder)


def check_pages(connected, folder: Path) -> dict[str, Page]:
    """The cards of all that was pushed, by name: their links and pictures are published with them."""
    pages = {}
    for repo in ("polyp", "exported", "pool"):
        published = connected.files(f"me/{repo}")
        for name, content in published.items():
            (folder / repo / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / repo / name).write_bytes(content)
        page = pages[repo] = read_page(folder / repo)
        assert page.pictures and all(Image.open(folder / repo / name).format == "PNG" for name in page.pictures)
        local = [link for link in page.links if not link.startswith("https://")]
        assert "recipe.yaml" in local and set(local) <= published.keys()
        assert page.data["library_name"] == "hf-sam-adapt" and page.data["pipeline_tag"] == "image-segmentation"
        assert page.data["license"] == "apache-2.0"  # of the base model, here and in its own repository
        assert page.data["model-index"][0]["name"] == repo
        ModelCard.load(folder / repo / "README.md").validate()
    return pages


@pytest.mark.slow
def test_pushed_work_comes_back_bit_for_bit(connect, tmp_path, make_dataset, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    connected, data = connect(), make_dataset(train=6, val=2, test=3)

    assert main(["export-tiny", "sam-base"]) == 0
    assert main(["push", "sam-base", "--repo", "me/tiny-sam"]) == 0
    short = ["--max_steps", "3", "--batch_size", "2", "--push_to_hub"]
    common = [*short, "--dataset", str(data)]
    # The exported base comes from the Hub already here, so that the adapter names it.
    trained = ["--output_dir", "exported", "--model", "me/tiny-sam", "--hub_model_id", "me/exported"]
    assert main(["train", *common, *trained]) == 0
    assert main(["train", *common, "--output_dir", "runs/polyp"]) == 0  # of tiny; under the folder's name
    other = perturb(build_model("sam_adapter", {"scale_factor": 16}, load_tiny_sam()[0]), seed=9, std=0.02)
    save_adapter(other, "other")
    other.push_to_hub("me/other", private=True)  # PEFT's own
    domains = [json.dumps({name: domain_folder(make_dataset, number)}) for number, name in enumerate(DOMAINS)]
    inner = ["--method", "decoder", "--method_args.decoder", "hq"]
    pool = ["--protocol", "moda", "--output_dir", "three", "--hub_model_id", "me/pool"]
    assert main(["continual", *short, *inner, *pool, "--domains", *domains]) == 0

    for repo in ("me/polyp", "me/exported", "me/pool", "me/other", "me/tiny-sam"):
        repository, names = connected.repositories["model", repo], connected.files(repo)
        assert repository.private and len(repository.titles) == 2, repo
        assert {Path(name).suffix for name in names} <= KINDS
    adapter = {"adapter_config.json", "adapter_model.safetensors"}
    pool_files = {"README.md", "preprocessor_config.json", "recipe.yaml", "continual.json", "matrix.png", "curves.png"}
    inside = {f"{domain}/{name}" for domain in DOMAINS for name in adapter}
    assert set(connected.files("me/pool")) == adapter | pool_files | inside
    published = connected.files("me/polyp")
    assert "checkpoints" not in " ".join(published) and str(tmp_path) not in published["recipe.yaml"].decode()
    assert (tmp_path / "runs/polyp/README.md").read_bytes() != published["README.md"]
    printed = "".join(capsys.readouterr())
    assert connected.token not in printed
    assert not [
        path for path in tmp_path.rglob("*") if path.is_file() and connected.token.encode() in path.read_bytes()
    ]

    pages = check_pages(connected, tmp_path / "published")
    assert "base_model" not in pages["polyp"].data and "base_model" not in pages["pool"].data  # tiny is in the package
    assert (pages["exported"].data["base_model"], pages["exported"].data["base_model_relation"]) == (
        "me/tiny-sam",
        "adapter",
    )
    assert "https://huggingface.co/me/tiny-sam" in pages["exported"].links
    scores = json.loads(published["metrics.json"])["test"]["none"]
    row = next(cells for cells in pages["polyp"].tables[0] if cells[:2] == ["none", "IoU"])
    assert [float(cell) for cell in row[2:]] == [
        pytest.approx(scores[name]["iou"], abs=5e-4) for name in ("zero_shot", "adapted", "constant")
    ]
    matrix = next(table for table in pages["pool"].tables if table[0] == ["after", *DOMAINS])
    stored = json.loads(connected.files("me/pool")["continual.json"])["matrix_iou"]
    assert [[float(cell) for cell in row[1:]] for row in matrix[-1:]] == [pytest.approx(stored[-1], abs=5e-4)]

    # The published recipe says on which images: the numbers are there again.
    assert main(["evaluate", "me/polyp", "--output_dir", "again"]) == 0
    numbers = [json.loads(Path(folder, "metrics.json").read_text())["test"] for folder in ("runs/polyp", "again")]
    assert numbers[0] == numbers[1]
    capsys.readouterr()

    folders = {"run": "runs/polyp", "other": "other", "base": "sam-base", "pool": "three/pool", "exported": "exported"}
    image = torch.randint(0, 256, (3, 50, 70), dtype=torch.uint8)
    torch.save(image, "image.pt")
    expected = everything(folders, image)
    assert not torch.equal(expected["PeftModel"], expected["swapped"])
    assert torch.equal(expected["PeftModel"], expected["back"])
    assert torch.equal(expected["one domain"], expected["pool green"])
    assert not torch.equal(expected["pool red"], expected["pool green"])
    cards = {"polyp": "PeftModel", "exported": "AutoPeftModel", "pool": "pool auto"}
    expected |= {f"card {repo}": expected[name] for repo, name in cards.items()}

    script = f"""
import sys, torch
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT / "tests/hub")!r}]
torch.set_num_threads(1)
from test_round_trip import by_card, everything
found = {{f"card {{repo}}": by_card(f"me/{{repo}}") for repo in {list(cards)!r}}}
ids = dict(run="me/polyp", other="me/other", base="me/tiny-sam", pool="me/pool", exported="me/exported")
torch.save(found | everything(ids, torch.load("image.pt")), "found.pt")
"""
    environment = os.environ | connected.environment(tmp_path / "empty") | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    found = torch.load("found.pt")
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []
    assert found.keys() == expected.keys()


def test_revisions(connected, tmp_path, sam_folder, monkeypatch):
    """A branch of an adapter, of a base model, and of a pool; what is stored says which base it was."""
    monkeypatch.chdir(tmp_path)
    base = SamModel.from_pretrained(sam_folder)
    for branch, shift in ((None, 0.0), ("shifted", 0.5)):
        with torch.no_grad():
            base.vision_encoder.neck.conv1.weight.add_(shift)
        folder = tmp_path / f"base{branch}"
        base.save_pretrained(folder)
        SamAdaptProcessor(image_size=64, patch_size=8).save_pretrained(folder)
        push_folder(folder, "me/base", revision=branch)

    def small_masks(model):
        image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return model.requires_grad_(False).eval()(pixel_values=image, multimask_output=False).pred_masks

    plain = {name: small_masks(load_base(name)[0]) for name in ("me/base", "me/base@shifted")}
    assert not torch.equal(plain["me/base"], plain["me/base@shifted"])

    expected = {}
    for seed, branch in ((1, None), (2, "second")):
        model = build_model("sam_adapter", {"scale_factor": 8}, load_base("me/base@shifted")[0])
        model.peft_config["default"].revision = "shifted"
        save_adapter(perturb(model, seed, std=0.05), tmp_path / f"adapter{seed}")
        push_folder(tmp_path / f"adapter{seed}", "me/adapter", revision=branch)
        expected[branch] = small_masks(model)
    assert torch.equal(small_masks(load_adapted("me/adapter").model), expected[None])
    assert torch.equal(small_masks(load_adapted("me/adapter@second").model), expected["second"])
    assert load_adapted("me/adapter@second").base_name == "me/base@shifted"
    masks = small_masks(AutoPeftModel.from_pretrained("me/adapter", revision="second"))
    assert (masks - expected["second"]).norm() <= 1e-6 * masks.norm()

    pool = ModaModel(base, ModaConfig(inner=SamAdapterConfig(scale_factor=8), reject=0.0))
    for number, name in enumerate(("red", "green")):
        pool.add_domain(name)
        perturb(pool, number, std=0.05)
        pool.observe(torch.randn(4, 3, 64, 64))
        pool.finish_domain()
        pool.push_to_hub("me/pool", revision="one" if number == 0 else None)
    assert ModaModel.from_pretrained(load_base("me/base@shifted")[0], "me/pool", revision="one").domains == ["red"]
    assert ModaModel.from_pretrained(load_base("me/base@shifted")[0], "me/pool").domains == ["red", "green"]


@pytest.mark.slow
def test_a_pool_keeps_the_revision_of_its_base(connected, tmp_path, sam_folder, make_dataset, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = SamModel.from_pretrained(sam_folder)
    processor = SamAdaptProcessor.from_pretrained(sam_folder)
    for branch in (None, "refs/pr/1"):
        folder = tmp_path / "base"
        base.save_pretrained(folder)
        processor.save_pretrained(folder)
        push_folder(folder, "me/base", revision=branch)
        with torch.no_grad():
            base.vision_encoder.neck.conv1.weight.mul_(2)
    short = ["--max_steps", "1", "--batch_size", "2", "--method", "decoder", "--protocol", "moda", "--push_to_hub"]
    named = [json.dumps({name: domain_folder(make_dataset, number)}) for number, name in enumerate(DOMAINS[:2])]
    run = ["--model", "me/base@refs/pr/1", "--output_dir", "two", "--domains", *named]
    assert main(["continual", *short, *run]) == 0

    files = connected.files("me/two")
    for name in ("adapter_config.json", "red/adapter_config.json", "green/adapter_config.json"):
        config = json.loads(files[name])
        assert (config["base_model_name_or_path"], config["revision"]) == ("me/base", "refs/pr/1"), name
    loaded = load_adapted("me/two")
    assert loaded.base_name == "me/base@refs/pr/1"
    page = read_page(tmp_path / "two" / "pool")
    assert (page.data["base_model"], page.data["base_model_relation"]) == ("me/base", "adapter")
    assert "https://huggingface.co/me/base/tree/refs/pr/1" in page.links
    space: dict = {}
    exec(read_page(Path(hf_hub_download("me/two", "README.md")).parent).code["python"][0], space)
    image = torch.randn(2, 3, 64, 64)
    models = space["model"], loaded.model
    with torch.no_grad():
        by_card, by_command = (model.eval()(pixel_values=image).pred_masks for model in models)
    assert torch.equal(by_card, by_command)
    weights = [model.vision_encoder.neck.conv1.weight for model in (models[0].model, base)]
    assert torch.equal(weights[0], weights[1] / 2)
