"""Dice and the distances of surfaces of a volume, in millimetres."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..data.images import IGNORE


PERCENTILE = 95
TOLERANCE = 1.0  # mm within which surfaces agree, where nothing else is said


def volume_scores(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float = TOLERANCE
) -> dict[str, float | None]:
    """Scores of one volume; ignored voxels count nowhere.

    The surface of a mask are its voxels with a neighbour across a face that is outside of it; what lies outside the
    volume is. Distances are those between the centres of voxels.

    Args:
        prediction: bool (n, H, W).
        truth: uint8 (n, H, W), 0 background, 255 ignored, anything else foreground.
        spacing: millimetres between slices, rows and columns.
        tolerance: millimetres.

    Returns:
        `dice`; `hd95`, the larger of the two 95th percentiles (linear interpolation) of the distances from one surface
        to the other, in millimetres; `surface_dice`, the share of both surfaces that lies within `tolerance` of the
        other (Nikolov et al. 2018, with voxels in place of surface elements). Where both masks are empty they are 1, 0
        and 1; where one is, 0, None (no distance) and 0.
    """
    known = truth != IGNORE
    found, wanted = prediction & known, (truth != 0) & known
    total = int(found.sum()) + int(wanted.sum())
    if not total:
        return {"dice": 1.0, "hd95": 0.0, "surface_dice": 1.0}
    dice = 2 * int((found & wanted).sum()) / total
    if not found.any() or not wanted.any():
        return {"dice": dice, "hd95": None, "surface_dice": 0.0}
    there, back = surface_distances(found, wanted, spacing)
    near = int((there <= tolerance).sum()) + int((back <= tolerance).sum())
    hd95 = max(float(np.percentile(distances, PERCENTILE)) for distances in (there, back))
    return {"dice": dice, "hd95": hd95, "surface_dice": near / (len(there) + len(back))}


def surface_distances(one: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Millimetres from each surface voxel of bool (n, H, W) to the nearest one of the other, and back: (a,), (b,)."""
    from scipy import ndimage

    # Nothing outside of the box around both is nearer than what is in it.
    sides = [np.flatnonzero((one | other).any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(places[0], places[-1] + 1) for places in sides)
    surfaces = []
    for mask in (one[box], other[box]):
        # The box is as large as the masks: what lies outside of it is outside of them.
        surfaces.append(mask & ~ndimage.binary_erosion(mask))
    distances = [ndimage.distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    return distances[1][surfaces[0]], distances[0][surfaces[1]]
