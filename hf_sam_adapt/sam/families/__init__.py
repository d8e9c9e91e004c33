"""The families of SAMs that can be adapted, each described in a file of its own and known by `config.model_type`."""

import re
from typing import NoReturn

from torch import nn

from ...errors import UserError
from .family import EncoderShape, SamFamily
from .sam import SAM
from .sam2 import SAM2
from .sam3_tracker import SAM3_TRACKER
from .sam_hq import SAM_HQ


__all__ = [
    "FAMILIES",
    "SAM",
    "SAM2",
    "SAM3_TRACKER",
    "SAM_HQ",
    "EncoderShape",
    "SamFamily",
    "check_no_unknown_sam",
    "encoder_shape",
    "family_of",
    "family_of_type",
    "find_family",
    "find_mask_decoder",
    "find_vision_encoder",
    "vision_encoder",
]

FAMILIES = (SAM, SAM2, SAM3_TRACKER, SAM_HQ)
_BY_TYPE = {model_type: family for family in FAMILIES for model_type in family.model_types}
# Of transformers' SAMs, with or without a family: sam2, sam2_video, sam3_tracker, sam_hq, edgetam, …
_SAM_TYPE = re.compile(r"(sam\d*|edgetam)(_|$)")


def family_of_type(model_type: str, name: str) -> SamFamily:
    """The family of a checkpoint.

    Args:
        model_type: of its config.
        name: of the checkpoint, for the message.

    Raises:
        UserError: no family describes whole models of this type.
    """
    for family in FAMILIES:
        if model_type in (family.model_type, *family.also_types):
            return family
    _refuse(name, model_type)


def find_family(model: nn.Module) -> SamFamily | None:
    """The family of a SAM, of its encoder alone, or of a SAM inside wrappers; None for any other model."""
    for kind in map(_model_type, model.modules()):
        if kind in _BY_TYPE:
            return _BY_TYPE[kind]
        if kind is not None and _SAM_TYPE.match(kind):  # the encoder inside it would pass for its family's
            return None
    return None


def family_of(model: nn.Module) -> SamFamily:
    """`find_family`, where there has to be one.

    Raises:
        UserError: the model is of no family.
    """
    family = find_family(model)
    if family is None:
        _refuse(type(model).__name__, _model_type(model))
    return family


def check_no_unknown_sam(model: nn.Module) -> None:
    """Refuse a SAM of no family, whose decoder would be mistaken for one that is known; other models pass.

    Raises:
        UserError: the model's type is that of such a SAM, or it has both a prompt encoder and a mask decoder.
    """
    if find_family(model) is not None:
        return
    for module in model.modules():
        alike = hasattr(module, "prompt_encoder") and hasattr(module, "mask_decoder")
        if alike or _SAM_TYPE.match(_model_type(module) or ""):
            _refuse(type(model).__name__, _model_type(model))


def find_vision_encoder(model: nn.Module) -> nn.Module | None:
    """The SAM vision encoder inside `model`, or None."""
    family = find_family(model)
    for module in model.modules() if family is not None else ():
        if _model_type(module) in family.model_types:
            return getattr(module, family.encoder, module)
    return None


def vision_encoder(model: nn.Module) -> nn.Module:
    """`find_vision_encoder`, where there has to be one. Raises `UserError` for a model of no family."""
    encoder = find_vision_encoder(model)
    if encoder is None:
        _refuse(type(model).__name__, _model_type(model))
    return encoder


def find_mask_decoder(model: nn.Module) -> nn.Module | None:
    """SAM's mask decoder in `model`, wrapped or not, or None."""
    family = find_family(model)
    return None if family is None else getattr(model, family.mask_decoder, None)


def encoder_shape(model: nn.Module) -> EncoderShape:
    """Sizes of the encoder of a SAM.

    Raises:
        UserError: the model is of no family.
    """
    return family_of(model).shape(find_vision_encoder(model))


def _model_type(module: nn.Module) -> str | None:
    # Of the class: a `Sam2Model` out of a video checkpoint, such as Meta's, has that one's type in its instance.
    config = getattr(module, "config", None)
    return getattr(type(config), "model_type", None) or getattr(config, "model_type", None)


def _refuse(name: str, model_type: str | None) -> NoReturn:
    *known, last = (repr(family.model_type) for family in FAMILIES)
    raise UserError(
        f"{name} is of type {model_type!r}",
        key="model",
        fix=f"this package adapts {', '.join(known)} and {last} models",
    )
