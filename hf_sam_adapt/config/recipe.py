"""The recipe: every key of a run, its default, and how a YAML file and command-line flags become one."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from ..errors import UserError
from ..names import (
    AUGMENTATIONS,
    METRIC_NAMES,
    PROMPT_KINDS,
    check_metrics,
    check_prompt_kinds,
    check_tile,
    parse_loss,
    read_id2label,
)
from .arguments import option, parse_arguments
from .paths import FILE, MODEL, Change, change_paths, stored_in
from .presets import with_preset
from .shared_keys import ComputeKeys, DataKeys, MetricKeys


R = TypeVar("R", bound="Recipe")


@dataclass
class Recipe(ComputeKeys, MetricKeys, DataKeys):
    """Everything that decides a run. A run folder's `recipe.yaml` holds all of it, resolved.

    Raises:
        UserError: a value outside its range, naming key and value.
    """

    model: str | None = option(
        None,
        "The SAM to adapt: tiny, a folder, or a Hub id such as facebook/sam-vit-base; unset = the adapter's, or tiny.",
        path=MODEL,
    )
    method: Literal["sam_adapter", "conv_lora", "cwsam", "decoder", "l2p", "lora", "peft", "full"] = option(
        "sam_adapter", "How SAM is adapted."
    )
    method_args: dict = option({}, "Fields of the method's PEFT config, e.g. --method_args.scale_factor 16.")
    adapter: str | None = option(None, "Adapter folder or Hub id to start from instead of a fresh one.", path=MODEL)
    preset: Literal["cpu", "8gb", "12gb", "24gb", "80gb"] | None = option(
        None, "Model, precision, batch size and checkpointing for a GPU of that memory, where no key says otherwise."
    )

    num_workers: int | None = option(
        None, "Processes per GPU that load images; 0 = the training process itself; unset = by its share of the cores."
    )

    prompts: list[str] = option(["none"], f"Prompt kinds to train and measure: {' '.join(PROMPT_KINDS)}.")
    prompt_weights: dict[str, float] | None = option(
        None, "How often each of the prompts is trained, e.g. --prompt_weights.box 2; unset = 1."
    )
    box_jitter: float = option(0.1, "Deviation of a training box's sides, in their lengths; 0 = tight boxes.")
    points_per_object: int = option(
        1, "Points on each object that a training point prompt has, drawn anew each time; CoSAM's code has 10."
    )
    correction_rounds: int = option(
        0, "Clicks on wrong pixels that follow a box, point or mask in training, each with the mask so far."
    )
    metrics: list[str] = option([], f"Further metrics of the test images without prompts: {' '.join(METRIC_NAMES)}.")
    ignore_background: bool | Literal["official"] = option(
        False,
        "Classes: leave the background out of the scores; official = CWSAM's way, which hides confusions with it.",
    )

    tile_foreground: float = option(
        0.5, "With tile: share of the training tiles that hold foreground for sure, where their image has some."
    )

    epochs: int = option(20, "Passes over the training images; with tile, over as many tiles as cover them.")
    max_steps: int = option(0, "Optimizer steps; above 0 it wins over epochs.")
    gradient_accumulation_steps: int = option(1, "Micro-steps per optimizer step.")
    learning_rate: float | None = option(None, "Highest learning rate; unset = 2e-4, tiny 3e-4.")
    lr_scheduler: Literal["cosine", "linear", "step"] = option(
        "cosine", "How the learning rate falls after the warm-up; step: to a tenth after 10/24 of it, and after 20/24."
    )
    lr_min: float | None = option(
        None, "Learning rate below which the fall does not go; unset = 5e-4 of the highest, with step none."
    )
    warmup: float = option(0.05, "Warm-up: optimizer steps, or below 1 a fraction of all steps.")
    weight_decay: float = option(0.01, "AdamW's weight decay, of all but biases, norms and other vectors.")
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm; 0 = never.")
    loss: str | None = option(
        None,
        "bce, bbce, iou, dice, structure, points, with classes ce, dice, focal, or a sum such as bce+dice; unset = "
        "structure, with classes ce+dice.",
    )
    class_weights: str | list[float] | None = option(
        None, "Weight of each class in the loss: numbers, or inverse_sqrt, inverse of its share; unset = equal."
    )
    eval_every: int | None = option(
        None, "Optimizer steps between validations; unset = each epoch, of few images as many as make 10 steps."
    )
    checkpoint_every: int | None = option(
        None, "Optimizer steps between checkpoints; unset = as eval_every's default."
    )
    early_stopping: int | None = option(
        None, "Validations in a row without a better IoU after which the training ends; unset = never."
    )
    gradient_checkpointing: bool | Literal["selective"] = option(
        False, "Recompute the encoder's blocks in backward to save memory; selective = all but their attention."
    )
    compile: bool = option(
        False, "Compile the encoder with torch.compile: slow to start, for long trainings on a GPU."
    )
    cache_embeddings: bool = option(
        False, "Encode each image once and keep its embedding on disk; for methods that leave the encoder as it is."
    )

    output_dir: str = option("runs/hf-sam-adapt", "The run folder.", path=FILE)
    resume_from_checkpoint: str | None = option(
        None, "`latest`, or a checkpoint folder of this output_dir.", path=FILE
    )
    report_to: list[str] = option([], "Trackers: trackio tensorboard wandb.")
    push_to_hub: bool = option(False, "Publish the finished run on the Hub, in a private repository.")
    hub_model_id: str | None = option(None, "Repository, owner/name; unset = output_dir's name, in your account.")

    def __post_init__(self) -> None:
        self.id2label = read_id2label(self.id2label)
        if self.loss is not None:
            self.loss = "+".join(parse_loss(self.loss))
        if self.model is None and self.adapter is None:
            self.model = "tiny"
        if self.learning_rate is None and self.model is not None:
            self.learning_rate = 3e-4 if self.model == "tiny" else 2e-4
        for name in ("max_steps", "num_workers", "seed", "weight_decay", "max_grad_norm", "warmup", "box_jitter"):
            _at_least(self, name, 0)
        for name in ("epochs", "batch_size", "gradient_accumulation_steps", "eval_every", "checkpoint_every"):
            _at_least(self, name, 1)
        _at_least(self, "early_stopping", 1)
        if self.seed >= 2**32:
            raise UserError(f"{self.seed} is above 2**32 - 1, the largest that numpy takes", key="seed")
        _at_least(self, "points_per_object", 1)
        if self.learning_rate is not None and not 0 <= self.learning_rate < math.inf:
            raise UserError(f"{self.learning_rate} is not a finite number of at least 0", key="learning_rate")
        if self.lr_min is not None and not 0 <= self.lr_min <= (self.learning_rate or math.inf):
            raise UserError(f"{self.lr_min} is not between 0 and the learning_rate {self.learning_rate}", key="lr_min")
        _at_least(self, "channels", 1)
        _at_least(self, "surface_tolerance", 0)
        _at_least(self, "correction_rounds", 0)
        check_prompt_kinds(self.prompts)
        check_metrics(self.metrics, self.prompts, self.num_labels, beta2=self.beta2, ber_threshold=self.ber_threshold)
        _known_names(self, "augment", (*AUGMENTATIONS, "none"))
        self._check_tiles()
        _known_names(self, "report_to", ("trackio", "tensorboard", "wandb", "none"))
        self._check_prompts()
        self.augment = _without_none(self.augment, "augment")
        if self.cache_embeddings and self.augment:
            raise UserError(
                f"augment {' '.join(self.augment)} would change the images in each epoch",
                key="cache_embeddings",
                fix="set augment: none, or leave cache_embeddings out",
            )
        self.report_to = _without_none(self.report_to, "report_to")

    def _check_tiles(self) -> None:
        check_tile(self.tile, self.overlap)
        if not 0 <= self.tile_foreground <= 1:
            raise UserError(f"{self.tile_foreground} is not between 0 and 1", key="tile_foreground")
        if self.tile is not None and self.cache_embeddings:
            raise UserError(
                "tiles are drawn anew in each epoch, and an embedding is of a whole image",
                key="cache_embeddings",
                fix="leave it or tile out",
            )

    def _check_prompts(self) -> None:
        for kind, weight in (self.prompt_weights or {}).items():
            if kind not in self.prompts:
                raise UserError(f"'{kind}' is not among the prompts {' '.join(self.prompts)}", key="prompt_weights")
            if not (weight > 0 and math.isfinite(weight)):
                raise UserError(
                    f"{weight} for {kind} is not above 0", key="prompt_weights", fix=f"leave {kind} out of prompts"
                )
        if self.points_per_object > 1 and "point" not in self.prompts:
            raise UserError("of point prompts", key="points_per_object", fix="add point to prompts")
        if self.correction_rounds and set(self.prompts) == {"none"}:
            raise UserError(
                "they follow a box, point or mask", key="correction_rounds", fix="add one of them to prompts"
            )

    @classmethod
    def complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What `parse_recipe` and YAML files give, with the keys of the preset that they name."""
        return with_preset(values)

    @property
    def repository(self) -> str:
        """Where `push_to_hub` publishes."""
        return self.hub_model_id or Path(self.output_dir).resolve().name

    def with_paths(self: R, change: Change) -> R:
        """A copy with another form of its paths."""
        return dataclasses.replace(self, **change_paths(type(self), vars(self), change))

    def to_yaml(self, folder: str | Path | None = None) -> str:
        """YAML with every key, which `--config` reads back to an equal recipe.

        Args:
            folder: where the file will lie, at which its relative paths start; None: paths are written as they are.
        """
        recipe = self if folder is None else self.with_paths(stored_in(folder))
        return yaml.safe_dump(dataclasses.asdict(recipe), sort_keys=False, allow_unicode=True)


class ResolvedRecipe(Recipe):
    """A recipe as `training.resolve` leaves it: what its model and its data set decide has a value."""

    model: str
    learning_rate: float
    image_size: int
    resize: Literal["pad", "squash"]
    loss: str
    normalization: Literal["imagenet", "minmax", "percentile", "zscore", "db"]


def parse_recipe(argv: list[str] | None = None, prog: str | None = None) -> Recipe:
    """Recipe from `--config file.yaml` and flags; flags win.

    Args:
        argv: arguments without the program's name, `sys.argv[1:]` when None.
        prog: program name that `--help` shows.

    Raises:
        UserError: unknown key (with the nearest name) or a value of another type or outside its range.
    """
    return parse_arguments(Recipe, argv, prog=prog, description="Adapt SAM to a folder of images and masks.")


def _at_least(recipe: Recipe, name: str, smallest: int) -> None:
    value = getattr(recipe, name)
    if value is not None and not value >= smallest:
        raise UserError(f"{value} is below {smallest}", key=name)
    if value == math.inf:
        raise UserError("inf is not finite", key=name)


def _known_names(recipe: Recipe, name: str, known: tuple[str, ...]) -> None:
    for value in getattr(recipe, name):
        if value not in known:
            raise UserError(f"unknown '{value}'", key=name, fix=f"choose from {', '.join(known)}")


def _without_none(names: list[str], key: str) -> list[str]:
    if "none" in names and len(names) > 1:
        raise UserError(f"'none' excludes the other names in {' '.join(names)}", key=key)
    return [name for name in names if name != "none"]
