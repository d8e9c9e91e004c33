"""The optimizer steps of a training, with validations and checkpoints between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn
from tqdm.auto import tqdm

from ..config.recipe import Recipe, ResolvedRecipe
from ..data import SegmentationData
from ..data.images import IGNORE
from ..data.random_tiles import RandomTiles
from ..errors import UserError
from ..inference.forward import PromptedSam
from ..inference.precision import AUTOCAST_DTYPES
from ..losses.segmentation import loss_of_labels
from ..prompts import at_centres
from ..sam.families import vision_encoder
from ..sam.processing import SamAdaptProcessor
from ..tuners.stock import keep_every_rank, rank_allocator
from .batches import BatchStream, TrainingSamples, seed_micro_step, to_device, training_loader
from .checkpoints import Checkpoints, TrainingState
from .cost import CostMeter
from .experts import ExpertMeter
from .frozen_weights import cast_frozen_matrices
from .history import record_step
from .optim import build_optimizer, learning_rate_at, warmup_steps
from .sharding import WholeModel
from .task import Task, task_of, tiles_of


# Weight of a new step in the running train IoU.
_RUNNING = 0.1

# Validations of a small data set are not closer than so many optimizer steps, unless the recipe says so.
_FEWEST_STEPS = 10

# A further loss term of a micro-batch: of the batch, as `batch_loss` takes it, and its logits; a scalar.
Regularizer = Callable[[dict[str, Any], list[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class Schedule:
    """Optimizer steps of a run, of an epoch, and between validations and checkpoints."""

    total: int
    eval_every: int
    checkpoint_every: int
    images_per_step: int

    @classmethod
    def of(cls, recipe: Recipe, num_images: int, world: int) -> Schedule:
        images_per_step = recipe.batch_size * recipe.gradient_accumulation_steps * world
        epoch = math.ceil(num_images / images_per_step)
        total = recipe.max_steps or recipe.epochs * epoch
        usual = epoch * math.ceil(_FEWEST_STEPS / epoch)
        return cls(total, recipe.eval_every or usual, recipe.checkpoint_every or usual, images_per_step)


class TrainingLoop:
    """Trains `model` in place.

    Args:
        accelerator: made by the caller with the recipe's precision and accumulation.
        model: `SamModel` or `PeftModel`, with `requires_grad` as it shall be trained.
        checkpoints_folder: where checkpoints go.
        class_weights: (K,) weights of the classes in the loss, None = equal.

    Attributes:
        regularizer: added to the loss of every micro-batch, None = nothing.
        whole: `model` with all its weights, also where `model` holds shards.
    """

    regularizer: Regularizer | None = None
    _tiles: RandomTiles | None = None
    _running_iou: float | None = None

    def __init__(
        self,
        recipe: ResolvedRecipe,
        accelerator: Accelerator,
        model: nn.Module,
        processor: SamAdaptProcessor,
        data: SegmentationData,
        checkpoints_folder: Path,
        class_weights: torch.Tensor | None = None,
    ) -> None:
        self.recipe, self.accelerator, self.processor, self.data = recipe, accelerator, processor, data
        self.model = model
        self.class_weights = None if class_weights is None else class_weights.to(accelerator.device)
        self.schedule = Schedule.of(recipe, len(self.images), accelerator.num_processes)
        self.allocate_ranks = rank_allocator(model, self.schedule.total)
        self.warmup = warmup_steps(recipe.warmup, self.schedule.total)
        self.cost = CostMeter(accelerator.device, self.schedule.images_per_step)
        # Sharded parameters have to be of one dtype.
        sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if recipe.precision in AUTOCAST_DTYPES and not sharded:
            cast_frozen_matrices(vision_encoder(model), AUTOCAST_DTYPES[recipe.precision])
        self.whole = WholeModel(model, accelerator)
        optimizer = build_optimizer(model.parameters(), recipe, accelerator.device)
        self.wrapped, self.optimizer = accelerator.prepare(PromptedSam(model), optimizer)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.checkpoints = Checkpoints(checkpoints_folder, accelerator, model)
        self.state = TrainingState(self.schedule.images_per_step)

    @property
    def images(self) -> Any:
        """What is trained on: the training images, their embeddings, or tiles of them."""
        tiles = tiles_of(self.recipe, self.processor)
        if tiles is None:
            return self.data.train
        if self._tiles is None:
            self._tiles = RandomTiles(self.data.train, tiles, self.recipe.tile_foreground, self.recipe.seed)
        return self._tiles

    @property
    def task(self) -> Task:
        """What `data` asks of the model; its images may become embeddings."""
        return task_of(self.recipe, self.data)

    def resume(self, wanted: str) -> None:
        """Continue from the checkpoint `wanted` ("latest" or a folder); from the start where there is none yet."""
        path = self.checkpoints.find(wanted)
        if path is None:
            self.accelerator.print("No checkpoint yet: the training starts from its beginning.")
            return
        self.state = self.checkpoints.load(path)
        if self.state.images_per_step != self.schedule.images_per_step:
            raise UserError(
                f"{path} took {self.state.images_per_step} images per optimizer step, this run takes "
                f"{self.schedule.images_per_step}",
                key="resume_from_checkpoint",
                fix="keep processes * batch_size * accumulation",
            )
        if self.state.step > self.schedule.total:
            raise UserError(
                f"{path} stands at step {self.state.step}, and this run ends at step {self.schedule.total}",
                key="resume_from_checkpoint",
                fix="raise max_steps or epochs, or start in another output_dir",
            )
        self.accelerator.print(f"Resumed at step {self.state.step} of {self.schedule.total}.")
        if self.allocate_ranks is not None:
            self.accelerator.print("note: the tuner's scores of what is important are not kept; they start anew.")

    def run(self) -> None:
        """Train to the end and leave the best validated weights in the model."""
        with self.cost as cost, self._progress() as bar:
            batches, experts = iter(self._loader()), ExpertMeter(self.state.experts, self.schedule.total)
            unread: list[tuple[int, float, torch.Tensor]] = []
            for step in range(self.state.step, self.schedule.total):
                if self._is_stopped():
                    break
                rate = self._set_learning_rate(step)
                unread.append((step + 1, rate, self._optimizer_step(step, batches)))
                # A step late: while the host waits for a loss, a GPU has the next step to do.
                ready = len(unread) if self._is_due(step + 1) else len(unread) - 1
                rows = [(number, rate, *figures.tolist()) for number, rate, figures in unread[:ready]]
                del unread[:ready]
                cost.step()
                self.state.step = step + 1
                experts.record(step + 1, self.model)
                self._record_cost(cost)
                for row in rows:
                    self._report(bar, *row)
                if self._after_step():
                    cost.restart()
        self.checkpoints.load_best(self.state)
        if self.state.best_step not in (None, self.state.step):
            keep_every_rank(self.model)

    def check_objects(self) -> None:
        """Raise `UserError` where the training images hold nothing to prompt; a note where "none" trains on them."""
        said = self._samples().lack_objects()
        if said is not None and "none" not in self.recipe.prompts:
            raise UserError(said, key="prompts", fix="set a smaller tile, which shows objects larger, or prompts none")
        if said is not None:
            self.data.notes.append(f"{said}: those images train without a prompt.")

    def _samples(self) -> TrainingSamples:
        recipe = self.recipe
        return TrainingSamples(
            self.images,
            self.processor,
            recipe.prompts,
            recipe.augment,
            recipe.seed,
            weights=recipe.prompt_weights,
            jitter=recipe.box_jitter,
            points=recipe.points_per_object,
            rounds=recipe.correction_rounds,
        )

    def _loader(self) -> torch.utils.data.DataLoader:
        recipe, accelerator = self.recipe, self.accelerator
        stream = BatchStream(
            num_images=len(self.images),
            seed=recipe.seed,
            batch_size=recipe.batch_size,
            accumulation=recipe.gradient_accumulation_steps,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
            first_step=self.state.step,
            last_step=self.schedule.total,
        )
        return training_loader(self._samples(), stream, recipe.num_workers, accelerator.device.type == "cuda")

    def _optimizer_step(self, step: int, batches: Iterator[dict[str, Any]]) -> torch.Tensor:
        """One optimizer step; (2,) on the device, the mean loss and IoU over its images in all processes."""
        self.wrapped.train()
        figures = []
        for micro_step in range(self.recipe.gradient_accumulation_steps):
            batch = to_device(next(batches), self.processor, self.accelerator.device)
            seed_micro_step(self.recipe.seed, step, micro_step, self.accelerator.process_index)
            with self.accelerator.accumulate(self.wrapped):
                inputs = batch.get("pixel_values"), batch["prompts"], batch.get("image_embeddings")
                logits, own_loss, estimates = self.wrapped(*inputs)
                loss, iou = batch_loss(logits, batch, self.recipe.loss, self.class_weights, estimates)
                total = loss if own_loss is None else loss + own_loss
                if self.regularizer is not None:
                    total = total + self.regularizer(batch, logits)
                self.accelerator.backward(total)  # divides by the number of micro-steps
                if self.accelerator.sync_gradients and self.recipe.max_grad_norm:
                    self.accelerator.clip_grad_norm_(self.trained, self.recipe.max_grad_norm)
                self.optimizer.step()
                if self.accelerator.sync_gradients and self.allocate_ranks is not None:
                    self.allocate_ranks(step + 1)
                self.optimizer.zero_grad()
            figures.append(torch.stack([loss.detach(), iou]))
        return self.accelerator.reduce(torch.stack(figures).mean(dim=0), "mean")

    def _report(self, bar: tqdm, step: int, rate: float, loss: float, iou: float) -> None:
        """Record and show what a step has given.

        Raises:
            UserError: its loss is not finite.
        """
        if not math.isfinite(loss):
            raise UserError(
                f"the loss became {loss} at step {step}",
                fix=f"lower learning_rate (now {self.recipe.learning_rate:g}), lengthen "
                f"warmup{(', or use precision bf16' if self.recipe.precision == 'fp16' else '')}",
            )
        record_step(self.state.history, step, self.schedule.total, loss, iou)
        before = iou if self._running_iou is None else self._running_iou
        self._running_iou = (1 - _RUNNING) * before + _RUNNING * iou
        shown = {"loss": f"{loss:.4f}", "iou": f"{self._running_iou:.3f}"}
        bar.set_postfix(shown | {"images/s": f"{self.state.images_per_second:.3g}"}, refresh=False)
        bar.update()
        self.accelerator.log({"loss": loss, "train_iou": iou, "learning_rate": rate}, step=step)

    def _set_learning_rate(self, step: int) -> float:
        rate = learning_rate_at(
            step,
            highest=self.recipe.learning_rate,
            total_steps=self.schedule.total,
            warmup=self.warmup,
            scheduler=self.recipe.lr_scheduler,
            lowest=self.recipe.lr_min,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _is_due(self, step: int) -> bool:
        """Whether a validation or a checkpoint may follow a step."""
        schedule = self.schedule
        return step == schedule.total or step % schedule.eval_every == 0 or step % schedule.checkpoint_every == 0

    def _after_step(self) -> bool:
        """Validate and save where it is time; whether anything was done."""
        step, last = self.state.step, self.state.step == self.schedule.total
        validated = (
            self.data.val is not None and self.data.val_chooses and (last or step % self.schedule.eval_every == 0)
        )
        if validated:
            self._validate()
        stopped = validated and self._is_stopped()
        saved = last or stopped or step % self.schedule.checkpoint_every == 0 or self.state.best_step == step
        if saved:
            self.checkpoints.save(self.state)
        if stopped:
            patience = f"{self.recipe.early_stopping} validations without a better one"
            self.accelerator.print(f"early_stopping: ended at step {step} of {self.schedule.total}, after {patience}.")
        return validated or saved

    def _is_stopped(self) -> bool:
        """Whether as many validations as `early_stopping` says have followed the best one."""
        ious = [row["val_iou"] for row in self.state.validations]
        wanted = self.recipe.early_stopping
        return wanted is not None and bool(ious) and len(ious) - 1 - ious.index(max(ious)) >= wanted

    def _validate(self) -> None:
        """Score the validation images, and remember the step if it is the best."""
        self._remember_best(*self.task.validate(self.whole.current(), self.processor))

    def _remember_best(self, iou: float, name: str) -> None:
        # Of equals the later: `train_iou_head` alone leaves the masks as they are.
        if self.state.best_iou is None or iou >= self.state.best_iou:
            self.state.best_step, self.state.best_iou = self.state.step, iou
        self.state.validations.append({"step": self.state.step, "val_iou": iou})
        self.accelerator.log({"val_iou": iou}, step=self.state.step)
        if self.accelerator.is_main_process:
            best = f"best {self.state.best_iou:.4f} at step {self.state.best_step}"
            tqdm.write(f"step {self.state.step}: validation {name} {iou:.4f}, {best}")

    def _record_cost(self, cost: CostMeter) -> None:
        self.state.images_per_second = cost.images_per_second
        self.state.peak_memory_bytes = max(self.state.peak_memory_bytes, cost.peak_memory_bytes)

    def _progress(self) -> tqdm:
        return tqdm(
            total=self.schedule.total,
            initial=self.state.step,
            desc="train",
            unit="step",
            disable=not self.accelerator.is_main_process,
        )


def batch_loss(
    logits: list[torch.Tensor],
    batch: dict[str, Any],
    loss: str,
    class_weights: torch.Tensor | None = None,
    estimates: list[torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of a micro-batch, a mean over its images, each a mean over its objects; and its IoU without gradient.

    Args:
        logits: per image (n, h, w); n = 1 for prompt kind "none", whose target is the whole mask. With correction
            rounds those of each round end to end, (rounds n, h, w). Of a class-wise decoder (K, h, w),
            without prompts.
        batch: `labels` uint8 (B, S, S), `prompts` with `targets` uint8 (n, S, S), `weight` float32 (B,).
        class_weights: (K,), for a class-wise decoder.
        estimates: per image (n,) of the IoU of each of its masks, if they are trained: their squared error is added.
    """
    if batch["prompts"][0].kind == "none" and len(logits[0]) > 1:
        maps, of_images = torch.stack(logits), batch["weight"] / len(logits)  # (B, K, h, w), (B,)
        value = loss_of_labels(maps, batch["labels"], loss, of_images, class_weights)
        with torch.no_grad():
            return value, _mean_class_iou(maps, batch["labels"])
    true, weights = [], []
    for image_logits, labels, prompt, weight in zip(
        logits, batch["labels"], batch["prompts"], batch["weight"], strict=True
    ):
        own = labels[None] if prompt.kind == "none" else prompt.targets  # (n, S, S)
        true.append(own.repeat(len(image_logits) // max(1, len(own)), 1, 1))
        weights.append(weight.expand(len(image_logits)) / len(image_logits))
    objects, targets, shares = torch.cat(logits)[:, None], torch.cat(true), torch.cat(weights)
    value = loss_of_labels(objects, targets, loss, shares / len(logits))  # of (R, 1, h, w), (R, S, S) and (R,)
    with torch.no_grad():
        ious = _ious(objects[:, 0], targets)
        mean_iou = (ious * shares).sum() / shares.sum().clamp(min=1e-6)
    if estimates is not None:
        value = value + ((torch.cat(estimates).float() - ious) ** 2 * shares).sum() / len(logits)
    return value, mean_iou


def _mean_class_iou(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean IoU of the classes that the batch holds, at the resolution of the logits: (B, K, h, w), (B, S, S)."""
    labels = at_centres(labels, *logits.shape[-2:])  # (B, h, w)
    every = torch.arange(logits.shape[1], device=logits.device)[:, None, None, None]
    predicted, true = (logits.argmax(1) == every) & (labels != IGNORE), labels == every  # (K, B, h, w)
    union, present = (predicted | true).sum((1, 2, 3)), true.any(3).any(2).any(1)
    iou = (predicted & true).sum((1, 2, 3)) / union.clamp(min=1)
    return (iou * present).sum() / present.sum().clamp(min=1)


def _ious(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """IoU of each mask at the resolution of the logits: (R, h, w), (R, S, S) -> (R,)."""
    targets = at_centres(targets, *logits.shape[-2:])  # (R, h, w)
    predicted, true = (logits > 0) & (targets != IGNORE), targets == 1
    union = (predicted | true).sum(dim=(1, 2))
    return torch.where(union > 0, (predicted & true).sum(dim=(1, 2)) / union.clamp(min=1), 1.0)
