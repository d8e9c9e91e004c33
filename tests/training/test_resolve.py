"""What a recipe leaves open is settled in one step, by its data set and its model."""

import dataclasses

import pytest

from hf_sam_adapt.config.recipe import Recipe, ResolvedRecipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.loading import save_adapter
from hf_sam_adapt.training.resolve import build, load_model, resolve
from hf_sam_adapt.training.run import load_data


@pytest.mark.parametrize("method", ["decoder", "lora", "full"])
def test_what_data_and_model_decide_has_a_value_that_stays(sam_folder, disc_folder, method, tmp_path):
    recipe = Recipe(model=sam_folder, dataset=str(disc_folder), method=method)
    data = load_data(recipe)
    resolved, model, processor = load_model(recipe, data)
    assert type(resolved) is ResolvedRecipe and len(ResolvedRecipe.__annotations__) > 5
    assert all(getattr(resolved, key) is not None for key in ResolvedRecipe.__annotations__)
    assert (resolved.image_size, resolved.resize) == (64, processor.resize) == (processor.image_size, "pad")
    assert (resolved.mask_values, resolved.loss, resolved.normalization) == ("binary", "structure", "imagenet")
    assert resolve(resolved, data, build(resolved, data)) == resolved
    save_adapter(model, tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    further = Recipe(adapter=str(tmp_path / "trained"), dataset=str(disc_folder))
    assert further.model is further.learning_rate is None
    settled = load_model(further, data)[0]
    base = str(tmp_path / "trained") if method == "full" else sam_folder
    assert (settled.model, settled.method, settled.learning_rate) == (base, method, 2e-4)
    settled = dataclasses.replace(settled, adapter=None, model=resolved.model)
    assert settled == resolved


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"prompts": ["none", "box"]}, r"^prompts: none box, but classes are segmented without prompts"),
        ({"metrics": ["mae"]}, r"^metrics: mae are of binary masks, and this data set has classes"),
        ({"loss": "structure"}, r"^loss: 'structure' is not a loss for masks of 3 classes"),
        ({"image_size": 65}, r"^image_size: 65 is not a multiple of 8, which SAM needs; the nearest is 64"),
        ({"method": "lora"}, r"^num_labels: method lora segments one class"),
    ],
)
def test_what_does_not_fit_the_data_or_the_model_is_refused(sam_folder, keys, message):
    recipe = Recipe(**{"model": sam_folder, "dataset": "synthetic:landcover", "method": "cwsam"} | keys)
    data = load_data(Recipe(dataset="synthetic:landcover"))
    data.num_labels, data.id2label = 3, {0: "background", 1: "a", 2: "b"}
    with pytest.raises(UserError, match=message):
        load_model(recipe, data)


def test_cwsam_of_one_class_says_what_it_needs(sam_folder):
    recipe = Recipe(model=sam_folder, dataset="synthetic:polyp", method="cwsam")
    with pytest.raises(UserError, match=r"^method: cwsam segments classes, the data set has one; set num_labels"):
        load_model(recipe, load_data(recipe))
