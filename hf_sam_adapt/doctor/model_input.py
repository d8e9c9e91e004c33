"""The input of the model that a data set is for, known without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..sam.base_names import TINY


@dataclass(frozen=True)
class ModelInput:
    """What a model takes.

    Attributes:
        image_size: side of its square input, in pixels.
        size_step: what that side has to be a multiple of.
        patch_size: pixels of the input a side of a place in the map that the mask decoder takes.
        resize: how its processor brings an image to the square.
        title: of its family.
    """

    image_size: int = 256
    size_step: int = 16
    patch_size: int = 16
    resize: str = "pad"
    title: str = "SAM"


def model_input(name: str | None) -> ModelInput:
    """That of a model folder by its config, of any other name as the published models of its family have it.

    Args:
        name: of the model; None = `tiny`.

    Raises:
        UserError: a folder whose config is not that of a SAM.
    """
    if name in (None, TINY):
        return ModelInput()
    import torch
    from transformers import AutoConfig

    from ..sam.families import FAMILIES, SAM, encoder_shape, family_of_type, vision_encoder

    folder = Path(str(name)).expanduser()
    if (folder / "config.json").is_file():
        try:
            config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError("not the config of a SAM", key="model", where=folder / "config.json") from error
        family = family_of_type(config.model_type, str(name))
        if config.model_type in family.also_types:
            config = family.video_part(config).get("config", config)
    else:
        written = str(name).lower().replace("-", "_")
        others = [one for one in FAMILIES if one is not SAM]
        family = next((one for one in others if one.model_type.removesuffix("_tracker") in written), SAM)
        config = family.model_class.config_class()  # type: ignore[misc]
    with torch.device("meta"):
        model = family.model_class(config)
    shape = encoder_shape(model)
    step = family.size_step(vision_encoder(model))
    return ModelInput(shape.image_size, step, shape.patch_size, str(family.processor["resize"]), family.title)
