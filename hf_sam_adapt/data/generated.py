"""The drawn data sets `synthetic:<domain>`: an image exists only while it is looked at."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .channels import load_image
from .images import Header


if TYPE_CHECKING:
    import datasets


PREFIX = "synthetic:"
SIZES = {"train": 200, "val": 40, "test": 60}


class GeneratedReader:
    """Draws rows with the columns id, split and number."""

    checked_rows: int | None = 0

    def __init__(self, domain: str, channels: int | None = None) -> None:
        self.domain, self.channels = domain, channels

    def name(self, row: dict[str, Any]) -> str:
        return f"{PREFIX}{self.domain} {row['id']}"

    def path(self, row: dict[str, Any]) -> str | None:
        return None

    def headers(self, row: dict[str, Any]) -> tuple[Header, Header]:
        image, mask = _draw(self.domain, row["split"], row["number"])
        return Header(image.shape[0], image.shape[1], False), Header(mask.shape[0], mask.shape[1], False)

    def read_image(self, row: dict[str, Any]) -> np.ndarray:
        drawn = _draw(self.domain, row["split"], row["number"])[0]
        return load_image(drawn.copy(), self.channels, self.name(row))

    def read_mask(self, row: dict[str, Any]) -> tuple[np.ndarray, bool]:
        return _draw(self.domain, row["split"], row["number"])[1].copy(), False


def generated_tables(
    name: str, channels: int | None = None
) -> tuple[dict[str, datasets.Dataset], GeneratedReader, dict[int, str]]:
    """Tables, reader and class names of `synthetic:<domain>`. Raises `UserError` on an unknown domain."""
    import datasets

    from .synthetic import SYNTHETIC_DOMAINS

    domain = name.removeprefix(PREFIX)
    if domain not in SYNTHETIC_DOMAINS:
        raise UserError(f"dataset: {name}: unknown domain; choose from {', '.join(sorted(SYNTHETIC_DOMAINS))}")
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
    return tables, GeneratedReader(domain, channels), SYNTHETIC_DOMAINS[domain].id2label


# Drawing takes longer than a training step of a small model can wait; 512 images of 256 x 256 are 130 MB.
@lru_cache(maxsize=512)
def _draw(domain: str, split: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    from .synthetic import draw_sample

    return draw_sample(domain, split, number)
