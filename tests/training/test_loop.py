"""One optimizer step: what the loss of a batch is made of, and which parameters it reaches."""

import copy
import math
import time

import pytest
import torch
from accelerate.utils import set_seed

from hf_sam_adapt import segmentation_loss
from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.errors import UserError
from hf_sam_adapt.inference.forward import PromptedSam
from hf_sam_adapt.prompts import Prompt
from hf_sam_adapt.training.batches import to_device
from hf_sam_adapt.training.cost import CostMeter
from hf_sam_adapt.training.loop import TrainingLoop, batch_loss
from hf_sam_adapt.training.resolve import load_model
from hf_sam_adapt.training.run import build_accelerator, load_data
from hf_sam_adapt.training.run_folder import RunFolder


@pytest.fixture
def build_loop(short_recipe):
    def build(**keys):
        recipe = parse_recipe(short_recipe(**keys))
        set_seed(recipe.seed)
        folder = RunFolder(recipe)
        data = load_data(recipe)
        recipe, model, processor = load_model(recipe, data)
        accelerator = build_accelerator(recipe, model, folder)
        return TrainingLoop(recipe, accelerator, model, processor, data, folder.checkpoints)

    return build


@pytest.mark.parametrize("kind", ["none", "box", "point", "mask"])
@pytest.mark.parametrize("method", ["sam_adapter", "decoder", "decoder, IoU head", "lora", "full"])
def test_every_trained_parameter_gets_a_gradient_and_nothing_else_moves(method, kind, build_loop):
    """Otherwise DistributedDataParallel would wait for it forever."""
    method, _, further = method.partition(",")
    head = {"method_args.train_iou_head": True} if further else {}
    loop = build_loop(method=method, prompts=kind, learning_rate=1e-2, **head)
    before = {name: p.detach().clone() for name, p in loop.model.named_parameters()}
    loop.optimizer.zero_grad = lambda: None
    loop._optimizer_step(0, iter(loop._loader()))
    assert loop.trained and all(p.grad is not None for p in loop.trained)
    for name, parameter in loop.model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None and torch.equal(parameter, before[name]), name
    changed = [name for name, parameter in loop.model.named_parameters() if not torch.equal(parameter, before[name])]
    assert any("mask_decoder" in name for name in changed)
    assert (method == "decoder") == (not any("vision_encoder" in name for name in changed))
    assert bool(head) == any("iou_prediction_head" in name for name in changed)


def test_batch_loss_is_a_mean_over_images_of_means_over_objects():
    labels = (torch.rand(3, 64, 64) < 0.4).long()
    labels[:, 50:] = 255
    targets = (torch.rand(2, 64, 64) < 0.3).long().masked_fill(labels[1] == 255, 255)
    logits = [torch.randn(1, 16, 16), torch.randn(2, 16, 16), torch.randn(1, 16, 16)]
    prompts = [Prompt("none"), Prompt("box", boxes=torch.zeros(2, 4), targets=targets), Prompt("none")]
    batch = {"labels": labels, "prompts": prompts, "weight": torch.tensor([1.0, 1.0, 0.0])}
    loss, iou = batch_loss(logits, batch, "structure")

    def single(image_logits, image_labels):
        return segmentation_loss(image_logits[None, None], image_labels[None], "structure")

    first = single(logits[0][0], labels[0])
    second = (single(logits[1][0], targets[0]) + single(logits[1][1], targets[1])) / 2
    assert torch.allclose(loss, (first + second) / 3)

    def coarse_iou(image_logits, image_labels):
        small = image_labels[2::4, 2::4]
        predicted, true = (image_logits > 0) & (small != 255), small == 1
        return ((predicted & true).sum() / (predicted | true).sum()).item()

    objects = (coarse_iou(logits[1][0], targets[0]) + coarse_iou(logits[1][1], targets[1])) / 2
    assert iou.item() == pytest.approx((coarse_iou(logits[0][0], labels[0]) + objects) / 2)


def test_trained_estimates_cost_their_squared_error():
    labels, targets = (torch.rand(2, 64, 64) < 0.4).long(), (torch.rand(2, 64, 64) < 0.3).long()
    logits = [torch.randn(1, 16, 16), torch.randn(4, 16, 16)]  # two objects, one round of corrections
    prompts = [Prompt("none"), Prompt("box", boxes=torch.zeros(2, 4), targets=targets)]
    batch = {"labels": labels, "prompts": prompts, "weight": torch.ones(2)}
    estimates = [torch.rand(1), torch.rand(4)]
    plain, _ = batch_loss(logits, batch, "bce")
    loss, _ = batch_loss(logits, batch, "bce", estimates=estimates)

    def error(image, place, image_labels):
        predicted, true = logits[image][place] > 0, image_labels[2::4, 2::4] == 1
        return (estimates[image][place] - (predicted & true).sum() / (predicted | true).sum()) ** 2

    objects = [error(1, place, targets[place % 2]) for place in range(4)]
    assert torch.allclose(loss - plain, (error(0, 0, labels[0]) + sum(objects) / 4) / 2, atol=1e-6)


def test_the_iou_head_alone_learns_to_rate_masks(build_loop):
    method = {"method": "decoder", "method_args.decoder": "frozen", "method_args.train_iou_head": True}
    loop = build_loop(**method, prompts="box", learning_rate=1e-2, max_steps=40, batch_size=5, eval_every=20)
    plain, errors = copy.deepcopy(loop.model).eval(), []
    batch = to_device(next(iter(loop._loader())), loop.processor, torch.device("cpu"))
    loop.run()
    for model in (plain, loop.model.eval()):
        with torch.no_grad():
            logits, _, estimates = PromptedSam(model)(batch["pixel_values"], batch["prompts"])
        errors.append(batch_loss(logits, batch, "bce", estimates=estimates)[0] - batch_loss(logits, batch, "bce")[0])
    assert errors[1] < 0.2 * errors[0]


def test_cost_leaves_out_the_first_tenth_and_pauses():
    with CostMeter(torch.device("cpu"), images_per_step=8) as cost:
        assert cost.images_per_second is None
        cost.seconds = [9.0, 9.0] + [0.5] * 17 + [3.0]
        assert cost.images_per_second == 16
        cost.restart()
        time.sleep(0.02)
        cost.step()
        assert 0.02 <= cost.seconds[-1] < 1
        ballast = torch.ones(40_000_000)
        time.sleep(0.2)
        del ballast
    assert 150e6 < cost.peak_memory_bytes < 400e6


class Figures:
    """Stands for the loss and IoU of a step that a GPU has not finished; reading them would wait for it."""

    def __init__(self, step: int, events: list[str], loss: float) -> None:
        self.step, self.events, self.loss = step, events, loss
        events.append(f"start {step}")

    def tolist(self) -> list[float]:
        self.events.append(f"read {self.step}")
        return [self.loss, 0.5]


@pytest.mark.parametrize("broken", [None, 2])
def test_losses_are_read_a_step_late_and_before_what_is_due(broken, build_loop, monkeypatch):
    loop, events = build_loop(max_steps=5, eval_every=3, checkpoint_every=3), []
    losses = {step: math.nan if step == broken else float(step) for step in range(1, 6)}
    monkeypatch.setattr(loop, "_optimizer_step", lambda step, _: Figures(step + 1, events, losses[step + 1]))
    monkeypatch.setattr(loop, "_after_step", lambda: events.append(f"after {loop.state.step}"))
    monkeypatch.setattr(loop.checkpoints, "load_best", lambda state: None)
    if broken is not None:
        with pytest.raises(UserError, match="loss became nan at step 2"):
            loop.run()
        assert "after 3" not in events  # nothing is saved of what follows
        return
    loop.run()
    expected = "start 1, after 1, start 2, read 1, after 2, start 3, read 2, read 3, after 3, start 4, after 4, "
    assert ", ".join(events) == expected + "start 5, read 4, read 5, after 5"
    assert [(row["step"], row["loss"]) for row in loop.state.history] == [(n, float(n)) for n in range(1, 6)]
