"""The folder that a conversion writes, whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftConfig
from safetensors.torch import save_file
from transformers import PreTrainedModel, SamModel

from ...errors import UserError
from ...files import follow_umask
from ...sam.processing import SamAdaptProcessor


def check_free(folder: Path, key: str = "out") -> None:
    """Raise `UserError` unless `folder`, named by the key `key`, can be created or is empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} already exists and is not an empty folder", key=key, fix="name another")


@contextmanager
def write_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `folder` (see `check_free`) at the end and vanishes after an error."""
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".tmp_{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def save_config(config: PeftConfig, folder: Path, model_class: type[PreTrainedModel] = SamModel) -> None:
    """Write `adapter_config.json` as PEFT does for an adapter of such a model, not to be trained on loading."""
    # PEFT's AutoPeftModel builds the base model from these two names.
    base_class = {"base_model_class": model_class.__name__, "parent_library": model_class.__module__}
    config.inference_mode = True
    config.save_pretrained(str(folder), auto_mapping_dict=base_class)


def write_adapter(
    folder: Path,
    config: PeftConfig,
    tensors: dict[str, torch.Tensor],
    processor: SamAdaptProcessor,
    model_class: type[PreTrainedModel],
) -> None:
    """Write what `PeftModel.from_pretrained` and `SamAdaptProcessor.from_pretrained` read.

    Args:
        folder: created, whole or not at all.
        config: of the adapter.
        tensors: under the keys of PEFT's files.
        processor: the one that the adapter was trained with.
        model_class: of the adapted SAM.
    """
    with write_whole(folder) as part:
        save_config(config, part, model_class)
        # Copies: the tensors may share storage or be views of the memory-mapped checkpoint.
        copies = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
        save_file(copies, part / "adapter_model.safetensors", metadata={"format": "pt"})
        follow_umask(part)
        processor.save_pretrained(part)
