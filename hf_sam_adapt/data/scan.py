"""The masks of a data set before training: which values they hold, found by reading up to 2,000 of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .dataset import Reader
from .encoding import MaskEncoding, map_values, middle_of_edges, present_values
from .notes import Note
from .palettes import Colour, Palette, to_labels, unknown_colours
from .scenes import StoredMask, WholeMask, bands


if TYPE_CHECKING:
    import datasets


SCANNED = 2000  # masks whose values are read before training
SCANNED_AT_ONCE = 2**26  # pixels of one mask
SCANNED_PIXELS = 256_000_000  # their images are decoded too, as long as they have no more pixels together
THREADS = 4
CHUNK = 64


@dataclass(frozen=True)
class ScannedMask:
    """What a mask holds.

    Attributes:
        name: what an error message calls it.
        values: bool (256,), which values occur after `label_map`; with a palette its indices, and where the encoding
            is known the classes.
        mapped: the stored values that `label_map` names and the mask holds.
        lossy: whether it was stored lossily.
        unknown: pixels of each colour that is not in the palette.
        pixels: their number.
        soft: a threshold in the middle of soft edges that are foreground as a whole; None without such edges.
    """

    name: str
    values: np.ndarray
    mapped: frozenset[int]
    lossy: bool
    unknown: Counter[Colour]
    pixels: int
    soft: float | None


def scan_masks(
    tables: Mapping[str, datasets.Dataset],
    reader: Reader,
    palette: Palette | None,
    label_map: Mapping[int, int] | None,
    known: MaskEncoding | None,
    seed: int,
    limit: int | None = None,
) -> dict[str, list[ScannedMask]]:
    """Up to `limit` masks of the splits together, 2,000 if unset; decodes small images on the way.

    Empty for drawn data.

    Args:
        known: how the masks are read, where that does not depend on them: foreground is what is above a threshold.

    Raises:
        UserError: an unreadable file, or values that the masks of a data set cannot hold.
    """
    if reader.checked_rows == 0:
        return {}
    limit = SCANNED if limit is None else limit
    total = sum(len(table) for table in tables.values())
    budget = SCANNED_PIXELS / min(total, limit)

    def scan(row: dict[str, Any]) -> ScannedMask:
        name, parts = reader.name(row), []
        with stored_mask(reader, row) as mask:
            if mask.size[0] * mask.size[1] <= budget:
                reader.read_image(row)
            for window in bands(mask.size, max(1, SCANNED_AT_ONCE // max(1, mask.size[1]))):
                parts.append(scan_part(mask.read(window), mask.lossy, name))
        return parts[0] if len(parts) == 1 else _together(parts)

    def scan_part(stored: np.ndarray, lossy: bool, name: str) -> ScannedMask:
        pixels = stored.shape[0] * stored.shape[1]
        unknown: Counter[Colour] = Counter()
        if stored.ndim == 3 and palette is not None:
            unknown = unknown_colours(stored, palette)
            stored = to_labels(stored, palette)
        soft = middle_of_edges(stored) if known and not lossy else None
        mapped = frozenset(value for value in label_map or () if (stored == value).any())
        classes = map_values(stored, label_map) if known is None else known.decode(stored, lossy, name)
        return ScannedMask(name, present_values(classes, name), mapped, lossy, unknown, pixels, soft)

    counts = {name: max(1, limit * len(table) // max(total, limit)) for name, table in tables.items()}
    return {name: in_threads(scan, sample_rows(table, counts[name], seed)) for name, table in tables.items()}


def _together(parts: list[ScannedMask]) -> ScannedMask:
    """What a mask holds, of its parts."""
    first = parts[0]
    return ScannedMask(
        first.name,
        np.any([part.values for part in parts], axis=0),
        frozenset[int]().union(*(part.mapped for part in parts)),
        first.lossy,
        sum((part.unknown for part in parts), Counter[Colour]()),
        sum(part.pixels for part in parts),
        next((part.soft for part in parts if part.soft is not None), None),
    )


@contextmanager
def stored_mask(reader: Reader, row: dict[str, Any]) -> Iterator[StoredMask | WholeMask]:
    """The mask of a row by windows, where its reader can do that, else in memory."""
    opened = getattr(reader, "open_mask", None)
    with nullcontext() if opened is None else opened(row) as mask:
        yield WholeMask(*reader.read_mask(row)) if mask is None else mask


def soft_notes(scanned: list[ScannedMask]) -> list[str]:
    """What to say of soft edges that are foreground as a whole."""
    soft = [mask for mask in scanned if mask.soft is not None]
    if not soft:
        return []
    count = f"{len(soft)} of {len(scanned)} masks have soft edges"
    cut = f"and all of an edge is foreground; mask_threshold: {soft[0].soft:g} cuts it in the middle"
    return [Note(f"{count}, such as {soft[0].name}, {cut}", f"{count}, {cut}")]


def palette_notes(scanned: list[ScannedMask]) -> list[str]:
    """What to say of colours that are in no class; `UserError` where there are no others."""
    unknown: Counter[Colour] = Counter()
    for mask in scanned:
        unknown.update(mask.unknown)
    if not unknown:
        return []
    (most, count), total = unknown.most_common(1)[0], unknown.total()
    if total == sum(mask.pixels for mask in scanned):
        raise UserError(
            f"it holds none of the colours of the masks, whose most frequent one is {most}",
            key="palette",
            fix="name that of each class",
        )
    masks = sum(bool(mask.unknown) for mask in scanned)
    return [
        f"{total} pixels of unknown colours in {masks} of {len(scanned)} masks read as ignore, the most frequent "
        f"{most} ({count} pixels)"
    ]


def sample_rows(table: datasets.Dataset, count: int, seed: int) -> datasets.Dataset:
    """A seeded sample of at most `count` rows, in their order."""
    if len(table) <= count:
        return table
    chosen = np.random.default_rng(seed).choice(len(table), count, replace=False)
    return table.select(sorted(chosen.tolist()))


def in_threads(function: Callable[[dict[str, Any]], Any], table: datasets.Dataset) -> list:
    """`function` of every row, in threads: files are waited for and decoded without the interpreter's lock."""

    def chunk(start: int) -> list:
        batch = table[start : start + CHUNK]
        return [function(dict(zip(batch, values))) for values in zip(*batch.values())]

    with ThreadPoolExecutor(THREADS) as pool:
        return [result for results in pool.map(chunk, range(0, len(table), CHUNK)) for result in results]
