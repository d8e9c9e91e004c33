"""Fingerprints of images, and the search for pairs that look alike."""

from __future__ import annotations

import hashlib

import numpy as np
from PIL import Image


THUMBNAIL = 16
BANDS = 4
MAX_BITS = 10  # of 64 that may differ between two versions of one picture
ALIKE = 0.99  # correlation of two thumbnails; other pictures of one scene stay below
MIN_CONTRAST = 3.0  # deviation of a thumbnail in grey levels, below which all pictures look alike
PART = 4096  # rows
BUCKET = 64  # larger buckets are searched among neighbours in the order of the hash only


def digest(array: np.ndarray) -> int:
    """64 bits that two arrays share only if all their values are equal."""
    summary = hashlib.blake2b(repr((array.shape, array.dtype.str)).encode(), digest_size=8)
    summary.update(np.ascontiguousarray(array).data)
    return int.from_bytes(summary.digest(), "little")


def perceptual(picture: np.ndarray) -> tuple[int, np.ndarray]:
    """dHash and thumbnail of a picture, uint8 (H, W, 3).

    Returns:
        64 bits, whether each pixel of the picture at 9 x 8 is brighter than its right neighbour; the picture in grey,
        uint8 (16, 16).
    """
    grey = Image.fromarray(picture).convert("L")
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits(small[:, :-1] > small[:, 1:])  # (8, 8) -> (8,) bytes
    thumbnail = np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))
    return int.from_bytes(bits.tobytes(), "little"), thumbnail


def equal_pairs(digests: np.ndarray) -> list[tuple[int, int]]:
    """(first, later) index of each later one of equal `digests`, uint64 (n,); 0 is no digest."""
    order = np.argsort(digests, kind="stable")
    ordered = digests[order]
    pairs, first = [], 0
    for place in range(1, len(order)):
        if ordered[place] != ordered[first]:
            first = place
        elif ordered[place]:
            pairs.append((int(order[first]), int(order[place])))
    return pairs


def near_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> list[tuple[int, int]]:
    """Pictures that are a version of an earlier one: saved again, resized, a little brighter.

    Candidates agree in one of the four bands of 16 bits, so the time grows with the size of the buckets and not with
    n^2; of a bucket of more than 64 each picture is compared with the next 64 in the order of the hash.

    Args:
        hashes: uint64 (n,).
        thumbnails: uint8 (n, 16, 16).

    Returns:
        (first, later): for each later picture the first that it is alike.
    """
    values = thumbnails.reshape(len(thumbnails), -1)  # (n, 256)
    usable = np.flatnonzero(np.concatenate([part.std(axis=1) for part in _parts(values)]) >= MIN_CONTRAST)
    partners = np.arange(len(hashes))
    for band in range(BANDS):
        keys = hashes[usable] >> np.uint64(16 * band) & np.uint64(0xFFFF)
        order = np.lexsort((hashes[usable], keys))
        keys, candidates = keys[order], usable[order]
        for step in range(1, min(BUCKET, len(candidates) - 1) + 1):
            same = np.flatnonzero(keys[:-step] == keys[step:])
            if not len(same):
                break
            left, right = candidates[same], candidates[same + step]
            close = _bits(hashes[left] ^ hashes[right]) <= MAX_BITS
            left, right = left[close], right[close]
            alike = np.concatenate([_alike(values[one], values[two]) for one, two in zip(_parts(left), _parts(right))])
            left, right = left[alike], right[alike]
            np.minimum.at(partners, np.maximum(left, right), np.minimum(left, right))
    return [(int(partners[later]), int(later)) for later in np.flatnonzero(partners < np.arange(len(hashes)))]


def _bits(values: np.ndarray) -> np.ndarray:
    """How many bits of each uint64 (n,) are set."""
    return np.unpackbits(values.view(np.uint8).reshape(-1, 8), axis=1).sum(axis=1)


def _parts(array: np.ndarray) -> list[np.ndarray]:
    """The same rows in pieces whose temporary copies are small."""
    return np.array_split(array, 1 + len(array) // PART)


def _alike(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Whether each row of uint8 (n, d) correlates with the same row of the other: bool (n,)."""
    first, other = (rows - rows.mean(axis=1, keepdims=True, dtype=np.float32) for rows in (first, other))
    return (first * other).sum(axis=1) >= ALIKE * np.sqrt((first**2).sum(axis=1) * (other**2).sum(axis=1))
