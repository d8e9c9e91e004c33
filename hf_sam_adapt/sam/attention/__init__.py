"""Attention of SAM's encoder without the bias of S x S relative positions, exact but for rounding."""

from .fast import KINDS, Kind, attention_kind, restore_attention, use_fast_attention


__all__ = ["KINDS", "Kind", "attention_kind", "restore_attention", "use_fast_attention"]
