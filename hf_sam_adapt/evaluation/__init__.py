"""Evaluation: zero-shot and adapted SAM side by side, image by image at original size."""

from .command import EvaluateArguments, evaluate_command
from .evaluate import EvalResult, ImageRecord, evaluate
from .inference import Variant, image_logits, inference, predicted_masks


__all__ = [
    "EvalResult",
    "EvaluateArguments",
    "ImageRecord",
    "Variant",
    "evaluate",
    "evaluate_command",
    "image_logits",
    "inference",
    "predicted_masks",
]
