"""Scenes for the pre-training of `tiny`: an image, its objects, and where there is one, its salient class."""

from dataclasses import dataclass

import numpy as np

from hf_sam_adapt.data.drawing.effects import lighting, relief, shade
from hf_sam_adapt.data.drawing.materials import Material
from hf_sam_adapt.data.drawing.noise import Size, smooth_noise, soften
from hf_sam_adapt.data.drawing.shapes import Stencil, creature, outline, patch, random_point, solid

from .parts import broken, camouflage_strokes, network, optics, random_colour, random_material, rim


@dataclass
class Scene:
    """A drawn picture.

    `image` uint8 `(H, W, 3)`; `objects` uint8 `(H, W)`: 0 or the number of the visible object at each pixel; `salient`
    uint8 `(H, W)`: 1 on the class that a look without a prompt should find, all zero where the scene has none.
    """

    image: np.ndarray
    objects: np.ndarray
    salient: np.ndarray


class Canvas:
    """A picture under construction: float32 `(H, W, 3)` around [0, 1] with the numbers of the objects put on it."""

    def __init__(self, picture: np.ndarray):
        self.picture = picture
        self.size: Size = picture.shape[:2]
        self.objects = np.zeros(self.size, dtype=np.uint8)
        self.salient = np.zeros(self.size, dtype=np.uint8)
        self.count = 0

    def put(self, alpha: np.ndarray, surface: np.ndarray, opacity: float = 1.0, salient: bool = False) -> None:
        """Lay `surface` `(H, W, 3)` over the picture where `alpha` `(H, W)` covers it, as one new object."""
        weight = (opacity * alpha)[..., None]
        self.picture = self.picture * (1 - weight) + surface * weight
        self.mark(alpha, salient)

    def mark(self, alpha: np.ndarray, salient: bool = False) -> None:
        """Number the pixels of `alpha` as one object without painting anything."""
        inside = alpha > 0.5
        if self.count < 254 and inside.any():
            self.count += 1
            self.objects[inside] = self.count
        self.salient[inside] = salient


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _backdrop(rng: np.random.Generator, size: Size) -> tuple[np.ndarray, Material]:
    """A background of one material, or of two parted by a soft noise border."""
    material = random_material(rng)
    picture = material.paint(rng, size)
    if rng.random() < 0.35:
        second = material.near(rng, rng.uniform(0.2, 1.5)).paint(rng, size)
        border = np.clip(smooth_noise(rng, size, rng.uniform(30, 120)) * rng.uniform(0.5, 6) + 0.5, 0, 1)[..., None]
        picture = picture * (1 - border) + second * border
    return picture, material


def _surface(rng: np.random.Generator, size: Size, material: Material, alpha: np.ndarray, contrast: float):
    """The painted surface of an object whose colour differs from `material` by about `contrast`."""
    if rng.random() < 0.5:
        surface = material.near(rng, contrast).paint(rng, size)
    else:
        direction = rng.standard_normal(3) * 0.6 + rng.choice([-1, 1])
        colour = material.colour + contrast * direction * 0.5
        surface = random_material(rng, np.clip(colour, 0.02, 0.98), strength=0.8).paint(rng, size)
    if rng.random() < 0.5:
        surface = surface + relief(alpha, rng, rng.uniform(0.05, 0.35))[..., None]
    if rng.random() < 0.2:
        surface = surface + rng.choice([-1, 1]) * rng.uniform(0.05, 0.3) * rim(alpha, rng.uniform(1, 3))[..., None]
    return surface.astype(np.float32)


def _shape(rng: np.random.Generator, size: Size, radius: float) -> np.ndarray:
    return (solid, creature, broken)[rng.choice(3, p=[0.5, 0.3, 0.2])](rng, size, radius)


def draw_objects(rng: np.random.Generator, size: Size) -> Canvas:
    """Overlapping objects of every size; a single one is salient."""
    picture, material = _backdrop(rng, size)
    canvas = Canvas(picture)
    count = int(rng.choice([1, 2, 4, 8, 14], p=[0.3, 0.15, 0.25, 0.2, 0.1]))
    contrast = _log_uniform(rng, 0.12, 1.0)
    for _ in range(count):
        alpha = _shape(rng, size, _log_uniform(rng, 0.05, 0.42) * max(size))
        if rng.random() < 0.2:  # a shadow cast beside it belongs to nothing
            shift = rng.integers(-6, 7, 2)
            canvas.picture = shade(canvas.picture, soften(np.roll(alpha, shift, (0, 1)), 3.0), rng)
        canvas.put(alpha, _surface(rng, size, material, alpha, contrast), salient=count == 1)
    return canvas


def draw_camouflage(rng: np.random.Generator, size: Size) -> Canvas:
    """One object covered with its surroundings' own texture, betrayed by small differences and a broken edge."""
    picture, material = _backdrop(rng, size)
    if rng.random() < 0.5:
        strokes = camouflage_strokes(rng, size)[..., None] * rng.uniform(0.05, 0.2)
        picture = picture + strokes
    canvas = Canvas(picture)
    for _ in range(int(rng.choice([1, 2], p=[0.85, 0.15]))):
        alpha = (creature if rng.random() < 0.6 else solid)(rng, size, rng.uniform(0.12, 0.4) * max(size))
        surface = material.near(rng, rng.uniform(0.15, 0.6)).paint(rng, size)
        if rng.random() < 0.5:
            surface = surface + camouflage_strokes(rng, size)[..., None] * rng.uniform(0.03, 0.15)
        surface = surface + relief(alpha, rng, rng.uniform(0.05, 0.25))[..., None]
        if rng.random() < 0.5:
            edge = rim(alpha, rng.uniform(0.8, 2.0)) * (smooth_noise(rng, size, 25) > 0)
            canvas.picture = canvas.picture - rng.uniform(0.05, 0.25) * edge[..., None]
        canvas.put(alpha, surface, salient=True)
    return canvas


def draw_cells(rng: np.random.Generator, size: Size) -> Canvas:
    """A crowd of like things on an even ground: dim spots in the dark, stained bodies, droplets."""
    dark = rng.random() < 0.5
    ground = np.full(3, rng.uniform(0.01, 0.15)) if dark else 0.5 + 0.45 * rng.random(3)
    picture = random_material(rng, ground, strength=0.15 if dark else 0.4).paint(rng, size)
    canvas = Canvas(picture)
    radius = _log_uniform(rng, 0.018, 0.11) * max(size)
    colour = np.full(3, _log_uniform(rng, 0.12, 0.95)) if dark else np.clip(ground - rng.uniform(0.08, 0.6, 3), 0, 1)
    base = random_material(rng, colour, strength=0.5)
    kind = "ellipse" if rng.random() < 0.6 else "blob"
    for _ in range(int(np.clip(rng.uniform(0.03, 0.35) * size[0] * size[1] / (2.2 * radius**2), 2, 80))):
        stencil = Stencil(size)
        stencil.polygon(outline(rng, random_point(rng, size, -0.02), radius * _log_uniform(rng, 0.6, 1.5), kind))
        alpha = stencil.coverage()
        if not alpha.any():
            continue
        surface = base.colour * rng.uniform(0.6, 1.2) + 0.0 * picture
        if rng.random() < 0.3:
            surface = base.near(rng, 0.2).paint(rng, size)
        canvas.put(alpha, surface.astype(np.float32), opacity=rng.uniform(0.7, 1.0), salient=True)
    if rng.random() < 0.5:
        canvas.picture = canvas.picture + 0.4 * soften(canvas.picture.mean(2) - canvas.picture.mean(), 4.0)[..., None]
    return canvas


def draw_network(rng: np.random.Generator, size: Size) -> Canvas:
    """Thin structures over a patchwork: membranes around organelles, streets between houses, vessels, cracks."""
    picture, material = _backdrop(rng, size)
    canvas = Canvas(picture)
    for _ in range(int(rng.choice([0, 6, 25], p=[0.4, 0.3, 0.3]))):
        alpha = solid(rng, size, _log_uniform(rng, 0.015, 0.08) * max(size))
        canvas.put(alpha, _surface(rng, size, material, alpha, rng.uniform(0.2, 1.0)))
    alpha = network(rng, size)
    direction = rng.choice([-1, 1]) * _log_uniform(rng, 0.1, 0.6)
    surface = random_material(rng, np.clip(material.colour + direction, 0, 1), strength=0.5).paint(rng, size)
    canvas.put(alpha, surface, opacity=rng.uniform(0.6, 1.0), salient=True)
    for _ in range(int(rng.choice([0, 8], p=[0.6, 0.4]))):  # what hides parts of it: crowns, cars, vesicles
        alpha = solid(rng, size, _log_uniform(rng, 0.01, 0.05) * max(size))
        canvas.put(alpha, _surface(rng, size, material, alpha, rng.uniform(0.2, 1.0)))
    return canvas


def draw_shadow(rng: np.random.Generator, size: Size) -> Canvas:
    """A scene of some objects with a darker region that keeps their texture."""
    canvas = draw_objects(rng, size) if rng.random() < 0.6 else Canvas(_backdrop(rng, size)[0])
    canvas.salient[:] = 0
    canvas.picture = np.clip(canvas.picture, 0, None) + 0.15
    maker = rng.choice(4)
    if maker == 0:
        alpha = patch(rng, size, rng.uniform(0.08, 0.4))
    elif maker == 1:
        alpha = np.maximum(creature(rng, size, 0.35 * max(size)), solid(rng, size, 0.2 * max(size)))
    else:
        alpha = _shape(rng, size, rng.uniform(0.15, 0.5) * max(size))
    canvas.picture = shade(canvas.picture, alpha, rng)
    canvas.mark(alpha, salient=True)
    return canvas


def draw_patches(rng: np.random.Generator, size: Size) -> Canvas:
    """Regions of different texture with ragged borders."""
    picture, material = _backdrop(rng, size)
    canvas = Canvas(picture)
    count = int(rng.integers(1, 5))
    for _ in range(count):
        alpha = patch(rng, size, rng.uniform(0.05, 0.4))
        canvas.put(alpha, _surface(rng, size, material, alpha, _log_uniform(rng, 0.2, 1.0)), salient=count == 1)
    return canvas


def draw_defect(rng: np.random.Generator, size: Size) -> Canvas:
    """A uniform, often grey surface with small or faint faults."""
    material = random_material(rng, np.full(3, rng.uniform(0.2, 0.8)), strength=0.35)
    canvas = Canvas(material.paint(rng, size))
    for _ in range(int(rng.choice([1, 2, 4], p=[0.6, 0.25, 0.15]))):
        kind = rng.choice(4)
        if kind == 0:
            stencil = Stencil(size)
            from_point = random_point(rng, size)
            curve = _crack(rng, from_point, max(size))
            stencil.stroke(curve, rng.uniform(1.2, 5.0))
            alpha = stencil.coverage()
        elif kind == 1:
            alpha = solid(rng, size, _log_uniform(rng, 0.012, 0.06) * max(size))
        else:
            alpha = _shape(rng, size, _log_uniform(rng, 0.06, 0.4) * max(size))
        step = rng.choice([-1, 1], p=[0.7, 0.3]) * _log_uniform(rng, 0.05, 0.4)
        surface = material.near(rng, 0.3).paint(rng, size) + step
        canvas.put(soften(alpha, 1.5) if kind > 1 else alpha, surface, opacity=rng.uniform(0.6, 1.0), salient=True)
    return canvas


def _crack(rng: np.random.Generator, start: np.ndarray, extent: int) -> np.ndarray:
    turns = rng.uniform(0, 2 * np.pi) + np.cumsum(0.35 * rng.standard_normal(int(rng.integers(4, 30))))
    return start + np.cumsum(extent / 50 * np.stack([np.cos(turns), np.sin(turns)], axis=1), axis=0)


def draw_street(rng: np.random.Generator, size: Size) -> Canvas:
    """A street seen along it: sky, ground, houses, a road that narrows, things that stand on it."""
    height, width = size
    horizon = rng.uniform(0.25, 0.6) * height
    canvas = Canvas(random_material(rng, 0.6 + 0.35 * rng.random(3), strength=0.3).paint(rng, size))
    x_far = rng.uniform(0.2, 0.8) * width

    def slab(corners: list, material: Material, salient: bool = False) -> None:
        stencil = Stencil(size)
        stencil.polygon(np.array(corners, dtype=float))
        alpha = stencil.coverage()
        surface = material.paint(rng, size) + relief(alpha, rng, rng.uniform(0, 0.15))[..., None]
        canvas.put(alpha, surface, salient=salient)

    ground = random_material(rng)
    slab([(0, horizon), (width, horizon), (width, height), (0, height)], ground)
    edge = 0.0
    while edge < width:  # houses and trees on the horizon
        step = rng.uniform(0.06, 0.35) * width
        top = horizon - rng.uniform(0.05, 1.0) * horizon
        house = random_material(rng)
        roof = [(edge, top), (edge + step, top + rng.normal(0, 6))]
        slab([*roof, (edge + step, horizon + 3), (edge, horizon + 3)], house)
        edge += step * rng.uniform(0.7, 1.3)
    left, right = sorted(rng.uniform(-0.6, 1.6, 2) * width)
    right = max(right, left + 0.5 * width)
    narrow = rng.uniform(0.01, 0.1) * width
    pavement = rng.uniform(1.05, 1.6)
    middle = (left + right) / 2
    sides = [middle + pavement * (left - middle), middle + pavement * (right - middle)]
    far = [(x_far - narrow, horizon), (x_far + narrow, horizon)]
    slab([*far, (sides[1], height), (sides[0], height)], ground.near(rng, 0.8))
    road = random_material(rng, np.full(3, rng.uniform(0.15, 0.6)), strength=0.5)
    slab([*far, (right, height), (left, height)], road, salient=True)
    for _ in range(int(rng.integers(0, 9))):  # cars, people and poles, larger when nearer
        near = rng.uniform(0.02, 1.0)
        base_y = horizon + near * (height - horizon)
        base_x = rng.uniform(0, width)
        tall = (0.05 + 0.4 * near) * height * rng.choice([0.5, 1.0, 1.6])
        wide = tall * rng.choice([0.08, 0.3, 1.4])
        stencil = Stencil(size)
        points = outline(rng, np.zeros(2), 1.0, str(rng.choice(["box", "blob", "polygon"])))
        span = np.ptp(points, axis=0) + 1e-6
        stencil.polygon(points / span * [wide, tall] + [base_x, base_y - tall / 2])
        alpha = stencil.coverage()
        canvas.put(alpha, _surface(rng, size, random_material(rng), alpha, rng.uniform(0.2, 1.0)))
    if rng.random() < 0.4:
        canvas.picture = shade(canvas.picture + 0.1, patch(rng, size, rng.uniform(0.1, 0.4)), rng)
    return canvas


def draw_bulge(rng: np.random.Generator, size: Size) -> Canvas:
    """A smooth lump on a folded surface of nearly its own colour, with glints, under a lamp."""
    colour = random_colour(rng)
    material = random_material(rng, colour, strength=0.5)
    picture = material.paint(rng, size)
    for _ in range(int(rng.integers(0, 6))):  # folds: soft bands of light and dark
        band = soften(network_band(rng, size), rng.uniform(2, 6))
        picture = picture + rng.normal(0, 0.12) * band[..., None]
    canvas = Canvas(picture)
    for _ in range(int(rng.choice([1, 2], p=[0.85, 0.15]))):
        alpha = soften(solid(rng, size, rng.uniform(0.08, 0.42) * max(size)), rng.uniform(0.6, 3.0))
        surface = material.near(rng, rng.uniform(0.1, 0.7)).paint(rng, size)
        surface = surface + relief(alpha, rng, rng.uniform(0.1, 0.4))[..., None]
        surface = surface + rng.uniform(-0.1, 0.2) * soften(alpha, 12.0)[..., None]
        canvas.put(alpha, surface, opacity=rng.uniform(0.7, 1.0), salient=True)
    for _ in range(int(rng.integers(0, 12))):
        glint = solid(rng, size, rng.uniform(0.005, 0.03) * max(size))
        canvas.picture = canvas.picture + soften(glint, 1.0)[..., None] * rng.uniform(0.3, 0.9)
    return canvas


def network_band(rng: np.random.Generator, size: Size) -> np.ndarray:
    """One long soft-edged band across the picture: float32 `(H, W)`."""
    stencil = Stencil(size)
    start = random_point(rng, size, -0.1)
    turns = rng.uniform(0, 2 * np.pi) + np.cumsum(0.12 * rng.standard_normal(60))
    steps = 8.0 * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    stencil.stroke(start + np.cumsum(steps, axis=0), rng.uniform(4, 25))
    return stencil.coverage()


SCENES = (
    (draw_objects, 0.22),
    (draw_camouflage, 0.14),
    (draw_cells, 0.13),
    (draw_network, 0.14),
    (draw_shadow, 0.09),
    (draw_patches, 0.06),
    (draw_defect, 0.08),
    (draw_street, 0.07),
    (draw_bulge, 0.07),
)


def draw_scene(seed: int, index: int, size: Size = (256, 256)) -> Scene:
    """Picture number `index` of the endless series `seed`: the same arguments give the same picture, bit for bit."""
    rng = np.random.default_rng((seed, index))
    makers, shares = zip(*SCENES)
    canvas = makers[rng.choice(len(makers), p=np.array(shares) / sum(shares))](rng, size)
    image = optics(lighting(canvas.picture, rng), rng)
    return Scene(image=image, objects=canvas.objects, salient=canvas.salient)
