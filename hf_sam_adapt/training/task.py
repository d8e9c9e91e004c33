"""What a run segments, one class with prompts or several classes without, and all that depends on which it is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from ..config.methods import CLASS_METHODS
from ..config.recipe import Recipe
from ..data import SegmentationData, SegmentationSplit
from ..data.tiles import Tiles, resolve_tiles
from ..errors import UserError
from ..evaluation import EvalResult, evaluate
from ..evaluation.classes import ClassResult, constant_labels, evaluate_classes
from ..inference.embeddings.split import EmbeddedSplit
from ..losses.class_weights import class_weights_from
from ..metrics import constant_mask
from ..names import (
    DEFAULT_LOSS,
    check_ignore_background,
    check_metrics,
    check_prompt_kinds,
    class_names,
    compare_names,
    parse_loss,
)
from ..reporting.class_maps import print_class_table, save_class_pictures, save_class_samples
from ..reporting.per_image import FILE, SHEET, SHOWN, save_per_image
from ..reporting.report import print_table, save_samples
from ..sam.processing import SamAdaptProcessor
from .batches import prompt_shares


Split = SegmentationSplit | EmbeddedSplit
Result = EvalResult | ClassResult


def tiles_of(recipe: Recipe, processor: SamAdaptProcessor) -> Tiles | None:
    """How the recipe's images are cut; None = they are not."""
    return resolve_tiles(recipe.tile, recipe.overlap, processor.image_size, processor.patch_size)[0]


def task_of(recipe: Recipe, data: SegmentationData) -> Task:
    """The task that the masks of a data set pose."""
    return BinaryTask(recipe, data, 1) if data.num_labels is None else ClassTask(recipe, data, data.num_labels)


class Task(ABC):
    """What a data set asks of a model, its losses and its scores.

    Args:
        recipe: of the run.
        data: the images and masks.
        channels: of the logits, one for a binary mask, K for K classes.
    """

    default_loss: ClassVar[str]

    def __init__(self, recipe: Recipe, data: SegmentationData, channels: int) -> None:
        self.recipe, self.data, self.channels = recipe, data, channels

    @property
    def _computing(self) -> dict[str, Any]:
        return {key: getattr(self.recipe, key) for key in ("batch_size", "precision", "num_workers")}

    def check(self) -> None:
        """Raise `UserError` where the recipe's prompts or scores are not for such masks."""
        recipe, num_labels = self.recipe, self.data.num_labels
        check_prompt_kinds(recipe.prompts, num_labels)
        check_metrics(recipe.metrics, recipe.prompts, num_labels)
        check_ignore_background(recipe.ignore_background, num_labels)

    def loss(self) -> str:
        """The recipe's loss, or the default one; `UserError` if it is for the other task."""
        return "+".join(parse_loss(self.recipe.loss or self.default_loss, self.channels))

    def method_fields(self) -> dict[str, Any]:
        """The recipe's `method_args`, with the channels and the classes of the data set where it has some.

        Raises:
            UserError: the method is for another task, or cannot store other channels.
        """
        return _channel_fields(self.recipe) | self.recipe.method_args

    @abstractmethod
    def loss_weights(self) -> torch.Tensor | None:
        """Weights (K,) of the classes in the loss; adds a note to the data for each class that training masks lack.

        Raises:
            UserError: weights for one class, not as many as classes, or an unknown rule.
        """

    @abstractmethod
    def validate(self, model: nn.Module, processor: SamAdaptProcessor) -> tuple[float, str]:
        """The score by which the best checkpoint is chosen, over all validation images, and its name."""

    @abstractmethod
    def measure(self, model: nn.Module, processor: SamAdaptProcessor, split: Split, **zero_shot: Any) -> Result:
        """Score a model on `split`, beside zero-shot SAM (for one class) and the best constant mask."""

    @abstractmethod
    def draw(
        self, folder: Path, model: nn.Module, processor: SamAdaptProcessor, split: Any, result: Any, **zero_shot: Any
    ) -> None:
        """Write `samples.png`, and for classes `confusion.png`."""

    @abstractmethod
    def list_images(
        self, folder: Path, model: nn.Module, processor: SamAdaptProcessor, split: Any, result: Any, **zero_shot: Any
    ) -> None:
        """Write `per_image.csv`, and the ten worst images as `worst.png`."""

    def counted(self, result: Any) -> dict[str, Any]:
        """Parts of `metrics.json`: `objects` of prompted images, `without_foreground` where masks are empty."""
        return {}

    @abstractmethod
    def print_tables(self, metrics: dict[str, Any]) -> None:
        """Print the scores in a run's `metrics.json`."""


class BinaryTask(Task):
    """One class, with prompts or without."""

    default_loss = DEFAULT_LOSS["binary"]

    def check(self) -> None:
        super().check()
        decoder = self.recipe.method_args.get("decoder", "class_wise")
        if self.recipe.method == "cwsam" and decoder == "class_wise" and self.recipe.adapter is None:
            raise UserError(
                "cwsam segments classes, the data set has one",
                key="method",
                fix="set num_labels and how masks name their classes (label_map, palette, mask_values: index), or use "
                "another method",
            )

    def loss_weights(self) -> torch.Tensor | None:
        if self.recipe.class_weights is not None:
            raise UserError("the data set has one class", key="class_weights", fix="leave class_weights out")
        return None

    def validate(self, model: nn.Module, processor: SamAdaptProcessor) -> tuple[float, str]:
        recipe, kinds = self.recipe, self.recipe.prompts
        assert self.data.val is not None
        result = evaluate(
            model,
            processor,
            self.data.val,
            kinds,
            zero_shot=False,
            seed=recipe.seed,
            progress=False,
            tiles=tiles_of(recipe, processor),
            **self._computing,
        )
        # As often as each kind is trained, so much does it count.
        shares = prompt_shares(kinds, recipe.prompt_weights)
        scores: dict[str, Any] = result.test
        mean = sum(share * scores[kind]["adapted"]["iou"] for share, kind in zip(shares, kinds))
        return mean, f"IoU ({' '.join(kinds)})"

    def measure(self, model: nn.Module, processor: SamAdaptProcessor, split: Split, **zero_shot: Any) -> EvalResult:
        recipe = self.recipe
        constant = constant_mask(self.data.train) if "none" in recipe.prompts else None
        keys = ("metrics", "beta2", "ber_threshold", "seed", "surface_tolerance")
        scored: dict[str, Any] = {key: getattr(recipe, key) for key in keys}
        scored["tiles"] = tiles_of(recipe, processor)
        return evaluate(
            model, processor, split, recipe.prompts, constant=constant, **scored, **self._computing, **zero_shot
        )

    def draw(
        self, folder: Path, model: nn.Module, processor: SamAdaptProcessor, split: Any, result: Any, **zero_shot: Any
    ) -> None:
        how: dict[str, Any] = {"precision": self.recipe.precision, "seed": self.recipe.seed}
        how["tiles"] = tiles_of(self.recipe, processor)
        save_samples(folder / "samples.png", model, processor, split, result, **how, **zero_shot)

    def list_images(
        self, folder: Path, model: nn.Module, processor: SamAdaptProcessor, split: Any, result: Any, **zero_shot: Any
    ) -> None:
        save_per_image(folder / FILE, split, result)
        how: dict[str, Any] = {"precision": self.recipe.precision, "seed": self.recipe.seed, "worst": SHOWN}
        how["tiles"] = tiles_of(self.recipe, processor)
        save_samples(folder / SHEET, model, processor, split, result, **how, **zero_shot)

    def counted(self, result: Any) -> dict[str, Any]:
        objects = {"objects": result.objects.facts()} if set(self.recipe.prompts) != {"none"} else {}
        empty = result.empty_facts()
        return objects | ({"without_foreground": empty} if empty else {})

    def print_tables(self, metrics: dict[str, Any]) -> None:
        print_table(metrics)


class ClassTask(Task):
    """Several classes, the background among them, without prompts."""

    default_loss = DEFAULT_LOSS["classes"]

    def method_fields(self) -> dict[str, Any]:
        recipe = self.recipe
        fields = _channel_fields(recipe)
        if recipe.method not in CLASS_METHODS:
            raise UserError(
                f"method {recipe.method} segments one class, the data set has {self.channels}",
                key="num_labels",
                fix=f"use one of {', '.join(CLASS_METHODS)}, or make one class of them with label_map or "
                "mask_values: binary",
            )
        named = recipe.method_args.get("num_labels", self.channels)
        if named != self.channels:
            raise UserError(f"{named}, but the data set has {self.channels} classes", key="method_args.num_labels")
        fields |= {"decoder": "class_wise", "num_labels": self.channels, "id2label": self.data.id2label}
        return fields | recipe.method_args

    def loss_weights(self) -> torch.Tensor | None:
        wanted = self.recipe.class_weights
        weights, absent = class_weights_from(
            self.data.train, self.channels, wanted if isinstance(wanted, str) else "none", self.data.id2label
        )
        if absent:
            self.data.notes.append(f"no training mask holds {', '.join(absent)}: nothing can be learned of it.")
        if isinstance(wanted, list):
            if len(wanted) != self.channels:
                raise UserError(f"{len(wanted)} numbers for {self.channels} classes", key="class_weights")
            if not all(0 <= weight < math.inf for weight in wanted) or not any(wanted):
                shown = " ".join(f"{weight:g}" for weight in wanted)
                raise UserError(f"{shown}: expected finite numbers of at least 0, not all 0", key="class_weights")
            return torch.tensor(wanted, dtype=torch.float32)
        return None if wanted in (None, "none") else weights

    def validate(self, model: nn.Module, processor: SamAdaptProcessor) -> tuple[float, str]:
        assert self.data.val is not None
        result = self._evaluate(model, processor, self.data.val, progress=False)
        return result.test["none"]["adapted"]["miou"] or 0.0, "mean IoU of the classes"

    def measure(self, model: nn.Module, processor: SamAdaptProcessor, split: Split, **zero_shot: Any) -> ClassResult:
        further: dict[str, Any] = {"surface_tolerance": self.recipe.surface_tolerance}
        further["route"] = zero_shot.get("route", "image")
        constant = constant_labels(self.data.train, self.channels)
        return self._evaluate(model, processor, split, constant=constant, **further)

    def draw(
        self, folder: Path, model: nn.Module, processor: SamAdaptProcessor, split: Any, result: Any, **zero_shot: Any
    ) -> None:
        how: dict[str, Any] = {"precision": self.recipe.precision, "tiles": tiles_of(self.recipe, processor)}
        save_class_pictures(folder, model, processor, split, result, self.data, **how)

    def list_images(
        self, folder: Path, model: nn.Module, processor: SamAdaptProcessor, split: Any, result: Any, **zero_shot: Any
    ) -> None:
        names = class_names(self.channels, self.data.id2label)
        save_per_image(folder / FILE, split, result, names)
        colours = None if self.data.palette is None else self.data.palette.colours()
        how: dict[str, Any] = {"precision": self.recipe.precision, "worst": SHOWN}
        how["tiles"] = tiles_of(self.recipe, processor)
        save_class_samples(folder / SHEET, model, processor, split, result, names, colours, **how)

    def print_tables(self, metrics: dict[str, Any]) -> None:
        print_table(metrics)
        print_class_table(metrics["test"]["none"]["adapted"], class_names(self.channels, self.data.id2label))

    def _evaluate(self, model: nn.Module, processor: SamAdaptProcessor, split: Split, **further: Any) -> ClassResult:
        further |= {"ignore_background": self.recipe.ignore_background, "tiles": tiles_of(self.recipe, processor)}
        return evaluate_classes(model, processor, split, self.channels, **self._computing, **further)


def check_adapter_classes(config: Any, data: SegmentationData, adapter: str) -> None:
    """Raise `UserError` unless an adapter to start from has the classes of the data set."""
    found = getattr(config, "num_labels", None)
    if found != data.num_labels:
        raise UserError(
            f"{adapter} has num_labels {found}, the data set {data.num_labels}",
            key="adapter",
            fix="start from a fresh adapter, or make the classes agree with label_map",
        )
    if found is not None:
        data.notes += compare_names(getattr(config, "id2label", None) or {}, data.id2label, data.name)


def _channel_fields(recipe: Recipe) -> dict[str, Any]:
    """The patch embedding of other channels than three is inflated, and trained unless the recipe says otherwise."""
    if recipe.channels in (None, 3) or recipe.method == "full":
        return {}
    if recipe.method not in CLASS_METHODS:
        raise UserError(
            f"{recipe.channels}, but a file of plain PEFT cannot store another patch embedding",
            key="channels",
            fix=f"use one of {', '.join(CLASS_METHODS)} or full",
        )
    return {"in_channels": recipe.channels, "train_patch_embed": True}
