"""The drawn data sets `synthetic:<domain>`: an image exists only while it is looked at.

A radar domain takes the looks of its speckle, `synthetic:landcover@looks=1`: fewer looks, more noise on equal masks.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..names import DRAWN
from .channels import load_image
from .images import Header


if TYPE_CHECKING:
    import datasets


LOOKS = (0.01, 10_000.0)  # far beyond any radar on both sides
SIZES = {"train": 200, "val": 40, "test": 60}


class GeneratedReader:
    """Draws rows with the columns id, split and number."""

    checked_rows: int | None = 0
    draws_ignored = False

    def __init__(self, domain: str, looks: float | None = None, channels: int | None = None) -> None:
        self.domain, self.looks, self.channels = domain, looks, channels

    def name(self, row: dict[str, Any]) -> str:
        return f"{DRAWN}{self.domain} {row['id']}"

    def path(self, row: dict[str, Any]) -> str | None:
        return None

    def headers(self, row: dict[str, Any]) -> tuple[Header, Header]:
        image, mask = self._draw(row)
        return Header(image.shape[0], image.shape[1], False), Header(mask.shape[0], mask.shape[1], False)

    def read_image(self, row: dict[str, Any]) -> np.ndarray:
        drawn = self._draw(row)[0]
        return load_image(drawn.copy(), self.channels, self.name(row))

    def read_mask(self, row: dict[str, Any]) -> tuple[np.ndarray, bool]:
        return self._draw(row)[1].copy(), False

    def _draw(self, row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        return _draw(self.domain, row["split"], row["number"], self.looks)


def generated_tables(
    name: str, channels: int | None = None
) -> tuple[dict[str, datasets.Dataset], GeneratedReader, dict[int, str]]:
    """Tables, reader and class names of `synthetic:<domain>` or `synthetic:<domain>@looks=<number>`.

    Raises:
        UserError: an unknown domain, looks that are no sensible number, or looks of a domain that is no radar's.
    """
    import datasets

    from .synthetic import SYNTHETIC_DOMAINS

    domain, at, setting = name.removeprefix(DRAWN).partition("@")
    if domain not in SYNTHETIC_DOMAINS:
        raise UserError(
            "unknown domain", key="dataset", where=name, fix=f"choose from {', '.join(sorted(SYNTHETIC_DOMAINS))}"
        )
    looks = _parse_looks(name, setting, SYNTHETIC_DOMAINS[domain].radar) if at else None
    tables = {
        split: datasets.Dataset.from_dict(
            {
                "id": [f"{split}_{number:04d}" for number in range(count)],
                "split": [split] * count,
                "number": list(range(count)),
            }
        )
        for split, count in SIZES.items()
    }
    return tables, GeneratedReader(domain, looks, channels), SYNTHETIC_DOMAINS[domain].id2label


def _parse_looks(name: str, setting: str, radar: bool) -> float:
    if not radar:
        raise UserError(
            "only landcover and speckle are radar pictures", key="dataset", where=name, fix=f"leave @{setting} out"
        )
    key, _, value = setting.partition("=")
    try:
        looks = float(value)
    except ValueError:
        looks = math.nan
    if key != "looks" or not LOOKS[0] <= looks <= LOOKS[1]:
        raise UserError(
            f"'{setting}' is not looks=<number> with a number in {LOOKS[0]:g}..{LOOKS[1]:g}", key="dataset", where=name
        )
    return looks


# Drawing takes longer than a training step of a small model can wait; 512 images of 256 x 256 are 130 MB.
@lru_cache(maxsize=512)
def _draw(domain: str, split: str, number: int, looks: float | None) -> tuple[np.ndarray, np.ndarray]:
    from .synthetic import draw_sample

    return draw_sample(domain, split, number, looks=looks)
