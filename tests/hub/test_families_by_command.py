"""From the command line, on small checkpoints of each family, from a training to an adapter loaded by its id."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pages import read_page
from sams import RANDOM_SAMS

from hf_sam_adapt.cli import main
from hf_sam_adapt.hub.push import push_folder
from hf_sam_adapt.inference.loading import load_adapted, load_base
from hf_sam_adapt.sam import citations
from hf_sam_adapt.sam.families import family_of_type


ROOT = Path(__file__).parents[2]
CITATIONS = {"sam_hq": citations.SAM_HQ, "sam2": citations.SAM2, "sam3_tracker": citations.SAM3}
# Name -> method, its protocol in `continual`, which knows one class alone, and further keys of the recipe.
RUNS: dict[str, tuple[str, str | None, list[str]]] = {
    "decoder": ("decoder", "moda", []),
    "sam_adapter": ("sam_adapter", "moda", ["--method_args.scale_factor", "4"]),
    "conv_lora": ("conv_lora", "moda", ["--method_args.num_experts", "2"]),
    "cwsam": ("cwsam", "moda", ["--method_args.decoder", "full"]),
    "cwsam-classes": ("cwsam", None, ["--num_labels", "2"]),
    "lora": ("lora", "moda", []),
    "dora": ("peft", "moda", ["--method_args.peft_type", "LORA", "--method_args.use_dora", "true"]),
    "l2p": ("l2p", "l2p", []),
    "full": ("full", "naive", []),
}


def masks(name: str) -> torch.Tensor:
    """What the model of an adapter's or a pool's folder or id gives, for two images of its size."""
    loaded = load_adapted(name)
    side = loaded.processor.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model = loaded.model.requires_grad_(False).eval()
        return model(pixel_values=pixels, multimask_output=False).pred_masks


def run_commands(name: str, base: str, data: list[str]) -> dict[str, str]:
    """Train, evaluate, predict and learn two domains in the folder `name`; repository -> folder of what was pushed."""
    method, protocol, keys = RUNS[name]
    short = ["--max_steps", "2", "--batch_size", "2", "--num_workers", "0", "--precision", "no", *keys]
    short = ["--model", base, "--method", method, *short]
    pushed = {f"me/{name}": f"{name}/run"}
    kinds = ["none"] if protocol is None else ["none", "box", "point", "mask"]
    prompts = ["--dataset", data[0], "--prompts", *kinds]
    trained = ["train", *short, *prompts, "--output_dir", f"{name}/run"]
    assert main([*trained, "--hub_model_id", f"me/{name}", "--push_to_hub"]) == 0
    assert main(["evaluate", f"{name}/run", *prompts, "--output_dir", f"{name}/scores"]) == 0
    found = json.loads(Path(name, "scores/metrics.json").read_text())["test"]
    assert set(found) == set(kinds)
    assert all(0 <= one["adapted"]["miou" if protocol is None else "iou"] <= 1 for one in found.values())
    domains = [json.dumps({"first": data[0]}), json.dumps({"second": data[1]})]
    if protocol is not None:
        learned = ["continual", *short, "--protocol", protocol, "--domains", *domains]
        assert main([*learned, "--output_dir", f"{name}/two"]) == 0
        assert len(json.loads(Path(name, "two/continual.json").read_text())["matrix_iou"]) == 2
    if protocol == "moda":
        pushed[f"me/{name}-two"] = f"{name}/two/pool"
        assert main(["push", f"{name}/two/pool", "--repo", f"me/{name}-two"]) == 0
    for number, folder in enumerate(pushed.values()):
        predicted = f"{name}/predicted-{number}"
        assert main(["predict", f"{data[0]}/test/images", "--adapter", folder, "--output_dir", predicted]) == 0
        assert len(list(Path(predicted).glob("*.png"))) >= 2
    return pushed


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CITATIONS)
def test_a_family_from_training_to_the_hub_and_back(connect, tmp_path, make_dataset, monkeypatch, model_type):
    monkeypatch.chdir(tmp_path)
    connected, family = connect(), family_of_type(model_type, "base")
    data = [str(make_dataset(Path(name), train=4, val=2, test=2, seed=seed)) for seed, name in enumerate(("a", "b"))]
    RANDOM_SAMS[model_type]().save_pretrained("base")
    processor = load_base("base")[1]
    processor.save_pretrained("base")
    assert load_base("base")[1].to_dict() == processor.to_dict()
    push_folder(Path("base"), f"me/{model_type}")
    pushed: dict[str, str] = {}
    for name in RUNS:
        pushed |= run_commands(name, f"me/{model_type}", data)
        page = read_page(Path(name, "run"))
        assert CITATIONS[model_type] in page.code["bibtex"] or CITATIONS[model_type] in "\n".join(page.code["bibtex"])
        assert family.license.get("license_name", family.license["license"]) in Path(name, "run/README.md").read_text()

    script = f"""
import sys, torch
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT / "tests/hub")!r}]
torch.set_num_threads(1)
from test_families_by_command import masks
torch.save({{name: masks(name) for name in {list(pushed)}}}, "found.pt")
"""
    environment = os.environ | connected.environment(tmp_path / "empty") | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    found = torch.load("found.pt")
    for name, folder in pushed.items():
        assert torch.equal(found[name], masks(folder)), name
