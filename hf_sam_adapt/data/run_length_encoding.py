"""COCO's compressed run lengths of a mask, without an extra; `data.areas.decode_runs` reads them."""

from __future__ import annotations

import numpy as np


def encode_runs(mask: np.ndarray) -> dict[str, list[int] | str]:
    """bool (H, W) -> `{"size": [H, W], "counts": text}`, as pycocotools' `encode`.

    The runs of 0 and 1 are counted column by column, beginning with 0.
    """
    values = np.concatenate([[False], np.asarray(mask, bool).T.ravel(), [True]])
    ends = np.flatnonzero(values[1:-1] != values[:-2])  # where a run of another value begins
    counts = np.diff([0, *ends.tolist(), mask.size]).tolist()
    return {"size": [int(side) for side in mask.shape], "counts": _compress(counts)}


def _compress(counts: list[int]) -> str:
    """5 bits a character, low bits first, from the fourth number on the difference to two before."""
    text = []
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        continues = True
        while continues:
            bits = value & 0x1F
            value >>= 5
            # The sign is the highest of the last five bits.
            continues = value != (-1 if bits & 0x10 else 0)
            text.append(chr(bits + (0x20 if continues else 0) + 48))
    return "".join(text)
