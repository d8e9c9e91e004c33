"""The number formats of autocast, and what a processor makes of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from transformers.utils import logging

from ..errors import UserError


logger = logging.get_logger(__name__)
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Whether the CPU's matrix products are made in the format; elsewhere torch emulates it.
MULTIPLIES = {
    "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported,
    "fp16": torch.ops.mkldnn._is_mkldnn_fp16_supported,
}


def check_precision(precision: str) -> None:
    """Raise `UserError` unless it is "no", "bf16" or "fp16"."""
    if precision not in ("no", *AUTOCAST_DTYPES):
        raise UserError(f"{precision!r} is unknown", key="precision", fix=f"use no, {', '.join(AUTOCAST_DTYPES)}")


def warn_if_emulated(precision: str, device: torch.device) -> None:
    """Say once that a CPU without arithmetic for `precision` is much slower in it than in fp32."""
    if device.type == "cpu" and precision in MULTIPLIES and not MULTIPLIES[precision]():
        logger.warning_once(
            f"precision: this CPU has no {precision} arithmetic and computes it many times slower than fp32; use no."
        )


def autocast(precision: str, device: torch.device) -> AbstractContextManager:
    """torch's autocast for "bf16" and "fp16", nothing for "no"."""
    check_precision(precision)
    if precision == "no":
        return nullcontext()
    warn_if_emulated(precision, device)
    return torch.autocast(device.type, AUTOCAST_DTYPES[precision])
