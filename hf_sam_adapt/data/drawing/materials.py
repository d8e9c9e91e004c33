"""Colours and textures. A material can be painted again and again: same statistics, another realisation."""

from dataclasses import dataclass, replace

import numpy as np

from .noise import Size, cell_distances, fractal_noise, smooth_noise, soften, standardise, stripes


FAMILIES = ("plain", "fractal", "grain", "stripes", "spots", "mosaic", "weave", "clouds")


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
