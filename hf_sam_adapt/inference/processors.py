"""Which processor belongs to a base model or an adapter."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import UserError, first_line
from ..files import read_mapping
from ..repository import HubName, find_file
from ..sam.families import encoder_shape, family_of, vision_encoder
from ..sam.input_channels import input_channels
from ..sam.processing import SamAdaptProcessor


ADAPTER_CONFIG = "adapter_config.json"


def base_processor(name: str, model: nn.Module, commit: str | None) -> SamAdaptProcessor:
    """The processor in a base model's folder, or that of its family.

    Raises:
        UserError: it gives images of another size than the model takes.
    """
    shape = encoder_shape(model)
    for file_name in ("preprocessor_config.json", "processor_config.json"):
        file = find_file(name, file_name, commit)
        if file is not None:
            # transformers' files do not say the patch size.
            processor = _read(file, patch_size=shape.patch_size)
            if processor.image_size != shape.image_size:
                sizes = f"{processor.image_size} pixels a side, its model takes {shape.image_size}"
                fix = f"one of {file.name} and config.json is another checkpoint's"
                raise UserError(f"{name}: its processor gives images of {sizes}", key="model", fix=fix)
            return processor
    return SamAdaptProcessor(shape.image_size, shape.patch_size, **family_of(model).processor)


def adapter_processor(
    path: str, model: nn.Module, processor: SamAdaptProcessor, commit: str | None
) -> SamAdaptProcessor:
    """The processor of an adapter's folder, of its pool, or `processor`, compared with the adapted `model`.

    Raises:
        UserError: it gives images of another size. Of other channels it warns: a model can be called without it.
    """
    file = find_file(path, "preprocessor_config.json", commit)
    if file is None and (pool := _pool_of(path, commit)) is not None:
        file = find_file(pool, "preprocessor_config.json", commit)
    if file is not None:
        processor = _read(file)
    fix = "the files in this folder do not belong together"
    size, channels = encoder_shape(model).image_size, input_channels(vision_encoder(model))
    if processor.image_size != size:
        problem = f"{path} was trained at image_size {processor.image_size}, its model runs at {size}"
        raise UserError(problem, key="adapter", fix=fix)
    if (processor.channels or 3) != channels:
        given = processor.channels or 3
        where = "the base's, as it has no preprocessor_config.json," if file is None else "its processor"
        warnings.warn(f"{path}: its model takes images of {channels} channels, {where} gives {given}", stacklevel=2)
    return processor


def is_pool(path: str, revision: str | None = None) -> bool:
    """Whether a folder or Hub id is a pool of domains, as `ModaModel.save_pretrained` writes it."""
    config_file = find_file(path, ADAPTER_CONFIG, revision)
    return config_file is not None and bool(read_mapping(config_file).get("pool"))


def _read(file: Path, **options: Any) -> SamAdaptProcessor:
    try:
        return SamAdaptProcessor.from_pretrained(str(file.parent), **options)
    except (OSError, TypeError, KeyError, ValueError) as error:
        raise UserError(f"not the settings of a processor ({first_line(error)})", where=file) from error


def _pool_of(path: str, commit: str | None) -> str | None:
    """The pool in whose folder a domain's adapter lies; its one processor is for all domains."""
    if not Path(path).is_dir() and HubName.parse(path).folder is None:
        return None
    parent = str(Path(path).parent)
    return parent if is_pool(parent, commit) else None
