"""Checkpoints of the methods' official implementations become adapters of this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import check_free
from ...inference.loading import load_base
from .autogluon import predictor_files
from .checkpoint import Checkpoint, read_checkpoint
from .conv_lora import UNTOLD as CONV_LORA_UNTOLD
from .conv_lora import convert_conv_lora
from .cosam import UNTOLD as COSAM_UNTOLD
from .cosam import convert_cosam, convert_cosam_pool
from .engine import Base, Request
from .sam2_adapter import UNTOLD as SAM2_ADAPTER_UNTOLD
from .sam2_adapter import convert_sam2_adapter
from .sam_adapter import CWSAM_UNTOLD, SAM_ADAPTER_UNTOLD, convert_cwsam, convert_sam_adapter
from .sam_hq import convert_sam_hq
from .segment_anything import convert_segment_anything


__all__ = ["Conversion", "convert_official_checkpoint"]

# What converts a file, and the fields of its config that no tensor tells.
FORMATS = {
    "sam-adapter": (convert_sam_adapter, SAM_ADAPTER_UNTOLD),
    "conv-lora": (convert_conv_lora, CONV_LORA_UNTOLD),
    "cwsam": (convert_cwsam, CWSAM_UNTOLD),
    "cosam": (convert_cosam, COSAM_UNTOLD),
    "sam2-adapter": (convert_sam2_adapter, SAM2_ADAPTER_UNTOLD),
    "sam-hq": (convert_sam_hq, ()),
    "sam-pth": (convert_segment_anything, ()),
}
ADAPTED = {"sam2-adapter": "sam2"}  # the type of the models that a format's files adapt, where it is not SAM
# Parts of names that only files of one format have; CWSAM's files hold all that SAM-Adapter's do.
SIGNS = (
    ("conv-lora", ".lora_moe_"),
    ("cwsam", ".Space_Adapter."),
    ("cwsam", "mask_decoder.cls_upscaling."),
    ("sam2-adapter", "image_encoder.trunk.prompt_generator."),
    ("sam-adapter", "image_encoder.prompt_generator."),
    ("sam-hq", "mask_decoder.hf_token."),
    ("sam-hq", "mask_decoder.hq_token."),
    ("cosam", "hf_token.weight"),
)


@dataclass
class Conversion:
    """What a conversion left.

    Attributes:
        folder: the adapter, with its config and its processor.
        notes: sentences that tell what was left out, what was compared with the base model, and what the checkpoint
            does not tell.
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
    classifier: str | None = None,
    classes: list[str] | None = None,
    method_args: dict[str, Any] | None = None,
) -> Conversion:
    """Write the adapter that a checkpoint of an official implementation holds; sizes are read from its tensors.

    The file is opened with `weights_only=True`. `out_folder` appears whole or not at all.

    Args:
        format: `"conv-lora"`, the `model.ckpt` of an AutoGluon predictor, or the predictor's folder; `"sam-adapter"`
            and `"cwsam"`, the `model_epoch_*.pth` of the official code; `"cosam"`, an `adapter_<domain>.pth` of the
            official MoDA, or the prompt pool of its L2P; `"sam2-adapter"`, a `model_epoch_*.pth` of SAM2-Adapter,
            which needs `base`; `"sam-hq"`, a `sam_hq_vit_*.pth`, or a `SamHQModel`'s folder or safetensors file,
            whose HQ head becomes an adapter of SAM; `"sam-pth"`, a whole SAM of segment-anything, which becomes a
            model folder.
        checkpoint_path: the file; for `"cosam"` also a folder of them with its `task_classifier_after_*.pth`, which
            becomes a pool of domains.
        out_folder: must not exist, or be empty.
        lora_alpha: of Conv-LoRA: scaling times r, which no tensor tells; None = what the predictor's `config.yaml`
            says, else the official code's 32.
        decoder: `"none"` leaves the checkpoint's mask decoder out; None converts it.
        base: `tiny`, folder or Hub id of the SAM that was adapted. The checkpoint's frozen weights are compared with
            it, and the adapter stores its name, and its fingerprint where they tell one SAM from another. None skips
            them: whoever loads the adapter names the base.
        image_size: side of the network's input in pixels, where neither the checkpoint's position embedding nor a base
            tells; None = 1024.
        domains: of a pool, in the order of their training; None = CoSAM's.
        classifier: of a pool: the file of the router, in the folder, where it holds several for all domains.
        classes: names of all classes, or of those after a background 0.
        method_args: fields of the adapter's config that no tensor tells, where the checkpoint is not of the published
            variant: CWSAM's `features`, `frequency_rate`, `use_prompts`; CoSAM's `global_attention`; …

    Raises:
        UserError: a file that is no such checkpoint, has weights missing, unknown or not finite, or belongs to another
            base; an `out_folder` that holds something.
    """
    if format not in FORMATS:
        raise UserError(f"{format!r} is unknown", key="format", fix=f"use one of {', '.join(FORMATS)}")
    if decoder not in (None, "none"):
        raise UserError(
            f"{decoder!r} is unknown", key="decoder", fix="use 'none', or leave it unset to convert the decoder"
        )
    path = Path(checkpoint_path)
    pool = format == "cosam" and path.is_dir()
    of_folder = "a cosam folder"
    for name, value, fitting, taker in (
        ("lora_alpha", lora_alpha, format == "conv-lora", "conv-lora"),
        ("domains", domains, pool, of_folder),
        ("classifier", classifier, pool, of_folder),
        ("classes", classes, format in ("conv-lora", "cwsam"), "conv-lora or cwsam"),
    ):
        if value is not None and not fitting:
            raise UserError(f"only {taker} takes it", key=name)
    convert, untold = FORMATS[format]
    fields = dict(method_args or {})
    if lora_alpha is not None:
        if "lora_alpha" in fields:
            raise UserError("given twice, alone and in method_args", key="lora_alpha", fix="give it once")
        fields["lora_alpha"] = lora_alpha
    for name in fields:
        if name not in untold:
            raise UserError(
                f"of {format}, use {', '.join(untold) or 'none'}",
                key=f"method_args.{name}",
                fix="all else is in the tensors",
            )
    folder = Path(out_folder)
    check_free(folder, "out")
    adapted = None if base is None else Base(base, *load_base(base))
    if adapted is not None and adapted.model.config.model_type != ADAPTED.get(format, "sam"):
        raise UserError(
            f"{base} is of type {adapted.model.config.model_type!r}, files of {format} belong to "
            f"{ADAPTED.get(format, 'sam')!r} models",
            key="base",
        )
    request = Request(decoder, adapted, image_size, fields, classes)
    if pool:
        return Conversion(folder, convert_cosam_pool(path, folder, request, domains=domains, classifier=classifier))
    if format == "conv-lora" and path.is_dir():
        path, told = predictor_files(path)
        request.fields = told | fields
    if format == "sam-hq" and path.is_dir():
        path = path / "model.safetensors"
    checkpoint = read_checkpoint(path)
    _check_format(checkpoint, format)
    return Conversion(folder, convert(checkpoint, folder, request))


def _check_format(checkpoint: Checkpoint, format: str) -> None:
    """Raise `UserError` if the file has names that only files of another format have."""
    if format == "cosam" and "cls_token" in checkpoint.tensors:
        raise UserError(f"{checkpoint} is the router of a cosam folder", key="checkpoint", fix="name the folder")
    for other, sign in SIGNS:
        found = [checkpoint.name_of(name, value) for name, value in checkpoint.tensors.items() if sign in f".{name}"]
        if found:
            if other != format:
                raise UserError(
                    f"{checkpoint} holds {found[0]}, as files of {other} do",
                    key="checkpoint",
                    fix=f"use --from {other}",
                )
            return
