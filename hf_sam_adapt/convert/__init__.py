"""Checkpoints of the methods' official implementations become adapters of this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..loading import load_base
from .checkpoint import read_state_dict
from .conv_lora import convert_conv_lora
from .cosam import convert_cosam, convert_cosam_pool
from .engine import Base
from .folder import check_free
from .sam_adapter import convert_cwsam, convert_sam_adapter


__all__ = ["Conversion", "convert_official_checkpoint"]

FORMATS = {
    "sam-adapter": convert_sam_adapter,
    "conv-lora": convert_conv_lora,
    "cwsam": convert_cwsam,
    "cosam": convert_cosam,
}


@dataclass
class Conversion:
    """What a conversion left.

    Attributes:
        folder: the adapter, with its config and its processor.
        notes: sentences that tell what was left out, and what was compared with the base model.
    """

    folder: Path
    notes: list[str]


def convert_official_checkpoint(
    format: str,
    checkpoint_path: str | Path,
    out_folder: str | Path,
    *,
    lora_alpha: float | None = None,
    decoder: str | None = None,
    base: str | None = None,
    image_size: int | None = None,
    domains: list[str] | None = None,
) -> Conversion:
    """Write the adapter that a checkpoint of an official implementation holds; sizes are read from its tensors.

    The file is opened with `weights_only=True`. `out_folder` appears whole or not at all.

    Args:
        format: `"conv-lora"`, the `model.ckpt` of an AutoGluon predictor; `"sam-adapter"` and `"cwsam"`, the
            `model_epoch_*.pth` of the official code; `"cosam"`, an `adapter_<domain>.pth` of the official MoDA.
        checkpoint_path: the file; for `"cosam"` also a folder of them with its `task_classifier_after_*.pth`, which
            becomes a pool of domains.
        out_folder: must not exist, or be empty.
        lora_alpha: of Conv-LoRA: scaling times r, which no tensor tells; None = the official code's 32.
        decoder: `"none"` leaves the checkpoint's mask decoder out; None converts it.
        base: `tiny`, folder or Hub id of the SAM that was adapted. The checkpoint's frozen weights are compared with
            it, and the adapter stores its name and fingerprint. None skips them: whoever loads the adapter names the
            base.
        image_size: side of the network's input in pixels, where neither the checkpoint's position embedding nor a base
            tells; None = 1024.
        domains: of a pool, in the order of their training; None = CoSAM's.

    Raises:
        UserError: a file that is no such checkpoint, has weights missing or unknown, or belongs to another base; an
            `out_folder` that holds something.
    """
    if format not in FORMATS:
        raise UserError(f"format: {format!r} is unknown; use one of {', '.join(FORMATS)}")
    if decoder not in (None, "none"):
        raise UserError(f"decoder: {decoder!r} is unknown; use 'none', or leave it unset to convert the decoder")
    pool = format == "cosam" and Path(checkpoint_path).is_dir()
    for name, value, fitting in (("lora_alpha", lora_alpha, format == "conv-lora"), ("domains", domains, pool)):
        if value is not None and not fitting:
            raise UserError(f"{name}: only {'conv-lora' if name == 'lora_alpha' else 'a cosam folder'} takes it")
    folder = Path(out_folder)
    check_free(folder)
    adapted = None if base is None else Base(base, *load_base(base))
    options: dict[str, Any] = {"decoder": decoder, "base": adapted, "image_size": image_size}
    if pool:
        return Conversion(folder, convert_cosam_pool(Path(checkpoint_path), folder, domains=domains, **options))
    if lora_alpha is not None:
        options["lora_alpha"] = lora_alpha
    state = read_state_dict(Path(checkpoint_path))
    return Conversion(folder, FORMATS[format](state, folder, source=str(checkpoint_path), **options))
