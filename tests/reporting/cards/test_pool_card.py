"""The card of a pool: the matrix, the routing and the domains as `continual.json` has them; its code runs."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub.repocard_data import model_index_to_eval_results
from PIL import Image

from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import load_adapted
from hf_sam_adapt.reporting.cards import write_card


def values(rows):
    return np.array([[float(cell) for cell in row] for row in rows])


def table(card, first):
    return next(rows for rows in card.tables if rows[0][0] == first)


def test_tables_are_those_of_the_run(pool_run, page, read_json):
    card, results = page(pool_run / "pool"), read_json(pool_run / "continual.json")
    assert read_json(pool_run / "pool/continual.json") == results
    matrix = table(card, "after")
    assert matrix[0] == ["after", "first", "second"] and [row[0] for row in matrix[1:]] == [
        "zero-shot",
        *matrix[0][1:],
    ]
    expected = np.array([results["zero_shot_iou"], *results["matrix_iou"]])
    assert values([row[1:] for row in matrix[1:]]) == pytest.approx(expected, abs=5e-4)
    domains = table(card, "domain")[1:]
    assert [row[:4] for row in domains] == [["first", "first", "6", "4"], ["second", "second", "6", "4"]]
    assert values([row[5:] for row in domains]) == pytest.approx(
        np.array([results["matrix_iou"][-1], results["oracle_iou"]]).T, abs=5e-4
    )
    routing = table(card, "test images of")
    assert routing[0][1:] == ["first", "second", "base"]
    assert [[int(cell) for cell in row[1:]] for row in routing[1:]] == list(results["confusion"].values())
    accuracy = np.mean([row[index] / sum(row) for index, row in enumerate(results["confusion"].values())])
    assert f"{accuracy:.1%}" in card.text and f"Accuracy {accuracy:.3f}" in card.text
    _, found = model_index_to_eval_results(card.data["model-index"])
    iou = {result.dataset_name: result.metric_value for result in found if result.metric_type == "iou"}
    assert iou == pytest.approx(dict(zip(results["domains"], results["matrix_iou"][-1])), abs=5e-5)


def test_links_pictures_and_paths(pool_run, page):
    pool = pool_run / "pool"
    card = page(pool)
    assert card.pictures == ["matrix.png", "curves.png"]
    local = [link for link in card.links if not link.startswith("https://")]
    assert local == ["first/adapter_config.json", "second/adapter_config.json", "recipe.yaml"]
    assert all((pool / name).is_file() for name in [*card.pictures, *local])
    assert str(pool_run.parent) not in (pool / "README.md").read_text()
    assert "yang2024continual" in card.code["bibtex"][0]


def test_the_code_runs(pool_run, page, sam_folder, tmp_path, monkeypatch):
    (tmp_path / "small").symlink_to(sam_folder)
    (tmp_path / "pool").symlink_to(pool_run / "pool")
    Image.open(pool_run.parent / "second/test/images/0.png").save(tmp_path / "image.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    space = {}
    exec("".join(page(pool_run / "pool").code["python"]), space)
    loaded = load_adapted("pool")
    pixels = loaded.processor(Image.open("image.jpg"))
    with torch.no_grad():
        low = loaded.model(pixel_values=pixels["pixel_values"]).pred_masks[:, 0]
    (full,) = loaded.processor.post_process_masks(low, pixels["original_sizes"], pixels["reshaped_input_sizes"])
    assert torch.equal(space["mask"], full[0] > 0)


def test_old_and_lonely_pools(pool_run, page, tmp_path):
    shutil.copytree(pool_run / "pool", tmp_path / "run/pool")
    old, pool = tmp_path / "run", tmp_path / "run/pool"
    for name in ("continual.json", "recipe.yaml", "matrix.png", "curves.png", "README.md"):
        (pool / name).unlink()
    with pytest.raises(UserError, match=r"no continual\.json here or in the folder above"):
        write_card(pool)
    results = json.loads((pool_run / "continual.json").read_text())
    for key in ("tasks", "oracle_iou", "oracle_biou"):
        del results[key]
    (old / "continual.json").write_text(json.dumps(results))
    shutil.copy(pool_run / "recipe.yaml", old)
    write_card(pool, repo_id="me/pool")
    card = page(pool)
    assert card.pictures == [] and '"me/pool")' in card.code["python"][0]
    assert table(card, "after") == table(page(pool_run / "pool"), "after")
    with pytest.raises(UserError, match=r"no metrics\.json of a training"):
        write_card(old)


def test_the_code_for_one_domain_runs(pool_run, page, sam_folder, tmp_path, monkeypatch):
    from peft import PeftModel
    from transformers import SamModel

    (tmp_path / "small").symlink_to(sam_folder)
    (tmp_path / "pool").symlink_to(pool_run / "pool")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"`(PeftModel\.[^`]+)`", page(pool_run / "pool").text)
    model = eval(code, {"PeftModel": PeftModel, "SamModel": SamModel})
    pixels = torch.randn(1, 3, 64, 64)
    pool = load_adapted("pool").model
    with torch.no_grad(), pool.using("first"):
        expected = pool(pixel_values=pixels).pred_masks
        found = model.requires_grad_(False).eval()(pixel_values=pixels).pred_masks
    assert torch.equal(found, expected)
