"""The folder that a conversion writes, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import torch
from peft import PeftConfig
from safetensors.torch import save_file
from transformers import PreTrainedModel, SamModel

from ...files import follow_umask, whole_folder
from ...sam.processing import SamAdaptProcessor


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
    with whole_folder(folder) as part:
        save_config(config, part, model_class)
        # Copies: the tensors may share storage or be views of the memory-mapped checkpoint.
        copies = {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}
        save_file(copies, part / "adapter_model.safetensors", metadata={"format": "pt"})
        follow_umask(part)
        processor.save_pretrained(part)
