"""What a recipe leaves to the data set: the method's classes and channels, the loss, the weights of the classes."""

from __future__ import annotations

from typing import Any

import torch

from ..config.recipe import Recipe
from ..data import SegmentationData
from ..errors import UserError
from ..inference.loading import METHODS
from ..losses.class_weights import class_weights_from
from ..names import DEFAULT_LOSS, parse_loss
from ..tuners.common.config import SamConfigMixin


CLASS_METHODS = tuple(
    name
    for name, cls in METHODS.items()
    if cls is not None and issubclass(cls, SamConfigMixin) and getattr(cls, "default_decoder", None) != "frozen"
)


def method_fields(recipe: Recipe, data: SegmentationData) -> dict[str, Any]:
    """The recipe's `method_args`, with the channels and the classes of the data set where it has some.

    Raises:
        UserError: the method or the prompts are for one class only, or the method cannot store other channels.
    """
    fields = _channel_fields(recipe)
    if data.num_labels is None:
        return fields | recipe.method_args
    if recipe.method not in CLASS_METHODS:
        raise UserError(
            f"method {recipe.method} segments one class, the data set has {data.num_labels}",
            key="num_labels",
            fix=f"use one of {', '.join(CLASS_METHODS)}, or make one class of them with label_map or mask_values: "
            "binary",
        )
    if recipe.prompts != ["none"]:
        raise UserError(
            f"{' '.join(recipe.prompts)}, but classes are segmented without prompts",
            key="prompts",
            fix="leave it unset",
        )
    named = recipe.method_args.get("num_labels", data.num_labels)
    if named != data.num_labels:
        raise UserError(f"{named}, but the data set has {data.num_labels} classes", key="method_args.num_labels")
    fields |= {"decoder": "class_wise", "num_labels": data.num_labels, "id2label": data.id2label}
    return fields | recipe.method_args


def _channel_fields(recipe: Recipe) -> dict[str, Any]:
    """The patch embedding of other channels than three is inflated, and trained unless the recipe says otherwise."""
    if recipe.channels in (None, 3) or recipe.method == "full":
        return {}
    if recipe.method not in CLASS_METHODS:
        raise UserError(
            f"{recipe.channels}, but a plain LoRA file cannot store another patch embedding",
            key="channels",
            fix=f"use one of {', '.join(CLASS_METHODS)} or full",
        )
    return {"in_channels": recipe.channels, "train_patch_embed": True}


def check_adapter_classes(found: int | None, data: SegmentationData, adapter: str) -> None:
    """Raise `UserError` unless an adapter to start from has the classes of the data set."""
    if found != data.num_labels:
        raise UserError(
            f"{adapter} has num_labels {found}, the data set {data.num_labels}",
            key="adapter",
            fix="start from a fresh adapter, or make the classes agree with label_map",
        )


def settled_loss(recipe: Recipe, data: SegmentationData) -> str:
    """The recipe's loss, or the default one for one class or several; `UserError` if it is for the other."""
    loss = recipe.loss or DEFAULT_LOSS["binary" if data.num_labels is None else "classes"]
    return "+".join(parse_loss(loss, data.num_labels or 1))


def loss_weights(recipe: Recipe, data: SegmentationData) -> torch.Tensor | None:
    """Weights (K,) of the classes in the loss; adds a note to `data` for each class that the training masks lack.

    Raises:
        UserError: weights for one class, not as many as classes, or an unknown rule.
    """
    wanted = recipe.class_weights
    if data.num_labels is None:
        if wanted is not None:
            raise UserError("the data set has one class", key="class_weights", fix="leave class_weights out")
        return None
    weights, absent = class_weights_from(
        data.train, data.num_labels, wanted if isinstance(wanted, str) else "none", data.id2label
    )
    if absent:
        data.notes.append(f"no training mask holds {', '.join(absent)}: nothing can be learned of it.")
    if isinstance(wanted, list):
        if len(wanted) != data.num_labels:
            raise UserError(f"{len(wanted)} numbers for {data.num_labels} classes", key="class_weights")
        return torch.tensor(wanted, dtype=torch.float32)
    return None if wanted in (None, "none") else weights
