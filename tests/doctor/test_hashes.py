"""Fingerprints: equal for equal, near for versions of a picture, far for others, and no search of all pairs."""

import time
from io import BytesIO

import numpy as np
from corpus import draw
from PIL import Image

from hf_sam_adapt.doctor.hashes import digest, equal_pairs, near_pairs, perceptual


def test_digests():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)
    other = image.copy()
    other[4, 2, 1] ^= 1
    assert digest(image) == digest(image.copy(order="F"))
    assert len({digest(image), digest(other), digest(image.reshape(7, 9, 3)), digest(image.view(np.int8))}) == 4
    digests = np.array([5, 9, 5, 0, 7, 9, 0, 5], np.uint64)
    assert sorted(equal_pairs(digests)) == [(0, 2), (0, 7), (1, 5)]


def versions(picture: np.ndarray) -> list[np.ndarray]:
    image, encoded = Image.fromarray(picture), BytesIO()
    image.save(encoded, "JPEG", quality=50)
    changed = [image.resize((300, 200)), Image.open(encoded), image.point(lambda value: value * 0.85 + 10)]
    return [np.asarray(one.convert("RGB")) for one in changed]


def test_versions_are_found_and_others_are_not():
    rng = np.random.default_rng(1)
    pictures = [draw(rng)[0] for _ in range(40)]
    copies = [copy for picture in pictures[:10] for copy in versions(picture)]
    hashes, thumbnails = zip(*map(perceptual, pictures + copies))
    pairs = near_pairs(np.array(hashes, np.uint64), np.array(thumbnails))
    assert pairs == [(index // 3, 40 + index) for index in range(30)]


def test_pictures_without_contrast_are_not_compared():
    rng = np.random.default_rng(2)
    dull = [rng.integers(100, 104, (50, 50, 3)).astype(np.uint8) for _ in range(5)]
    hashes, thumbnails = zip(*map(perceptual, dull))
    assert near_pairs(np.array(hashes, np.uint64), np.array(thumbnails)) == []


def test_the_search_is_not_quadratic():
    rng = np.random.default_rng(3)

    def seconds(count: int, shared: bool) -> float:
        hashes = rng.integers(0, 2**63, count, dtype=np.uint64)
        if shared:  # a quarter of all are in one bucket
            hashes[: count // 4] &= ~np.uint64(0xFFFF)
        thumbnails = rng.integers(0, 256, (count, 16, 16), dtype=np.uint8)
        start = time.process_time()
        assert near_pairs(hashes, thumbnails) == []
        return time.process_time() - start

    for shared in (False, True):
        small, large = seconds(5_000, shared), seconds(40_000, shared)
        assert large < 24 * small  # 64 if all pairs were compared
