"""Random fields: the raw material of every drawn texture. All take an explicit generator and keep no state."""

import numpy as np
from PIL import Image


Size = tuple[int, int]  # (height, width) in pixels


def resize_field(field: np.ndarray, size: Size, method: int = Image.Resampling.BICUBIC) -> np.ndarray:
    """Resample a float field `(h, w)` to `size`; float32."""
    image = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.asarray(image.resize((size[1], size[0]), method), dtype=np.float32)


def soften(field: np.ndarray, sigma: float) -> np.ndarray:
    """Blur `(H, W)` by about `sigma` pixels: down and up again, which costs less than a convolution at any width."""
    height, width = field.shape
    factor = max(1.0, 1.7 * sigma)
    small = (max(2, round(height / factor)), max(2, round(width / factor)))
    return resize_field(resize_field(field, small, Image.Resampling.BILINEAR), (height, width))


def standardise(field: np.ndarray) -> np.ndarray:
    return (field - field.mean()) / (field.std() + 1e-6)


def smooth_noise(rng: np.random.Generator, size: Size, scale: float) -> np.ndarray:
    """Gaussian noise with bumps of about `scale` pixels, zero mean, unit deviation: float32 `(H, W)`."""
    height, width = size
    grid = (max(2, round(height / scale)) + 2, max(2, round(width / scale)) + 2)
    noise = rng.standard_normal(grid, dtype=np.float32)
    if scale <= 1.0:
        return noise[:height, :width]
    larger = (int(grid[0] * scale) + 1, int(grid[1] * scale) + 1)
    field = resize_field(noise, (max(larger[0], height), max(larger[1], width)))
    return standardise(field[:height, :width])


def fractal_noise(
    rng: np.random.Generator, size: Size, scale: float, octaves: int = 3, decay: float = 0.5
) -> np.ndarray:
    """Sum of smooth noises at scale, scale/2, …, each `decay` times weaker; zero mean, unit deviation."""
    field = np.zeros(size, dtype=np.float32)
    for octave in range(octaves):
        field += decay**octave * smooth_noise(rng, size, max(1.0, scale / 2**octave))
    return standardise(field)


def coordinates(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Pixel coordinates (y, x), each float32 `(H, W)`."""
    grid = np.mgrid[0 : size[0], 0 : size[1]].astype(np.float32)
    return grid[0], grid[1]


def stripes(rng: np.random.Generator, size: Size, period: float, angle: float, warp: float) -> np.ndarray:
    """A sine wave across `angle` (radians) of `period` pixels, bent by noise of `warp` pixels; in [-1, 1]."""
    y, x = coordinates(size)
    phase = x * np.cos(angle) + y * np.sin(angle) + warp * smooth_noise(rng, size, 6 * period)
    return np.sin(2 * np.pi * phase / period + rng.uniform(0, 6.3)).astype(np.float32)


def cell_distances(rng: np.random.Generator, size: Size, count: int, stretch: float = 1.0) -> tuple:
    """Voronoi cells of `count` random centres.

    Returns the nearest centre's index int32 `(H, W)` and `F2 - F1`, the difference of the distances to the two nearest
    centres in pixels, float32 `(H, W)`: small along the borders between cells.
    """
    y, x = coordinates(((size[0] + 1) // 2, (size[1] + 1) // 2))
    centres = rng.uniform(-0.1, 1.1, (count, 2)).astype(np.float32) * np.array(x.shape, dtype=np.float32)
    first = np.full(x.shape, np.inf, dtype=np.float32)
    second = first.copy()
    index = np.zeros(x.shape, dtype=np.float32)
    for number, (cy, cx) in enumerate(centres):
        distance = np.hypot(y - cy, stretch * (x - cx))
        closer = distance < first
        second = np.where(closer, first, np.minimum(second, distance))
        first = np.where(closer, distance, first)
        index[closer] = number
    nearest = resize_field(index, size, Image.Resampling.NEAREST).astype(np.int32)
    return nearest, 2.0 * resize_field(second - first, size)
