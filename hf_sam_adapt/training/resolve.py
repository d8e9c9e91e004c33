"""From a recipe and its data set to the model to train, and to a recipe of which every key is settled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftConfig
from torch import nn

from ..config.recipe import Recipe, ResolvedRecipe
from ..data import SegmentationData
from ..data.normalization import fit_normalization
from ..data.tiles import resolve_tiles
from ..errors import UserError
from ..inference.loading import base_revision, build_model, load_adapted, load_base, method_of
from ..sam.families import encoder_shape, vision_encoder
from ..sam.gradient_checkpointing import enable_checkpointing
from ..sam.input_channels import inflate_channels
from ..sam.processing import SamAdaptProcessor
from .loop import Schedule
from .task import check_adapter_classes, task_of


@dataclass(frozen=True)
class Built:
    """A model to train.

    Attributes:
        model: with its method's layers, and what is trained marked so.
        processor: of the base model or of the adapter to start from.
        method: the recipe's name of it.
        base_name: `tiny`, folder or Hub id of the base model.
    """

    model: Any  # SamModel or PeftModel, whose attributes torch does not type
    processor: SamAdaptProcessor
    method: str
    base_name: str


def load_model(
    recipe: Recipe, data: SegmentationData, like: SamAdaptProcessor | None = None
) -> tuple[ResolvedRecipe, nn.Module, SamAdaptProcessor]:
    """The resolved recipe, the model to train, and the processor of its images.

    Args:
        like: images are prepared as by this processor, where the recipe does not say; None: as by the model's own.

    Raises:
        UserError: keys that do not fit the data set or the model, or a model that cannot be loaded.
    """
    task_of(recipe, data).check()
    built = build(recipe, data)
    if like is not None:
        built = replace(built, processor=like)
    resolved = resolve(recipe, data, built)
    processor = SamAdaptProcessor.from_dict(
        built.processor.to_dict(),
        image_size=resolved.image_size,
        resize=resolved.resize,
        channels=resolved.channels,
        normalization=input_normalization(resolved, data, built.processor),
        slices=data.slices,
        tiling=None if resolved.tile is None else {"tile": resolved.tile, "overlap": resolved.overlap},
    )
    if resolved.gradient_checkpointing:
        enable_checkpointing(built.model, resolved.gradient_checkpointing)
    if resolved.compile:
        # Conv-LoRA keeps its balance loss in a block's forward, and not once more when backward computes it again.
        torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
        vision_encoder(built.model).compile()
    return resolved, built.model, processor


def build(recipe: Recipe, data: SegmentationData) -> Built:
    """The recipe's method around its base model, or the adapter that it starts from."""
    if recipe.adapter is None:
        name = str(recipe.model)
        base, processor = load_base(name, recipe.attention)
        if recipe.method == "full" and recipe.channels is not None:
            inflate_channels(base, recipe.channels)
        fields = task_of(recipe, data).method_fields()
        steps = Schedule.of(recipe, len(data.train), 1).total  # the loop knows the number of processes
        model: Any = build_model(recipe.method, fields, base, image_size=recipe.image_size, steps=steps)
        if recipe.method != "full":
            model.peft_config["default"].revision = base_revision(name)
        return Built(model, processor, recipe.method, name)
    if recipe.method_args:
        raise UserError("an adapter to start from has its own config", key="method_args", fix="leave method_args out")
    loaded = load_adapted(recipe.adapter, model=recipe.model, trainable=True, attention=recipe.attention)
    method = method_of(loaded.config)
    if recipe.method != Recipe.method and not is_of_method(loaded.config, recipe.method):
        raise UserError(f"{recipe.method}, but {recipe.adapter} is {method}", key="method", fix="leave method out")
    check_adapter_classes(loaded.config, data, recipe.adapter)
    model = loaded.model
    if method == "full":
        model = build_model("full", {}, model, image_size=recipe.image_size)
    return Built(model, loaded.processor, method, loaded.base_name or recipe.adapter)


def is_of_method(config: PeftConfig | None, method: str) -> bool:
    """Whether a recipe with this method trains such an adapter: `peft` trains PEFT's LoRA, too, by its other names."""
    found = method_of(config)
    return method == found or (method, found) == ("peft", "lora")


def resolve(recipe: Recipe, data: SegmentationData, built: Built) -> ResolvedRecipe:
    """The recipe with what its data set and its model decide where it says nothing.

    Raises:
        UserError: a key that contradicts the model, or a loss that is not for the data set's masks.
    """
    image_size = encoder_shape(built.model).image_size
    if recipe.image_size not in (None, image_size):
        raise UserError(
            f"the adapter {recipe.adapter} runs at {image_size}, not at {recipe.image_size}", key="image_size"
        )
    tiles, notes = resolve_tiles(recipe.tile, recipe.overlap, image_size, encoder_shape(built.model).patch_size)
    data.notes += notes
    settled = {
        "model": built.base_name,
        "method": built.method,
        "image_size": image_size,
        "resize": recipe.resize or built.processor.resize,
        "tile": recipe.tile if tiles is None or recipe.tile == "auto" else tiles.side,
        "overlap": None if tiles is None else tiles.overlap,
        "mask_values": data.mask_values,
        "loss": task_of(recipe, data).loss(),
        "normalization": normalization_kind(recipe, built.processor),
        "palette": None if data.palette is None else data.palette.plain(),
    }
    return ResolvedRecipe(**vars(recipe) | settled)


def normalization_kind(recipe: Recipe, processor: SamAdaptProcessor) -> str:
    """The recipe's normalisation, where it names none that of the model or adapter, or else the usual one.

    Raises:
        UserError: the model or adapter takes another number of channels.
    """
    trained_with = processor.normalization
    if (recipe.adapter is not None or trained_with is not None) and recipe.channels != processor.channels:
        takes = "RGB photographs" if processor.channels is None else f"images of {processor.channels} channels"
        raise UserError(
            f"{recipe.channels}, but {recipe.adapter or recipe.model} takes {takes}",
            key="channels",
            fix=f"set channels to {processor.channels or 'none'}",
        )
    usual = "imagenet" if recipe.channels is None else "percentile"
    return recipe.normalization or (usual if trained_with is None else trained_with["kind"])


def input_normalization(recipe: Recipe, data: SegmentationData, processor: SamAdaptProcessor) -> dict[str, Any] | None:
    """The statistics that images are normalised by, of the training images; None = those of RGB photographs.

    What the model or adapter was trained with is kept unless the recipe names another kind.

    Raises:
        UserError: see `normalization_kind`.
    """
    kind, trained_with = normalization_kind(recipe, processor), processor.normalization
    if trained_with is not None and kind == trained_with["kind"]:
        return trained_with
    if kind == "imagenet" and recipe.channels is None:
        return None
    return fit_normalization(data.train, kind, recipe.seed)
