"""What the training draws, whether from drawn scenes or from photographs."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


SIDE = 256  # pixels of input a side
SMALLEST = 24  # pixels of an object that a prompt may name
MEAN = 255 * np.array([0.485, 0.456, 0.406], np.float32)
STD = 255 * np.array([0.229, 0.224, 0.225], np.float32)


@dataclass
class Example:
    """One image with objects to prompt and, where there is one, the class that a look without a prompt should find.

    `image` float32 (3, 256, 256), normalised, zero where padded; `objects` bool (count, 256, 256); `partial`: pixels
    outside an object may belong to it for all that the labels say; `whole` bool (256, 256): the class, or None;
    `task`: 0 if the class can be told from the picture, else the number of the source that it belongs to.
    """

    image: torch.Tensor
    objects: torch.Tensor
    partial: bool
    whole: torch.Tensor | None
    task: int


def padded(image: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
    """Normalise uint8 `image` (h, w, 3) and pad it, and `labels` (n, h, w), right and below to 256 pixels."""
    height, width = image.shape[:2]
    pixels = torch.from_numpy((image - MEAN) / STD).permute(2, 0, 1)
    pixels = F.pad(pixels, (0, SIDE - width, 0, SIDE - height))
    return pixels, np.pad(labels, ((0, 0), (0, SIDE - height), (0, SIDE - width)))


def regions(layer: np.ndarray, smallest: int = SMALLEST) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of the regions of a layer uint8 (256, 256) that are large enough, and their areas in pixels."""
    areas = np.bincount(layer.ravel(), minlength=256)
    areas[0] = 0
    numbers = np.flatnonzero(areas >= smallest)
    return numbers, areas[numbers]
