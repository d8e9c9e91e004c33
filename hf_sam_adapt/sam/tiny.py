"""The embedded default: this project's own small promptable SAM, a real `SamModel` that needs no download."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import SamModel

from ..files import check_free, follow_umask
from .base_names import TINY, tiny_folder
from .processing import SamAdaptProcessor


def load_tiny_sam() -> tuple[SamModel, SamAdaptProcessor]:
    """Load the embedded SAM: 256x256 input, patch 16, pre-trained on drawn images and photographs.

    Returns:
        The model in fp32, in `eval()` mode, named `"tiny"` (which adapters then store as their base model), and its
        processor.
    """
    model = SamModel.from_pretrained(tiny_folder(), dtype=torch.float32)
    model.name_or_path = model.config._name_or_path = TINY
    return model, SamAdaptProcessor.from_pretrained(tiny_folder())


def export_tiny(folder: str | Path) -> None:
    """Write the embedded SAM as an ordinary model folder, fp32, that anything loads by its path.

    Args:
        folder: created if needed.

    Raises:
        UserError: if the folder holds anything.
    """
    folder = Path(folder)
    check_free(folder)
    model, processor = load_tiny_sam()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    follow_umask(folder)
    shutil.copy(tiny_folder() / "README.md", folder)  # its licence, which adapters of it inherit
