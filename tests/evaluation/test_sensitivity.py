"""Whether a model listens to its prompt: against a plain loop, and on models that surely do and do not."""

import numpy as np
import pytest
import torch
from sams import perturb, random_sam
from test_evaluate import make_split

from hf_sam_adapt.evaluation import sensitivity
from hf_sam_adapt.evaluation.sensitivity import prompt_sensitivity
from hf_sam_adapt.inference.forward import segment
from hf_sam_adapt.inference.loading import build_model
from hf_sam_adapt.prompts import Prompt, derive_prompts
from hf_sam_adapt.sam.processing import SamAdaptProcessor


@pytest.fixture(scope="module")
def processor():
    return SamAdaptProcessor(64, patch_size=8)


def iou(one, other, known):
    return ((one & other & known).sum() / max(1, ((one | other) & known).sum())).item()


@pytest.mark.parametrize("kind", ["box", "point"])
def test_equal_to_a_plain_loop(processor, kind):
    split, model = make_split(4), perturb(build_model("decoder", {}, random_sam()), std=0.05).eval()
    found = prompt_sensitivity(model, processor, split, kind, batch_size=3, progress=False)
    own, moved, removed, changed = [], [], [], []
    for sample in split:
        prompt, known = derive_prompts(sample.mask, kind, max_objects=8, mask_values="index"), sample.mask != 255
        inputs = processor([sample.image] * 2, prompts=[prompt, Prompt("none")])
        with torch.no_grad():
            logits = segment(model, inputs["pixel_values"], inputs["prompts"])
        full = processor.post_process_masks(logits, inputs["original_sizes"], inputs["reshaped_input_sizes"])
        masks, without = (one.numpy() > 0 for one in full)
        for number, target in enumerate(prompt.targets):
            own.append(iou(masks[number], target, known))
            removed.append(iou(without[0], target, known))
            if len(masks) > 1:
                other = masks[(number + 1) % len(masks)]
                moved.append(iou(other, target, known))
                changed.append(1 - iou(masks[number], other, known))
    assert found["objects"] == len(own) and found["pairs"] == len(moved) > 4 and found["prompt"] == kind
    scores = found["adapted"]
    assert scores["iou"] == pytest.approx(
        {"own": np.mean(own), "moved": np.mean(moved), "removed": np.mean(removed)}, abs=1e-6
    )
    assert scores["change"]["moved"] == pytest.approx(np.mean(changed), abs=1e-6)
    assert found["zero_shot"]["iou"] != scores["iou"]


def test_deaf_and_obedient_models(processor, monkeypatch):
    """One that gives the same mask whatever it is asked, and one that gives the object of the prompt."""
    split = make_split(5)

    def answers(obedient):
        def own_and_removed(model, processor, inputs, embeddings, prompts):
            shapes = [prompt.targets.shape for prompt in prompts]
            whole = [prompt.targets.any(0) for prompt in prompts]
            return [
                (prompt.targets if obedient else np.broadcast_to(mask, shape), mask)
                for prompt, mask, shape in zip(prompts, whole, shapes)
            ]

        monkeypatch.setattr(sensitivity, "own_and_removed", own_and_removed)
        return prompt_sensitivity(random_sam(), processor, split, adapted=False, progress=False)["zero_shot"]

    deaf, obedient = answers(False), answers(True)
    assert deaf["change"] == {"moved": 0.0, "removed": 0.0} and deaf["iou"]["own"] == deaf["iou"]["removed"]
    assert obedient["iou"]["own"] == 1 and obedient["iou"]["moved"] == 0 and obedient["change"]["moved"] == 1
    assert 0 < obedient["change"]["removed"] < 1


def test_the_only_object_has_nowhere_to_move(processor):
    split = make_split(1)
    split[0].mask[:] = 0
    split[0].mask[5:20, 5:20] = 1
    found = prompt_sensitivity(random_sam(), processor, split, adapted=False, progress=False)
    assert found["objects"] == 1 and found["pairs"] == 0 and found["zero_shot"]["iou"]["moved"] is None
    assert found["zero_shot"]["change"]["removed"] is not None and found["adapted"] is None
