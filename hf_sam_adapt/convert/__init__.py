"""Checkpoints of the methods' official implementations become adapters of this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from .checkpoint import read_state_dict
from .conv_lora import convert_conv_lora
from .folder import check_free


__all__ = ["Conversion", "convert_official_checkpoint"]

FORMATS = {"conv-lora": convert_conv_lora}


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
) -> Conversion:
    """Write the adapter that a checkpoint of an official implementation holds; sizes are read from its tensors.

    The file is opened with `weights_only=True`. `out_folder` appears whole or not at all.

    Args:
        format: `"conv-lora"`, the `model.ckpt` of an AutoGluon predictor.
        checkpoint_path: the file.
        out_folder: must not exist, or be empty.
        lora_alpha: scaling times r, which no tensor tells; None = the official code's 32.
        decoder: `"none"` leaves the checkpoint's mask decoder out; None converts it.
        base: `tiny`, folder or Hub id of the SAM that was adapted. The checkpoint's frozen weights are compared with
            it, and the adapter stores its name and fingerprint. None skips them: whoever loads the adapter names the
            base.
        image_size: side of the network's input in pixels, where neither the checkpoint's position embedding nor a base
            tells; None = 1024.

    Raises:
        UserError: a file that is no such checkpoint, has weights missing or unknown, or belongs to another base; an
            `out_folder` that holds something.
    """
    if format not in FORMATS:
        raise UserError(f"format: {format!r} is unknown; use one of {', '.join(FORMATS)}")
    if decoder not in (None, "none"):
        raise UserError(f"decoder: {decoder!r} is unknown; use 'none', or leave it unset to convert the decoder")
    folder = Path(out_folder)
    check_free(folder)
    state = read_state_dict(Path(checkpoint_path))
    notes = FORMATS[format](
        state,
        folder,
        source=str(checkpoint_path),
        lora_alpha=lora_alpha,
        decoder=decoder,
        base=base,
        image_size=image_size,
    )
    return Conversion(folder, notes)
