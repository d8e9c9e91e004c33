"""Weights of the classes in the loss, from how often they occur in the training masks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.encoding import value_counts
from ..data.images import IGNORE
from ..errors import UserError


RULES = {"inverse_sqrt": -0.5, "inverse": -1.0, "none": 0.0}


def class_weights_from(
    masks: Any,
    num_labels: int,
    rule: str = "inverse_sqrt",
    id2label: Mapping[int, str] | None = None,
) -> tuple[Tensor, list[str]]:
    """Weighs classes by a power of their share of the labelled pixels, read one mask at a time.

    Args:
        masks: a split (anything with `len` and an index is read in order, once), or any iterable, of masks uint8
            (H, W) in {0..K-1, 255}, or of samples with such a `.mask`.
        num_labels: K, background included.
        rule: the weight is the share to the power -1/2 (`inverse_sqrt`), -1 (`inverse`) or 0 (`none`).
        id2label: names of the classes.

    Returns:
        fp32 (K,) weights, of mean 1 over the classes that occur and 0 for the others; and the names of those others
        (their numbers where `id2label` has none), which the caller should tell the user.

    Raises:
        UserError: `rule` is unknown, a mask holds another value, or no pixel is labelled.
    """
    if rule not in RULES:
        raise UserError(f"'{rule}' is not one of {', '.join(RULES)} or a list of numbers", key="class_weights")
    counts = np.zeros(IGNORE + 1, np.int64)
    for mask in _masks(masks):
        counts += value_counts(mask)
    foreign = [value for value in np.flatnonzero(counts) if num_labels <= value < IGNORE]
    if foreign:
        raise UserError(f"the training masks hold class {foreign[0]}, num_labels is {num_labels}", key="class_weights")
    pixels = counts[:num_labels]
    if not pixels.any():
        raise UserError("no pixel of the training masks is labelled (all are 255 = ignore)", key="class_weights")
    occurs = pixels > 0
    weights = np.zeros(num_labels)
    weights[occurs] = (pixels[occurs] / pixels.sum()) ** RULES[rule]
    weights[occurs] /= weights[occurs].mean()
    absent = [str((id2label or {}).get(int(index), index)) for index in np.flatnonzero(~occurs)]
    return torch.tensor(weights, dtype=torch.float32), absent


def _masks(source: Any) -> Iterator[np.ndarray]:
    if hasattr(source, "mask"):  # a split, whose images need not be opened
        yield from (source.mask(index) for index in range(len(source)))
        return
    items = (source[index] for index in range(len(source))) if hasattr(source, "__getitem__") else source
    for item in items:
        yield np.asarray(getattr(item, "mask", item))
