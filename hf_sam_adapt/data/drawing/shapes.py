"""Shapes as coverage maps: float32 `(H, W)` in [0, 1], the share of each pixel that lies inside."""

import numpy as np
from PIL import Image, ImageDraw

from .noise import Size, fractal_noise


SUPERSAMPLING = 2  # outlines are drawn at twice the resolution and averaged, so that edges are not jagged


class Stencil:
    """A coverage map under construction."""

    def __init__(self, size: Size) -> None:
        self.size = size
        self._image = Image.new("L", (size[1] * SUPERSAMPLING, size[0] * SUPERSAMPLING))
        self._draw = ImageDraw.Draw(self._image)

    def polygon(self, points: np.ndarray, fill: int = 255) -> None:
        """Fill the polygon of `points` `(n, 2)`, (x, y) in pixels."""
        self._draw.polygon([tuple(point) for point in np.asarray(points) * SUPERSAMPLING], fill=fill)

    def stroke(self, points: np.ndarray, widths: np.ndarray | float) -> None:
        """Draw a curve through `points` `(n, 2)`, of one width or a width per point, in pixels, round joints."""
        points = np.asarray(points) * SUPERSAMPLING
        widths = np.broadcast_to(np.asarray(widths, dtype=float) * SUPERSAMPLING, len(points))
        for start, end, width in zip(points[:-1], points[1:], widths[1:]):
            self._draw.line([tuple(start), tuple(end)], fill=255, width=max(1, round(width)))
        for (x, y), width in zip(points, widths):
            radius = width / 2
            if radius > 1:
                self._draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)

    def coverage(self) -> np.ndarray:
        height, width = self.size
        small = self._image.resize((width, height), Image.Resampling.BOX)
        return np.asarray(small, dtype=np.float32) / 255.0


def outline(rng: np.random.Generator, centre: np.ndarray, radius: float, kind: str) -> np.ndarray:
    """Points `(n, 2)` around `centre` (x, y): `blob`, `ellipse`, `polygon`, `star` or `box`, stretched and turned."""
    if kind in ("polygon", "star"):
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 10))))
        radii = rng.uniform(0.35 if kind == "star" else 0.8, 1.0, len(angles))
    elif kind == "box":
        angles, radii = np.pi / 4 + np.arange(4) * np.pi / 2, np.ones(4)
    else:
        angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        radii = np.ones_like(angles)
        if kind == "blob":
            roughness = rng.uniform(0.05, 0.35)
            for wave in range(2, 8):
                radii += roughness / wave * rng.normal() * 1.5 * np.cos(wave * angles + rng.uniform(0, 6.3))
            radii = np.maximum(radii, 0.15)
    points = radius * np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    points[:, 1] *= np.exp(rng.uniform(np.log(0.35), 0))
    turn = rng.uniform(0, np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return points @ rotation.T + centre


def walk(
    rng: np.random.Generator, start: np.ndarray, heading: float, length: float, bend: float, step: float = 6.0
) -> np.ndarray:
    """A curve `(n, 2)` of about `length` pixels whose heading drifts by `bend` radians a step."""
    turns = heading + np.cumsum(bend * rng.standard_normal(max(2, int(length / step))))
    moves = step * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    return np.concatenate([start[None], start + np.cumsum(moves, axis=0)])


def random_point(rng: np.random.Generator, size: Size, margin: float = 0.05) -> np.ndarray:
    """(x, y) in pixels."""
    return rng.uniform(margin, 1 - margin, 2) * np.array([size[1], size[0]])


def solid(rng: np.random.Generator, size: Size, radius: float, centre: np.ndarray | None = None) -> np.ndarray:
    """One object without holes."""
    stencil = Stencil(size)
    centre = random_point(rng, size) if centre is None else centre
    kind = str(rng.choice(["blob", "ellipse", "polygon", "star", "box"], p=[0.45, 0.15, 0.15, 0.15, 0.1]))
    stencil.polygon(outline(rng, centre, radius, kind))
    return stencil.coverage()


def creature(rng: np.random.Generator, size: Size, radius: float, centre: np.ndarray | None = None) -> np.ndarray:
    """A body with limbs that taper: what fills its own box badly."""
    stencil = Stencil(size)
    centre = random_point(rng, size) if centre is None else centre
    stencil.polygon(outline(rng, centre, 0.55 * radius, "blob"))
    for _ in range(int(rng.integers(2, 8))):
        heading = rng.uniform(0, 2 * np.pi)
        root = centre + 0.2 * radius * np.array([np.cos(heading), np.sin(heading)])
        limb = walk(rng, root, heading, rng.uniform(0.6, 1.4) * radius, rng.uniform(0.05, 0.35))
        width = radius * rng.uniform(0.1, 0.4)
        stencil.stroke(limb, width * np.linspace(1, rng.uniform(0.15, 0.8), len(limb)))
    return stencil.coverage()


def patch(rng: np.random.Generator, size: Size, share: float) -> np.ndarray:
    """Thresholded noise that covers about `share` of the image, sometimes held together by a soft window."""
    field = fractal_noise(rng, size, rng.uniform(25, 110), octaves=int(rng.integers(2, 5)))
    if rng.random() < 0.5:
        y, x = np.mgrid[0 : size[0], 0 : size[1]]
        cx, cy = random_point(rng, size, 0.2)
        field = field - 2.5 * (np.hypot(x - cx, y - cy) / max(size) / 0.35) ** 2
    level = np.quantile(field, 1 - share)
    return np.clip(0.5 + (field - level) / (0.06 * field.std() + 1e-6), 0, 1).astype(np.float32)
