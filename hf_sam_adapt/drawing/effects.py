"""What happens to a picture between the scene and the file: light, shadow, optics, sensor, compression."""

import io

import numpy as np
from PIL import Image, ImageFilter

from .noise import coordinates, fractal_noise, smooth_noise, soften


def relief(alpha: np.ndarray, rng: np.random.Generator, depth: float) -> np.ndarray:
    """Brightness of a bump of the form `alpha` `(H, W)` under a random light: float32 `(H, W)` around zero."""
    sigma = rng.uniform(0.1, 0.4) * np.sqrt(alpha.sum() + 1.0)
    dy, dx = np.gradient(soften(alpha, float(np.clip(sigma, 1.0, 30.0))))
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * dx + np.sin(angle) * dy
    return depth * slope / (np.abs(slope).max() + 1e-6)


def rim(alpha: np.ndarray, width: float) -> np.ndarray:
    """A band of about `width` pixels on the edge of `alpha`: float32 `(H, W)` in [0, 1]."""
    return 4 * np.clip(soften(alpha, width), 0, 1) * (1 - np.clip(soften(alpha, width), 0, 1))


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


def shade(image: np.ndarray, alpha: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Darken `image` `(H, W, 3)` inside `alpha` as a cast shadow does: the texture stays, the colour cools."""
    strength = rng.uniform(0.3, 0.8)
    tint = 1 - strength * (1 + np.array([0.06, 0.0, -0.1]) * rng.uniform(0, 1))
    soft = soften(alpha, rng.uniform(0.5, 2.5))[..., None]
    return image * (1 - soft * (1 - tint))


def camouflage_strokes(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Strong random edges that belong to no object: float32 `(H, W)` around zero."""
    return (fractal_noise(rng, size, rng.uniform(10, 40)) > rng.uniform(-0.5, 1.0)).astype(np.float32)
