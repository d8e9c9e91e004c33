"""Elastic weight consolidation: what mattered to earlier tasks is held where it was (online EWC)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from ...errors import UserError
from ...files import follow_umask, whole_file
from ...inference.forward import PromptedSam, collate
from ...training.batches import TrainingSamples, to_device
from ...training.checkpoints import trained_parameters
from ...training.loop import batch_loss
from ...training.run import embedding_cache
from .naive import Naive


if TYPE_CHECKING:
    from ...data import SegmentationSplit
    from ...inference.embeddings.split import EmbeddedSplit
    from ...training.loop import TrainingLoop


@dataclass(frozen=True)
class EwcArgs:
    """Attributes:
    weight: of the penalty, at least 0. Squared gradients of these losses are small: at the official 10, whose Fisher
        information is of batches, and at 100 the penalty does next to nothing (HQ heads of `tiny` on real domains).
    decay: of the Fisher information of earlier tasks when that of another is added, 0 to 1.
    """

    weight: float = 1e5
    decay: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0 or not 0 <= self.decay <= 1:
            raise UserError(
                f"weight {self.weight} must be at least 0, decay {self.decay} between 0 and 1", key="protocol_args"
            )


class Ewc(Naive):
    """Naive, with the penalty weight * sum of F (theta - theta of the task before)^2.

    F is the diagonal of the empirical Fisher information, summed over the tasks until then; `ewc/<task>.safetensors`
    holds it.
    """

    args_cls = EwcArgs

    def prepare(self, task: int, loop: TrainingLoop) -> None:
        if task == 0:
            return
        # The loop holds what the task before has learned.
        anchor = {name: value.detach().clone() for name, value in trained_parameters(loop.model).items()}
        fisher = self._accumulated(task - 1, loop)

        def penalty(batch: dict[str, Any], logits: list[Tensor]) -> Tensor:
            trained = trained_parameters(loop.model).items()
            moved = ((fisher[name] * (value - anchor[name]) ** 2).sum() for name, value in trained)
            return self.args.weight * torch.stack(list(moved)).sum()

        loop.regularizer = penalty

    def _accumulated(self, task: int, loop: TrainingLoop) -> dict[str, Tensor]:
        """Fisher information of all tasks up to `task`, which the loop's model has just learned."""
        path, device = self._path(task), loop.accelerator.device
        if not path.exists():
            split: SegmentationSplit | EmbeddedSplit = self.run.data[task].train
            if loop.recipe.cache_embeddings:
                cache = embedding_cache(loop.recipe, loop.whole.current(), loop.processor)
                (split,) = cache.embed(self.run.data[task].train)
            fisher = fisher_information(loop, split)
            if task:
                earlier = _load(self._path(task - 1), device)
                fisher = {name: self.args.decay * earlier[name] + value for name, value in fisher.items()}
            loop.accelerator.wait_for_everyone()
            if loop.accelerator.is_main_process:
                with whole_file(path) as part:
                    save_file(fisher, part)
                follow_umask(path.parent)
            loop.accelerator.wait_for_everyone()
        return _load(path, device)

    def _path(self, task: int) -> Path:
        return self.run.folder.path / "ewc" / f"{self.tasks[task]}.safetensors"


def fisher_information(loop: TrainingLoop, split: SegmentationSplit | EmbeddedSplit) -> dict[str, Tensor]:
    """Mean over the images of `split` of the squared gradient of an image's loss, by parameter; no augmentation."""
    recipe, accelerator = loop.recipe, loop.accelerator
    samples = TrainingSamples(
        split,
        loop.processor,
        recipe.prompts,
        [],
        recipe.seed,
        weights=recipe.prompt_weights,
        jitter=recipe.box_jitter,
        points=recipe.points_per_object,
    )
    parameters = trained_parameters(loop.model)
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    loop.model.eval()
    model = PromptedSam(loop.model)
    rows = tqdm(range(len(split)), desc="Fisher", unit="image", disable=not accelerator.is_main_process, leave=False)
    for index in rows:
        batch = to_device(collate([samples[0, index]]), loop.processor, accelerator.device)
        with accelerator.autocast():
            inputs = batch.get("pixel_values"), batch["prompts"]
            logits, _, estimates = model(*inputs, image_embeddings=batch.get("image_embeddings"))
        loss, _ = batch_loss([maps.float() for maps in logits], batch, str(recipe.loss), estimates=estimates)
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for name, gradient in zip(parameters, gradients):
            if gradient is not None:
                total[name] += gradient**2 / len(split)
    return total


def _load(path: Path, device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in load_file(path).items()}
