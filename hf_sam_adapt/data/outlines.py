"""The outlines of a mask as polygons: what `data.areas.fill_polygon` draws, the other way round."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Outline:
    """A 4-connected part of a mask, bounded along the edges of its pixels.

    Attributes:
        exterior: (n, 2) corners (x, y) in pixels from the image's corner, the first not repeated.
        holes: the same of each hole.
    """

    exterior: np.ndarray
    holes: list[np.ndarray]

    @property
    def rings(self) -> list[np.ndarray]:
        return [self.exterior, *self.holes]

    def joined(self) -> np.ndarray:
        """One ring (n, 2) for formats without holes: each is reached and left by the same line, so that filling it by
        the even-odd rule draws the same pixels."""
        ring = self.exterior
        for hole in self.holes:
            start = hole[np.argmin(hole[:, 0])]
            place = int(np.argmin(((ring - start) ** 2).sum(axis=1)))
            turned = np.roll(hole, -int(np.argmin(hole[:, 0])), axis=0)
            ring = np.concatenate([ring[: place + 1], turned, turned[:1], ring[place:]])
        return ring


def outlines(mask: np.ndarray, tolerance: float = 0.0) -> list[Outline]:
    """The parts of a mask in the order of their uppermost pixels.

    Args:
        mask: bool (H, W).
        tolerance: corners are left out where the outline does not move by more than so many pixels (Douglas and
            Peucker, 1973); 0 = every corner, which draws the mask itself.
    """
    rings, parents = _rings(np.asarray(mask, bool))
    found: dict[int, Outline] = {}
    for number, (ring, parent) in enumerate(zip(rings, parents)):
        simple = simplified(ring, tolerance)
        if parent == number:
            found[number] = Outline(simple, [])
        else:
            found[parent].holes.append(simple)
    return list(found.values())


def simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """A closed ring (n, 2) with fewer corners; as it is where less than half of its area would be left."""
    if tolerance <= 0 or len(ring) <= 4:
        return ring
    far = int(((ring - ring[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([ring, ring[:1]]).astype(np.float64)
    kept = np.zeros(len(closed), bool)
    kept[[0, far, len(ring)]] = True
    waiting = [(0, far), (far, len(ring))]
    while waiting:
        start, end = waiting.pop()
        if end - start < 2:
            continue
        distances = _distances(closed[start + 1 : end], closed[start], closed[end])
        worst = int(distances.argmax())
        if distances[worst] > tolerance:
            place = start + 1 + worst
            kept[place] = True
            waiting += [(start, place), (place, end)]
    simple = ring[kept[:-1]]
    return simple if 2 * abs(signed_area(simple)) > abs(signed_area(ring)) else ring


def signed_area(ring: np.ndarray) -> float:
    """Of a closed ring (n, 2)."""
    x, y = np.asarray(ring, np.float64).T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _distances(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of points (n, 2) from the line between two others."""
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0, 1)[:, None] if length else np.zeros((len(points), 1))
    return np.linalg.norm(points - start - share * along, axis=1)


def _rings(mask: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
    """The closed rings along the edges of a mask, its pixels on their right, and for each the number of the ring that
    bounds its part from outside: its own for an exterior."""
    width = mask.shape[1]
    padded = np.pad(mask, 1)
    inside, above, left = padded[1:, 1:], padded[:-1, 1:], padded[1:, :-1]  # (H + 1, W + 1), by upper left corner
    step = width + 1
    # Each edge between a pixel and another one is walked from corner to corner, a corner being row * step + column.
    rows, columns = np.nonzero(inside & ~above)
    edges = [(rows * step + columns, 1)]
    rows, columns = np.nonzero(above & ~inside)
    edges.append((rows * step + columns + 1, -1))
    rows, columns = np.nonzero(left & ~inside)
    edges.append((rows * step + columns, step))
    rows, columns = np.nonzero(inside & ~left)
    edges.append(((rows + 1) * step + columns, -step))
    ways: dict[int, list[int]] = {}
    for starts, direction in edges:
        for start in starts.tolist():
            ways.setdefault(start, []).append(direction)
    right_of = {1: step, step: -1, -1: -step, -step: 1}
    rings: list[np.ndarray] = []
    parents: list[int] = []
    ring_at: dict[int, int] = {}  # upper corner of an edge with the mask on its right side in the image -> its ring
    for start in sorted(ways):
        while ways.get(start):
            corners, upward = _walk(ways, start, right_of, step)
            number = len(rings)
            ring = np.array([(corner % step, corner // step) for corner in corners])
            rings.append(ring)
            ring_at |= dict.fromkeys(upward, number)
            row, column = start // step, start % step
            if signed_area(ring) > 0:  # clockwise, as y points down
                parents.append(number)
            else:  # the run of the mask on the left of the hole's first pixel begins at a ring of the same part
                outside = np.flatnonzero(~mask[row, :column])
                begin = int(outside[-1]) + 1 if len(outside) else 0
                parents.append(parents[ring_at[row * step + begin]])
    return rings, parents


def _walk(ways: dict[int, list[int]], start: int, right_of: dict[int, int], step: int) -> tuple[list[int], list[int]]:
    """The corners of the ring that begins at `start` with the first way there, which is used up, and the upper corners
    of its edges that lead upwards."""
    corners, upward, place, before = [], [], start, 0
    while True:
        choices = ways[place]
        # Where two pixels touch at a corner alone, the way stays with its own one.
        turn = right_of.get(before)
        direction = turn if turn in choices else choices[0]
        choices.remove(direction)
        if direction != before:
            corners.append(place)
        place, before = place + direction, direction
        if direction == -step:
            upward.append(place)
        if place == start and not (ways[place] and right_of[before] in ways[place]):
            break
    return corners, upward
