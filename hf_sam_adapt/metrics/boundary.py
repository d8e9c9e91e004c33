"""Boundary IoU of binary masks, per image (Cheng et al. 2021; CoSAM's second metric)."""

import math

import numpy as np

from ..data.images import IGNORE
from .overlap import Overlap, overlap


DILATION = 0.02  # width of the boundary as a share of the image's diagonal


def boundary_overlap(prediction: np.ndarray, mask: np.ndarray) -> Overlap:
    """Counts the overlap of the boundaries of a prediction and its truth; `.iou` is the boundary IoU.

    The boundary of a mask are its pixels within `boundary_width` of its border (in the maximum norm). What lies
    outside the image is background, so a mask that touches the image's edge has a boundary there; ignored pixels are
    background for both masks. Where nothing is wider than two boundaries the result is the IoU. An image with both
    boundaries empty scores 1.0.

    Args:
        prediction: bool (H, W).
        mask: uint8 (H, W), 0 background, 255 ignored, anything else foreground.

    Raises:
        ValueError: as `overlap`.
    """
    prediction, mask = np.asarray(prediction), np.asarray(mask)
    overlap(prediction, mask)  # checks shapes and types
    width = boundary_width(*mask.shape)
    valid = mask != IGNORE
    truth = _boundary((mask != 0) & valid, width)
    return overlap(_boundary(prediction & valid, width), truth.astype(np.uint8))


def boundary_width(height: int, width: int) -> int:
    """Pixels that the boundary reaches inwards: 2 % of the diagonal, rounded, at least 1."""
    return max(1, round(DILATION * math.hypot(height, width)))


def _boundary(mask: np.ndarray, width: int) -> np.ndarray:
    """bool (H, W) -> bool (H, W): the mask without its erosion by `width` steps of a 3 x 3 element."""
    from scipy import ndimage

    # That erosion is a minimum over a square, which scipy slides along rows and columns.
    eroded = ndimage.minimum_filter(mask.astype(np.uint8), 2 * width + 1, mode="constant", cval=0)
    return mask & (eroded == 0)
