"""`evaluate` against a plain loop over images and objects that calls transformers' SamModel directly."""

import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sams import perturb, random_sam

from hf_sam_adapt.errors import UserError
from hf_sam_adapt.evaluation import evaluate
from hf_sam_adapt.inference.loading import build_model
from hf_sam_adapt.inference.variants import inference
from hf_sam_adapt.metrics import PROMPTLESS_METRICS, constant_mask
from hf_sam_adapt.prompts import derive_prompts
from hf_sam_adapt.sam.processing import SamAdaptProcessor


KINDS = ["none", "box", "point", "mask"]


@dataclass
class Sample:
    image: np.ndarray
    mask: np.ndarray
    id: str
    index: int


class Split(list):
    """Samples that count how often they are read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def make_split(count: int = 5, seed: int = 0) -> Split:
    """Images of different sizes, some pixels ignored, with 15, 0, and then 1 to 3 rectangles."""
    rng = np.random.default_rng(seed)
    samples = Split()
    for index in range(count):
        height, width = rng.integers(30, 90, 2)
        mask = np.zeros((height, width), np.uint8)
        for _ in range(0 if index == 1 else int(rng.integers(1, 4))):
            top, left = rng.integers(0, height - 12), rng.integers(0, width - 12)
            mask[top : top + 10, left : left + 11] = 1
        if index == 0:
            mask[:] = 0
            for place in range(15):
                mask[4 + 8 * (place // 5) :, 5 * (place % 5) :][:4, :3] = 1
        mask[:2] = 255
        image = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
        samples.append(Sample(image, mask, f"image{index}", index))
    return samples


def plain_mask(sam, processor, sample, kind, index, best_of_three=False) -> np.ndarray:
    """The union of one forward per object."""
    prompt = derive_prompts(sample.mask, kind, rng=np.random.default_rng([0, index]), mask_values="index")
    union = np.zeros(sample.mask.shape, bool)
    for i in range(max(len(prompt), kind == "none")):
        inputs = processor([sample.image], prompts=[prompt])
        ready = inputs["prompts"][0]
        arguments = {}
        if kind == "box":
            arguments["input_boxes"] = ready.boxes[None, i : i + 1]
        elif kind == "point":
            arguments["input_points"] = ready.points[None, i : i + 1]
            arguments["input_labels"] = ready.point_labels[None, i : i + 1]
        elif kind == "mask":
            arguments["input_masks"] = ready.masks[None, i : i + 1]
        with torch.no_grad():
            output = sam(pixel_values=inputs["pixel_values"], multimask_output=best_of_three, **arguments)
        chosen = output.iou_scores[0, 0].argmax() if best_of_three else 0
        logits = output.pred_masks[:, 0, chosen][:, None]  # (1, 1, h, w)
        height, width = inputs["reshaped_input_sizes"][0].tolist()
        logits = F.interpolate(logits, (processor.image_size,) * 2, mode="bilinear")[..., :height, :width]
        logits = F.interpolate(logits, sample.mask.shape, mode="bilinear")[0, 0]
        union |= (logits > 0).numpy()
    return union


def plain_scores(sam, processor, split, kind, best_of_three=False) -> dict[str, float]:
    iou, dice = [], []
    for index, sample in enumerate(list(split)):
        known, truth = sample.mask != 255, sample.mask == 1
        predicted = plain_mask(sam, processor, sample, kind, index, best_of_three) & known
        both, total = (predicted & truth).sum(), predicted.sum() + truth.sum()
        iou.append(both / (total - both) if total else 1.0)
        dice.append(2 * both / total if total else 1.0)
    return {"iou": float(np.mean(iou)), "dice": float(np.mean(dice))}


@pytest.fixture(scope="module")
def models():
    """A base and the same base with a SAM-Adapter that changes its output."""
    base = random_sam(seed=3)
    adapted = perturb(build_model("sam_adapter", {}, copy.deepcopy(base)), std=0.2).eval()
    return base, adapted


@pytest.mark.parametrize("resize", ["pad", "squash"])
def test_equals_a_plain_loop(models, resize):
    base, adapted = models
    processor = SamAdaptProcessor(image_size=64, patch_size=8, resize=resize)
    split = make_split()
    result = evaluate(adapted, processor, split, KINDS, batch_size=2, progress=False)
    assert split.reads == len(split)
    for kind in KINDS:
        assert result.test[kind]["zero_shot"] == pytest.approx(plain_scores(base, processor, split, kind))
        assert result.test[kind]["adapted"] == pytest.approx(plain_scores(adapted, processor, split, kind))
    best = plain_scores(base, processor, split, "point", best_of_three=True)
    assert result.test["point"]["zero_shot_best_of_3"] == pytest.approx(best)
    # The comparison means something: the models differ, and so do the prompts.
    assert len({round(result.test[kind][name]["iou"], 6) for kind in KINDS for name in ("zero_shot", "adapted")}) == 8
    assert best != result.test["point"]["zero_shot"]


def test_batch_size_and_workers_change_nothing(models):
    _, adapted = models
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    split = make_split(seed=1)
    one = evaluate(adapted, processor, split, KINDS, batch_size=1, progress=False)
    assert evaluate(adapted, processor, split, KINDS, batch_size=5, progress=False).records == one.records
    assert (
        evaluate(adapted, processor, split, KINDS, batch_size=2, num_workers=2, progress=False).records == one.records
    )
    assert [record.id for record in one.records] == [sample.id for sample in list(split)]


def test_image_without_objects_is_empty_and_perfect(models):
    _, adapted = models
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    result = evaluate(adapted, processor, make_split(2), KINDS, progress=False)
    for kind in ("box", "point", "mask"):
        for counts in result.records[1].scores[kind].values():
            assert counts.prediction == counts.truth == 0
            assert counts.iou == 1.0


def test_constant_stands_beside_none_only(models):
    _, adapted = models
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    split = make_split(6, seed=4)
    constant = constant_mask(split, size=32)
    result = evaluate(adapted, processor, split, ["none", "box"], constant=constant, progress=False)
    expected = []
    for sample in list(split):
        known, truth = sample.mask != 255, sample.mask == 1
        predicted = constant.at(*sample.mask.shape) & known
        union = (predicted | truth).sum()
        expected.append((predicted & truth).sum() / union if union else 1.0)
    assert result.test["none"]["constant"]["iou"] == pytest.approx(np.mean(expected))
    assert set(result.test["box"]) == {"zero_shot", "adapted"}


def test_further_metrics_are_of_the_promptless_probabilities(models):
    base, adapted = models
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    split = make_split(4, seed=6)
    constant = constant_mask(split, size=32)
    names = list(PROMPTLESS_METRICS)
    arguments = {"constant": constant, "progress": False}
    result = evaluate(adapted, processor, split, ["none", "box"], metrics=names, **arguments)
    assert result.records == evaluate(adapted, processor, split, ["none", "box"], **arguments).records
    for variant, sam in (("zero_shot", base), ("adapted", adapted), ("constant", None)):
        expected = {}
        for name, kind in PROMPTLESS_METRICS.items():
            metric = kind()
            for sample in list(split):
                inputs = processor([sample.image])
                if sam is None:
                    map_ = constant.at(*sample.mask.shape)
                else:
                    with torch.no_grad():
                        logits = sam(pixel_values=inputs["pixel_values"], multimask_output=False).pred_masks[:, 0]
                    height, width = inputs["reshaped_input_sizes"][0].tolist()
                    logits = F.interpolate(logits, (64, 64), mode="bilinear")[..., :height, :width]
                    map_ = F.interpolate(logits, sample.mask.shape, mode="bilinear")[0, 0].sigmoid().numpy()
                metric.update(map_ > 0.5 if name == "ber" else map_, sample.mask)
            expected |= metric.compute()
        for key, value in expected.items():
            # Of a curve of 256 thresholds one pixel may round across one of them.
            limit = 1e-3 if key.endswith("curve") else 1e-4
            assert result.test["none"][variant][key] == pytest.approx(value, abs=limit), (variant, key)
    assert set(result.test["box"]["adapted"]) == {"iou", "dice"}
    with pytest.raises(UserError, match="add none to prompts"):
        evaluate(adapted, processor, split, ["box"], metrics=["mae"])


def test_the_encoder_runs_once_per_image_and_model(models):
    _, adapted = models
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    seen = []
    encoder = adapted.get_base_model().vision_encoder
    hook = encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    evaluate(adapted, processor, make_split(5), KINDS, batch_size=2, progress=False)
    hook.remove()
    assert sum(seen) == 2 * 5


def test_full_needs_its_base_and_plain_sam_is_zero_shot_only(models):
    base, _ = models
    full = perturb(build_model("full", {}, copy.deepcopy(base))).eval()
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    split = make_split(3)
    with pytest.raises(ValueError, match="zero_shot_model"):
        evaluate(full, processor, split, ["none"], progress=False)
    both = evaluate(full, processor, split, ["none"], zero_shot_model=base, progress=False).test["none"]
    plain = evaluate(base, processor, split, ["none"], adapted=False, progress=False).test["none"]
    alone = evaluate(full, processor, split, ["none"], zero_shot=False, progress=False).test["none"]
    assert both["zero_shot"] == plain["zero_shot"] != both["adapted"]
    assert plain["adapted"] is None and alone["zero_shot"] is None
    assert alone["adapted"] == both["adapted"]


def test_leaves_modes_and_gradients_as_they_were(models):
    _, adapted = models
    model = copy.deepcopy(adapted).train()
    model.get_base_model().vision_encoder.neck.eval()
    frozen = next(parameter for parameter in model.parameters() if parameter.requires_grad)
    frozen.requires_grad_(False)
    modes = {name: module.training for name, module in model.named_modules()}
    grads = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    evaluate(model, processor, make_split(2), ["none"], progress=False)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == grads


def test_inference_restores_after_an_error(models):
    _, adapted = models
    model = copy.deepcopy(adapted).train()
    with pytest.raises(RuntimeError, match="stop"), inference([model]):
        assert not model.training and not torch.is_grad_enabled()
        raise RuntimeError("stop")
    assert model.training and torch.is_grad_enabled()


def test_empty_split(models):
    _, adapted = models
    with pytest.raises(ValueError, match="no image"):
        evaluate(adapted, SamAdaptProcessor(image_size=64, patch_size=8), Split(), ["none"])


def _evaluate_on_rank(rank: int, rendezvous: str, count: int, adapted, results) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    split = make_split(count)
    result = evaluate(adapted, processor, split, KINDS, batch_size=2, metrics=["e_measure", "ber"], progress=False)
    results[rank] = (result.test, result.records)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("count", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_two_processes_equal_one(models, tmp_path, count):
    """Neither an uneven number of images nor a rank without any counts an image twice."""
    _, adapted = models
    processor = SamAdaptProcessor(image_size=64, patch_size=8)
    metrics = ["e_measure", "ber"]
    expected = evaluate(adapted, processor, make_split(count), KINDS, batch_size=2, metrics=metrics, progress=False)
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        arguments = (str(tmp_path / "rendezvous"), count, adapted, results)
        torch.multiprocessing.spawn(_evaluate_on_rank, arguments, nprocs=2)
        found = dict(results)
    assert found[0] == found[1] and found[0][1] == expected.records
    for kind, scores in expected.test.items():
        for name in ("zero_shot", "adapted"):
            assert found[0][0][kind][name] == pytest.approx(scores[name], abs=1e-12)
    assert {"ber_pooled", "e_measure_max"} < set(expected.test["none"]["adapted"])
