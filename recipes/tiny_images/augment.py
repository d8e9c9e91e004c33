"""Changes of a photograph's pixels that leave its labels true: colour, grey, noise, blur, JPEG."""

import io

import numpy as np
from PIL import Image, ImageFilter


GREY = np.array([0.299, 0.587, 0.114], np.float32)


def changed_pixels(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, gamma, saturation and tint of uint8 (h, w, 3), and in some cases more."""
    if rng.random() < 0.8:
        image = _colour(image, rng)
    if rng.random() < 0.15:
        picture = Image.fromarray(image)
        image = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.6))))
    if rng.random() < 0.15:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "jpeg", quality=int(rng.integers(25, 85)))
        image = np.asarray(Image.open(buffer))
    if rng.random() < 0.1:
        noise = rng.standard_normal(image.shape[:2], np.float32)[..., None] * rng.uniform(2, 14)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


def _colour(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One matrix for grey or saturation and tint, one table for gamma, contrast and brightness."""
    saturation = 0.0 if rng.random() < 0.12 else rng.uniform(0.6, 1.4)
    tint = rng.uniform(0.88, 1.12, 3) if saturation else np.ones(3)
    matrix = (saturation * np.eye(3) + (1 - saturation) * GREY) * tint[:, None]
    table = np.arange(256) / 255
    table = (table ** rng.uniform(0.7, 1.4) - 0.5) * rng.uniform(0.7, 1.3) + 0.5 + rng.uniform(-0.12, 0.12)
    if rng.random() < 0.03:
        table = 1 - table
    values = (255 * table.clip(0, 1)).astype(np.float32)[image]
    return np.clip(values @ matrix.T.astype(np.float32), 0, 255).astype(np.uint8)
