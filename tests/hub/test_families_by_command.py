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
METHODS = {"sam_hq": "decoder", "sam2": "lora", "sam3_tracker": "lora"}


def masks(name: str) -> torch.Tensor:
    """What the model of an adapter's folder or id gives, for two images of its size."""
    loaded = load_adapted(name)
    side = loaded.processor.image_size
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        model = loaded.model.requires_grad_(False).eval()
        return model(pixel_values=pixels, multimask_output=False).pred_masks


@pytest.mark.slow
@pytest.mark.parametrize("model_type", CITATIONS)
def test_a_family_from_training_to_the_hub_and_back(connect, tmp_path, make_dataset, monkeypatch, capsys, model_type):
    monkeypatch.chdir(tmp_path)
    connected, data, family = connect(), str(make_dataset(train=4, val=2, test=2)), family_of_type(model_type, "base")
    RANDOM_SAMS[model_type]().save_pretrained("base")
    processor = load_base("base")[1]
    processor.save_pretrained("base")
    assert load_base("base")[1].to_dict() == processor.to_dict()
    push_folder(Path("base"), f"me/{model_type}")

    base, kinds = ["--model", f"me/{model_type}"], ["none", "box", "point", "mask"]
    short = ["--method", METHODS[model_type], "--max_steps", "2", "--batch_size", "2", "--num_workers", "0"]
    trained = ["train", *base, *short, "--dataset", data, "--prompts", *kinds, "--output_dir", "run"]
    assert main([*trained, "--hub_model_id", "me/adapter", "--push_to_hub"]) == 0
    assert main(["evaluate", "run", "--dataset", data, "--prompts", *kinds, "--output_dir", "scores"]) == 0
    scores = json.loads(Path("scores/metrics.json").read_text())["test"]
    assert set(scores) == set(kinds) and all(0 <= found["adapted"]["iou"] <= 1 for found in scores.values())
    assert main(["predict", f"{data}/test/images", "--adapter", "run", "--output_dir", "predicted"]) == 0
    assert len(list(Path("predicted").glob("*.png"))) >= 2
    other = str(make_dataset(Path("other"), train=4, val=2, test=2, seed=5))
    domains = [json.dumps({"first": data}), json.dumps({"second": other})]
    assert main(["continual", *base, *short, "--protocol", "naive", "--domains", *domains, "--output_dir", "two"]) == 0
    assert len(json.loads(Path("two/continual.json").read_text())["matrix_iou"]) == 2
    capsys.readouterr()

    page = read_page(Path("run"))
    assert CITATIONS[model_type] in page.code["bibtex"] or CITATIONS[model_type] in "\n".join(page.code["bibtex"])
    card = Path("run/README.md").read_text()
    assert family.license.get("license_name", family.license["license"]) in card

    script = f"""
import sys, torch
sys.path[:0] = [{str(ROOT / "tests")!r}, {str(ROOT / "tests/hub")!r}]
torch.set_num_threads(1)
from test_families_by_command import masks
torch.save(masks("me/adapter"), "found.pt")
"""
    environment = os.environ | connected.environment(tmp_path / "empty") | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-4000:]
    assert torch.equal(torch.load("found.pt"), masks("run"))
