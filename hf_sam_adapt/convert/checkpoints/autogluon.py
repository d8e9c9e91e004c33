"""The folder of an AutoGluon predictor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ...errors import UserError


def predictor_files(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint in a predictor's folder, and the fields of Conv-LoRA that its `config.yaml` tells.

    Raises:
        UserError: no `model.ckpt` in it, or a `config.yaml` that cannot be read.
    """
    checkpoint = folder / "model.ckpt"
    if not checkpoint.is_file():
        raise UserError(
            f"{folder} holds no model.ckpt", key="checkpoint", fix="name an AutoGluon predictor's folder or a file"
        )
    config = folder / "config.yaml"
    if not config.is_file():
        return checkpoint, {}
    try:
        content = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(
            f"{config} cannot be read", key="checkpoint", fix=f"name {checkpoint} itself, with --lora_alpha"
        ) from error
    for section in ("optim", "optimization"):  # since AutoGluon 1.2, and before
        lora: Any = content
        for key in (section, "lora", "alpha"):
            lora = lora.get(key) if isinstance(lora, dict) else None
        if isinstance(lora, (int, float)):
            return checkpoint, {"lora_alpha": lora}
    return checkpoint, {}
