"""The drawn domains `synthetic:<name>`: small, seeded, without state, not solved by a threshold or a mean colour.

Each of them asks for something other than the salient thing that `tiny` was pre-trained to find: its look-alikes are
in the picture, too, and are background.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from .drawing.effects import lighting, relief, shade
from .drawing.materials import Material
from .drawing.noise import Size, fractal_noise, smooth_noise, soften
from .drawing.shapes import Stencil, creature, patch, random_point, solid, walk


SIZES: tuple[Size, ...] = ((192, 256), (224, 224), (256, 192))  # (height, width) in pixels
Drawing = tuple[np.ndarray, np.ndarray]  # float (H, W, 3) around [0, 1], and the mask uint8 (H, W)


@dataclass(frozen=True)
class SyntheticDomain:
    """A drawn domain: how to draw it, what its classes are called, and whether `draw` takes the looks of a radar."""

    draw: Callable[..., Drawing]
    id2label: dict[int, str]
    radar: bool = False


def draw_sample(
    domain: str, split: str, index: int, seed: int = 0, size: Size | None = None, looks: float | None = None
) -> Drawing:
    """Draw one sample; the same arguments give the same sample, bit for bit.

    Args:
        domain: a key of `SYNTHETIC_DOMAINS`.
        split: any name; `train`, `val` and `test` do not overlap.
        index: number of the sample.
        seed: another seed is another data set.
        size: (height, width) in pixels; None = drawn from `SIZES`.
        looks: of the speckle of a radar domain, fewer = stronger; None = the domain's. The mask does not depend on it.

    Returns:
        Image uint8 (H, W, 3) and mask uint8 (H, W) of class indices.
    """
    rng = np.random.default_rng([crc32(domain.encode()), crc32(split.encode()), index, seed])
    size = SIZES[rng.integers(len(SIZES))] if size is None else size
    picture, mask = SYNTHETIC_DOMAINS[domain].draw(rng, size, **({} if looks is None else {"looks": looks}))
    noise = rng.normal(0, 0.012, (*size, 1))
    return (np.clip(picture + noise, 0, 1) * 255).astype(np.uint8), mask


def _tone(rng: np.random.Generator) -> np.ndarray:
    """A colour that says nothing about its domain: any grey, faintly tinted."""
    return np.clip(rng.uniform(0.25, 0.75) + 0.05 * rng.standard_normal(3), 0.05, 0.95).astype(np.float32)


def _texture(rng: np.random.Generator, colour: np.ndarray, family: str, scale: float, amplitude: float) -> Material:
    accent = np.full(3, amplitude, np.float32)
    return Material(colour, accent, family, scale, angle=float(rng.uniform(0, np.pi)), warp=float(rng.uniform(1, 4)))


def _body(
    rng: np.random.Generator,
    size: Size,
    radius: tuple[float, float],
    shapes: Sequence[Callable[..., np.ndarray]] = (solid,),
) -> np.ndarray:
    """A shape of a radius in that range (share of the longer side) that covers at least 2 % of the image."""
    while True:
        alpha = shapes[int(rng.integers(len(shapes)))](rng, size, rng.uniform(*radius) * max(size))
        if alpha.mean() >= 0.02:
            return alpha


def draw_polyp(rng: np.random.Generator, size: Size) -> Drawing:
    """Lumps with a fine vessel texture on a folded wall of their own colour; smooth lumps beside them are healthy."""
    colour = _tone(rng)
    picture = _texture(rng, colour, "clouds", 30.0, 0.03).paint(rng, size)
    for _ in range(int(rng.integers(1, 5))):
        stencil = Stencil(size)
        stencil.stroke(walk(rng, random_point(rng, size, -0.1), rng.uniform(0, 6.3), 1.2 * max(size), 0.12), 9.0)
        picture = picture + rng.normal(0, 0.09) * soften(stencil.coverage(), 4.0)[..., None]
    mask = np.zeros(size, np.uint8)
    sick = [True] * int(rng.integers(1, 3)) + [False] * int(rng.integers(0, 3))
    for is_polyp in sick:
        alpha = _body(rng, size, (0.14, 0.3))
        vessels = smooth_noise(rng, size, 2.2) * 0.075 if is_polyp else 0.0
        lump = (relief(alpha, rng, rng.uniform(0.12, 0.25)) + vessels)[..., None]
        picture = picture + lump * soften(alpha, 1.2)[..., None]
        mask[alpha > 0.5] = is_polyp
    for _ in range(int(rng.integers(0, 8))):
        glint = solid(rng, size, rng.uniform(0.006, 0.02) * max(size))
        picture = picture + 0.5 * soften(glint, 1.0)[..., None]
    return lighting(picture, rng), mask


def draw_camouflage(rng: np.random.Generator, size: Size) -> Drawing:
    """An animal in the pattern of its surroundings, which runs another way on it; strokes of no object over both."""
    ground = _texture(rng, _tone(rng), "stripes", rng.uniform(7, 11), rng.uniform(0.08, 0.14))
    turned = Material(**{**ground.__dict__, "angle": ground.angle + rng.uniform(0.9, 2.2)})
    alpha = _body(rng, size, (0.2, 0.4), (solid, creature))
    edge = soften(alpha, 1.0)[..., None]
    picture = ground.paint(rng, size) * (1 - edge) + turned.paint(rng, size) * edge
    picture = picture + 0.1 * smooth_noise(rng, size, rng.uniform(30, 80))[..., None]
    return lighting(picture, rng), (alpha > 0.5).astype(np.uint8)


def draw_shadow(rng: np.random.Generator, size: Size) -> Drawing:
    """A cast shadow over ground of several kinds; things that are dark by themselves are none."""
    picture = _texture(rng, _tone(rng) + 0.1, "fractal", 20.0, 0.05).paint(rng, size)
    for _ in range(int(rng.integers(2, 6))):
        alpha = patch(rng, size, rng.uniform(0.1, 0.35)) if rng.random() < 0.5 else solid(rng, size, 0.2 * max(size))
        cover = soften(alpha, 0.8)[..., None]
        family = ("fractal", "spots", "weave", "mosaic")[rng.integers(4)]
        surface = _texture(rng, np.float32(rng.uniform(0.15, 0.9)) * np.ones(3, np.float32), family, 10.0, 0.1)
        picture = picture * (1 - cover) + surface.paint(rng, size) * cover
    alpha = (
        patch(rng, size, rng.uniform(0.15, 0.35)) if rng.random() < 0.4 else _body(rng, size, (0.3, 0.4), (creature,))
    )
    shaded = shade(np.clip(picture, 0.05, None), alpha, rng)
    return lighting(shaded, rng), (alpha > 0.5).astype(np.uint8)


def draw_speckle(rng: np.random.Generator, size: Size, looks: float = 1.0) -> Drawing:
    """A radar amplitude of few looks: brighter fields under multiplicative gamma noise, darker ones beside them."""
    level = rng.uniform(0.15, 0.4)
    field = level * np.exp(0.15 * fractal_noise(rng, size, 60.0))
    bright, dark = (patch(rng, size, rng.uniform(0.12, 0.3)) for _ in range(2))
    field = np.where(dark > 0.5, field * rng.uniform(0.4, 0.6), field)
    field = np.where(bright > 0.5, level * rng.uniform(1.9, 2.6), field)
    return _speckled(rng, field, looks), (bright > 0.5).astype(np.uint8)


def draw_cells(rng: np.random.Generator, size: Size) -> Drawing:
    """A crowd of bodies of one brightness; the granular ones are meant, the smooth ones are not."""
    colour = _tone(rng)
    step = np.float32(rng.choice([-0.16, 0.16]))
    picture = _texture(rng, colour, "clouds", 40.0, 0.03).paint(rng, size)
    mask = np.zeros(size, np.uint8)
    radius = rng.uniform(0.06, 0.1) * max(size)
    for _ in range(int(rng.integers(10, 22))):
        alpha = solid(rng, size, radius * rng.uniform(0.8, 1.3))
        is_granular = rng.random() < 0.5
        grains = 0.12 * smooth_noise(rng, size, 2.0) if is_granular else 0.01 * smooth_noise(rng, size, 2.0)
        cover = soften(alpha, 0.8)[..., None]
        picture = picture * (1 - cover) + (colour + step + grains[..., None]) * cover
        mask[alpha > 0.5] = is_granular
    return lighting(picture, rng), mask


LANDCOVER = {0: "background", 1: "water", 2: "field", 3: "forest", 4: "town"}


def draw_landcover(rng: np.random.Generator, size: Size, looks: float = 3.0) -> Drawing:
    """A radar scene of five classes that differ in brightness and texture; `looks` = 1 is the strongest noise."""
    scores = np.stack([smooth_noise(rng, size, rng.uniform(45, 90)) for _ in LANDCOVER])
    mask = scores.argmax(0).astype(np.uint8)
    gain = rng.uniform(0.8, 1.2)
    rows = np.sin(2 * np.pi * (np.mgrid[: size[0], : size[1]] * rng.normal(0, 0.13, (2, 1, 1))).sum(0))
    fields = {
        0: np.full(size, 0.3),
        1: np.full(size, 0.07),
        2: 0.3 * (1 + 0.5 * rows),
        3: 0.45 * np.exp(0.45 * smooth_noise(rng, size, 4.0)),
        4: np.where(smooth_noise(rng, size, 5.0) > 0.8, 1.3, 0.3),
    }
    field = np.select([mask == label for label in fields], list(fields.values()))
    return _speckled(rng, gain * field, looks), mask


def _speckled(rng: np.random.Generator, field: np.ndarray, looks: float) -> np.ndarray:
    """Amplitude (H, W) -> grey picture (H, W, 3) under gamma noise of `looks` looks."""
    noisy = field * np.sqrt(rng.gamma(looks, 1 / looks, field.shape))
    return np.repeat(noisy[..., None], 3, axis=2)


SYNTHETIC_DOMAINS = {
    "camouflage": SyntheticDomain(draw_camouflage, {0: "background", 1: "animal"}),
    "cells": SyntheticDomain(draw_cells, {0: "background", 1: "granular cell"}),
    "landcover": SyntheticDomain(draw_landcover, LANDCOVER, radar=True),
    "polyp": SyntheticDomain(draw_polyp, {0: "background", 1: "polyp"}),
    "shadow": SyntheticDomain(draw_shadow, {0: "background", 1: "shadow"}),
    "speckle": SyntheticDomain(draw_speckle, {0: "background", 1: "bright field"}, radar=True),
}
