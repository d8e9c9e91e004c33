"""What happens to a picture between the scene and the file: light, shadow, optics, sensor, compression."""

import numpy as np

from .noise import coordinates, smooth_noise, soften


def relief(alpha: np.ndarray, rng: np.random.Generator, depth: float) -> np.ndarray:
    """Brightness of a bump of the form `alpha` `(H, W)` under a random light: float32 `(H, W)` around zero."""
    sigma = rng.uniform(0.1, 0.4) * np.sqrt(alpha.sum() + 1.0)
    dy, dx = np.gradient(soften(alpha, float(np.clip(sigma, 1.0, 30.0))))
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * dx + np.sin(angle) * dy
    return depth * slope / (np.abs(slope).max() + 1e-6)


def lighting(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uneven light over the whole picture `(H, W, 3)`: a gradient, clouds or a dark border."""
    size = image.shape[:2]
    y, x = coordinates(size)
    field = np.ones(size, dtype=np.float32)
    if rng.random() < 0.5:
        angle = rng.uniform(0, 2 * np.pi)
        field += rng.uniform(0, 0.35) * ((x / size[1] - 0.5) * np.cos(angle) + (y / size[0] - 0.5) * np.sin(angle)) * 2
    if rng.random() < 0.3:
        field += rng.uniform(0, 0.2) * smooth_noise(rng, size, rng.uniform(60, 150))
    if rng.random() < 0.2:
        distance = np.hypot(x / size[1] - 0.5, y / size[0] - 0.5)
        field *= 1 - rng.uniform(0.2, 0.9) * np.clip(2 * distance - 0.4, 0, 1)
    return image * np.maximum(field, 0.05)[..., None]


def shade(image: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Darken `image` `(H, W, 3)` inside `alpha` as a cast shadow does: the texture stays, the colour cools."""
    strength = rng.uniform(0.3, 0.8)
    tint = 1 - strength * (1 + np.array([0.06, 0.0, -0.1]) * rng.uniform(0, 1))
    soft = soften(alpha, rng.uniform(0.5, 2.5))[..., None]
    return image * (1 - soft * (1 - tint))
