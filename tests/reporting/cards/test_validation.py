"""The Hub's own check of a card, asked through huggingface_hub, and its reading of the metadata."""

import inspect
import json

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, close_session, constants
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from local_hub import LocalHub

from hf_sam_adapt.reporting.cards.metadata import card_data, run_results


NOTHING = {"type": "iou", "value": float("nan")}
RESULT = {"task": {"type": "t"}, "dataset": {"name": "d", "type": "d"}, "metrics": [{"type": "iou", "value": 0.5}]}


@pytest.fixture
def validator(monkeypatch):
    if "huggingface.co" in inspect.getsource(ModelCard.validate):
        pytest.skip("this huggingface_hub asks huggingface.co alone")
    with LocalHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub
        close_session()


@pytest.mark.parametrize("name", ["binary_run", "class_run", "pool_run"])
def test_every_kind_of_card_is_valid(name, request, validator):
    folder = request.getfixturevalue(name)
    card = ModelCard.load((folder / "pool" if name == "pool_run" else folder) / "README.md")
    card.validate()
    assert validator.requests == ["POST /api/validate-yaml"]
    # What huggingface_hub makes of the block is what the block says.
    again = ModelCardData(**yaml.safe_load(card.data.to_yaml()))
    assert again.to_dict() == card.data.to_dict()
    block = json.loads(json.dumps(card.data.to_dict()["model-index"]))
    assert eval_results_to_model_index(*model_index_to_eval_results(block)) == block
    assert card.data.eval_results and all(0 <= result.metric_value <= 1 for result in card.data.eval_results)


@pytest.mark.slow
def test_the_card_of_a_base_with_a_revision(validator, class_run):
    metrics = json.loads((class_run / "metrics.json").read_text())
    dataset = {"name": "owner/set", "revision": "0123abc"}
    data = card_data(
        name="streets",
        method="cwsam",
        model="facebook/sam-vit-base@refs/pr/3",
        task="image-segmentation",
        datasets=["owner/set"],
        results=run_results(metrics, "image-segmentation", dataset),
    )
    assert data.base_model == "facebook/sam-vit-base" and data.base_model_relation == "adapter"
    ModelCard(f"---\n{data.to_yaml()}\n---\n# streets\n").validate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"license": "free"}, "license"),
        ({"pipeline_tag": "segmentation"}, "pipeline_tag"),
        ({"base_model": "facebook/sam-vit-base@v1"}, "base_model"),
        ({"base_model": "/home/me/sam"}, "base_model"),
        ({"base_model_relation": "adapter"}, "base_model_relation"),
        ({"datasets": ["synthetic:polyp"]}, "datasets"),
        ({"tags": [1]}, "tags"),
        ({"model-index": [{"name": "", "results": []}]}, "name"),
        (
            {"model-index": [{"name": "x", "results": [RESULT | {"dataset": {"name": "", "type": "d"}}]}]},
            "dataset.name",
        ),
        ({"model-index": [{"name": "x", "results": [RESULT | {"metrics": [NOTHING]}]}]}, "value"),
    ],
)
def test_the_validator_finds_what_is_wrong(changes, message, binary_run, validator):
    card = ModelCard.load(binary_run / "README.md")
    block = yaml.safe_dump(card.data.to_dict() | changes)
    with pytest.raises(ValueError, match=message):
        ModelCard(f"---\n{block}---\n", ignore_metadata_errors=True).validate()
