"""Evaluation: zero-shot and adapted SAM side by side, image by image at original size."""

from ..inference.variants import Variant, image_logits, inference, predicted_masks
from .evaluate import EvalResult, ImageRecord, evaluate


__all__ = [
    "EvalResult",
    "ImageRecord",
    "Variant",
    "evaluate",
    "image_logits",
    "inference",
    "predicted_masks",
]
