"""Colours and textures. A material can be painted again and again: same statistics, another realisation."""

from dataclasses import dataclass, replace

import numpy as np

from .noise import Size, cell_distances, fractal_noise, smooth_noise, soften, standardise, stripes


FAMILIES = ("plain", "fractal", "grain", "stripes", "spots", "mosaic", "weave", "clouds")


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """A colour float32 `(3,)` in [0, 1], greyish more often than saturated."""
    grey = rng.uniform(0.08, 0.92)
    saturation = rng.choice([0.0, 0.12, 0.3], p=[0.25, 0.45, 0.3])
    return np.clip(grey + saturation * rng.standard_normal(3), 0.02, 0.98).astype(np.float32)


@dataclass(frozen=True)
class Material:
    """What a surface looks like.

    `colour` `(3,)` in [0, 1]; `accent` `(3,)` the direction in colour space along which the texture moves; `family`
    one of FAMILIES; `scale` its grain in pixels; `angle` in radians for directed textures; `warp` in pixels.
    """

    colour: np.ndarray
    accent: np.ndarray
    family: str
    scale: float
    angle: float
    warp: float

    def paint(self, rng: np.random.Generator, size: Size) -> np.ndarray:
        """One realisation: float32 `(H, W, 3)`."""
        return self.colour + self.pattern(rng, size)[..., None] * self.accent

    def pattern(self, rng: np.random.Generator, size: Size) -> np.ndarray:
        """The texture alone: float32 `(H, W)`, about zero mean and unit deviation."""
        scale = self.scale
        if self.family == "fractal":
            return fractal_noise(rng, size, scale, octaves=4, decay=0.6)
        if self.family == "grain":
            return smooth_noise(rng, size, min(2.5, scale / 4))
        if self.family == "stripes":
            return stripes(rng, size, max(4.0, scale), self.angle, self.warp)
        if self.family == "spots":
            return standardise(np.tanh(4 * (smooth_noise(rng, size, scale) - 0.7)))
        if self.family == "mosaic":
            index, _ = cell_distances(rng, size, count=int(np.clip(size[0] * size[1] / scale**2 / 4, 6, 40)))
            return rng.standard_normal(int(index.max()) + 1).astype(np.float32)[index]
        if self.family == "weave":
            first = stripes(rng, size, max(4.0, scale / 2), self.angle, self.warp / 3)
            return first * stripes(rng, size, max(4.0, scale / 2), self.angle + np.pi / 2, self.warp / 3)
        if self.family == "clouds":
            return soften(fractal_noise(rng, size, 2 * scale, octaves=2), 2.0)
        return 0.3 * smooth_noise(rng, size, 60.0)

    def near(self, rng: np.random.Generator, contrast: float) -> "Material":
        """A look-alike: the same family with colour, grain and direction moved by about `contrast`."""
        return replace(
            self,
            colour=np.clip(self.colour + contrast * 0.35 * rng.standard_normal(3), 0.02, 0.98).astype(np.float32),
            scale=self.scale * float(np.exp(contrast * rng.normal(0, 1.2))),
            angle=self.angle + rng.uniform(-1.5, 1.5),
            accent=self.accent * np.float32(np.exp(contrast * rng.normal(0, 0.8))),
        )


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
