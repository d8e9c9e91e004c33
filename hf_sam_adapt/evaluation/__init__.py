"""Evaluation: zero-shot and adapted SAM side by side, image by image at original size."""

from .evaluate import EvalResult, ImageRecord, evaluate
from .inference import Variant, image_logits, inference, predicted_masks


__all__ = [
    "EvalResult",
    "ImageRecord",
    "Variant",
    "evaluate",
    "image_logits",
    "inference",
    "predicted_masks",
]
