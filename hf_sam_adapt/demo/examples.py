"""The examples of the page, drawn when it starts: nothing is downloaded, and nobody's pictures are in the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.synthetic import draw_sample


@dataclass(frozen=True)
class Example:
    """A test image of a drawn domain.

    Attributes:
        domain, number: which.
        adapter: value in the page's list of the one that it is shown with.
    """

    domain: str
    number: int
    adapter: str

    def save(self, folder: Path) -> tuple[Path, Path]:
        """Draw it into image and mask files."""
        image, mask = draw_sample(self.domain, "test", self.number)
        return _save(folder, f"{self.domain}_{self.number}", image, mask)


EXAMPLES = (
    Example("speckle", 12, "radar-fields"),
    Example("landcover", 0, "land-cover"),
    Example("polyp", 2, "three-domains"),
    Example("shadow", 3, "three-domains"),
    Example("speckle", 9, "radar-fields"),
    Example("camouflage", 2, "three-domains"),
)
ROUTED = (("speckle", 3), ("polyp", 5), ("shadow", 9), ("speckle", 13), ("polyp", 8), ("camouflage", 5))
TAUGHT = ("speckle", 5)  # the domain of the Adapt tab's example, and how many of its images


def save_routed(folder: Path) -> list[Path]:
    """The mixed set of the Route tab; the last image is of a domain that no pool of ours has seen."""
    return [Example(domain, number, "").save(folder)[0] for domain, number in ROUTED]


def save_taught(folder: Path) -> list[tuple[Path, Path]]:
    """Images with masks for the Adapt tab."""
    domain, count = TAUGHT
    return [_save(folder, f"{domain}_{n}", *draw_sample(domain, "train", n)) for n in range(count)]


def _save(folder: Path, name: str, image: np.ndarray, mask: np.ndarray) -> tuple[Path, Path]:
    paths = folder / f"{name}.png", folder / f"{name}_mask.png"
    Image.fromarray(image).save(paths[0])
    Image.fromarray(mask * 255 if mask.max(initial=0) <= 1 else mask).save(paths[1])
    return paths
