"""What the scenes are made of beside the package's own shapes, materials and light."""

import io

import numpy as np
from PIL import Image, ImageFilter

from hf_sam_adapt.data.drawing.materials import FAMILIES, Material
from hf_sam_adapt.data.drawing.noise import Size, cell_distances, fractal_noise, smooth_noise, soften
from hf_sam_adapt.data.drawing.shapes import Stencil, random_point, solid, walk


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """A colour float32 `(3,)` in [0, 1], greyish more often than saturated."""
    grey = rng.uniform(0.08, 0.92)
    saturation = rng.choice([0.0, 0.12, 0.3], p=[0.25, 0.45, 0.3])
    return np.clip(grey + saturation * rng.standard_normal(3), 0.02, 0.98).astype(np.float32)


def random_material(rng: np.random.Generator, colour: np.ndarray | None = None, strength: float = 1.0) -> Material:
    """Any material; `colour` fixes its mean, `strength` scales its texture."""
    if colour is None:
        colour = random_colour(rng)
    amplitude = strength * float(np.exp(rng.uniform(np.log(0.015), np.log(0.2))))
    accent = np.ones(3) + rng.choice([0.0, 0.5]) * rng.standard_normal(3)
    return Material(
        colour=np.asarray(colour, dtype=np.float32),
        accent=(amplitude * accent).astype(np.float32),
        family=str(rng.choice(FAMILIES)),
        scale=float(np.exp(rng.uniform(np.log(4), np.log(48)))),
        angle=float(rng.uniform(0, np.pi)),
        warp=float(rng.uniform(0, 12)),
    )


def broken(rng: np.random.Generator, size: Size, radius: float) -> np.ndarray:
    """An object in several parts, or with holes or bites taken out."""
    whole = solid(rng, size, radius)
    if rng.random() < 0.5:
        holes = np.clip(3 * (smooth_noise(rng, size, radius * rng.uniform(0.15, 0.6)) - rng.uniform(0.2, 1.2)), 0, 1)
        return whole * (1 - holes)
    return np.clip(whole - solid(rng, size, radius * rng.uniform(0.5, 1.0)), 0, 1)


def network(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Thin connected structures: membranes, curves, trees, street grids or cracks."""
    kind = rng.choice(["cells", "curves", "tree", "grid", "crack"], p=[0.3, 0.15, 0.2, 0.25, 0.1])
    extent = max(size)
    if kind == "cells":
        _, gap = cell_distances(rng, size, int(rng.integers(10, 90)), stretch=float(np.exp(rng.uniform(-0.7, 0.7))))
        width = rng.uniform(2.0, 7.0) * (1 + 0.4 * smooth_noise(rng, size, 30))
        gap = gap + rng.uniform(0, 3) * smooth_noise(rng, size, rng.uniform(6, 20))
        return np.clip(0.5 + (width - gap) / 2, 0, 1).astype(np.float32)
    stencil = Stencil(size)
    if kind == "grid":
        _street_grid(rng, stencil, extent)
    elif kind == "tree":
        root = random_point(rng, size, 0.0)
        heading = np.arctan2(size[0] / 2 - root[1], size[1] / 2 - root[0])
        _branches(rng, stencil, root, heading, rng.uniform(0.5, 1.0) * extent, rng.uniform(3, 12), depth=4)
    else:
        for _ in range(int(rng.integers(1, 3 if kind == "crack" else 9))):
            heading = rng.uniform(0, 2 * np.pi)
            bend = rng.uniform(0.3, 0.7) if kind == "crack" else rng.uniform(0.02, 0.2)
            curve = walk(rng, random_point(rng, size), heading, rng.uniform(0.4, 1.5) * extent, bend)
            stencil.stroke(curve, rng.uniform(1.5, 4.0) if kind == "crack" else rng.uniform(1.5, 9.0))
    return stencil.coverage()


def _branches(rng, stencil: Stencil, root, heading: float, length: float, width: float, depth: int) -> None:
    path = walk(rng, root, heading, length, rng.uniform(0.05, 0.25))
    stencil.stroke(path, width * np.linspace(1, 0.6, len(path)))
    if depth == 0 or width < 1.2:
        return
    for _ in range(int(rng.integers(1, 4))):
        start = path[int(rng.integers(len(path) // 4, len(path)))]
        turn = heading + rng.choice([-1, 1]) * rng.uniform(0.3, 1.2)
        _branches(rng, stencil, start, turn, length * rng.uniform(0.35, 0.75), width * 0.65, depth - 1)


def _street_grid(rng: np.random.Generator, stencil: Stencil, extent: float) -> None:
    angle = rng.uniform(0, np.pi)
    width = rng.uniform(3, 16)
    centre = np.array([stencil.size[1], stencil.size[0]]) / 2
    crossing = angle + np.pi / 2 + rng.normal(0, 0.1)
    for direction, count in ((angle, rng.integers(1, 7)), (crossing, rng.integers(0, 6))):
        along = np.array([np.cos(direction), np.sin(direction)])
        across = np.array([-along[1], along[0]])
        for offset in rng.uniform(-0.6, 0.6, int(count)) * extent:
            reach = rng.uniform(0.3, 1.0, 2) * extent
            start = centre + offset * across - reach[0] * along
            road = walk(rng, start, direction, reach.sum(), rng.choice([0.0, 0.04]))
            stencil.stroke(road, width * rng.uniform(0.6, 1.1))


def rim(alpha: np.ndarray, width: float) -> np.ndarray:
    """A band of about `width` pixels on the edge of `alpha`: float32 `(H, W)` in [0, 1]."""
    return 4 * np.clip(soften(alpha, width), 0, 1) * (1 - np.clip(soften(alpha, width), 0, 1))


def optics(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gamma, contrast, grey conversion, speckle, blur, noise and JPEG: float `(H, W, 3)` to uint8 `(H, W, 3)`."""
    size = image.shape[:2]
    image = np.clip(image, 0, 1) ** np.exp(rng.normal(0, 0.25))
    if rng.random() < 0.3:  # a dim or a washed-out picture
        low, high = rng.uniform(0, 0.3), rng.uniform(0.4, 1.0)
        image = low + (high - low) * image
    if rng.random() < 0.25:
        image = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    if rng.random() < 0.1:
        looks = rng.uniform(3, 20)
        image = image * rng.gamma(looks, 1 / looks, size).astype(np.float32)[..., None]
    picture = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    if rng.random() < 0.6:
        sigma = float(rng.choice([0.5, 0.8, 1.2, 2.0], p=[0.4, 0.3, 0.2, 0.1]))
        picture = picture.filter(ImageFilter.GaussianBlur(sigma))
    if rng.random() < 0.6:
        deviation = rng.exponential(4.0)
        noise = deviation * rng.standard_normal((*size, 3 if rng.random() < 0.5 else 1), dtype=np.float32)
        picture = Image.fromarray(np.clip(np.asarray(picture, dtype=np.float32) + noise, 0, 255).astype(np.uint8))
    if rng.random() < 0.4:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=int(rng.integers(30, 95)))
        picture = Image.open(buffer).convert("RGB")
    return np.array(picture, dtype=np.uint8)


def camouflage_strokes(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Strong random edges that belong to no object: float32 `(H, W)` around zero."""
    return (fractal_noise(rng, size, rng.uniform(10, 40)) > rng.uniform(-0.5, 1.0)).astype(np.float32)
