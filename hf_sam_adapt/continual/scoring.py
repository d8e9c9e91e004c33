"""Scores of one model on one test set, with boundaries, kept as JSON so that none is computed twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from ..data import SegmentationData, SegmentationSplit
from ..evaluation import evaluate
from ..files import write_json
from ..inference.embeddings.split import EmbeddedSplit
from ..sam.families import vision_encoder
from ..sam.processing import SamAdaptProcessor
from ..sam.windows import windows_removed
from ..training.run import embedding_cache, start_processes


if TYPE_CHECKING:
    from ..config.recipe import Recipe

Scores = dict[str, Any]
_IMAGES = "test_images"  # beside the kinds of prompts: `TestImages.digest`


def score(
    model: nn.Module,
    processor: SamAdaptProcessor,
    split: SegmentationSplit | EmbeddedSplit,
    recipe: Recipe,
    adapted: bool = True,
) -> Scores:
    """Per prompt kind `{"iou", "dice", "biou"}`, means over the images of `split`.

    Args:
        adapted: False for a plain SAM.
    """
    name = "adapted" if adapted else "zero_shot"
    result = evaluate(
        model,
        processor,
        split,
        recipe.prompts,
        batch_size=recipe.batch_size,
        adapted=adapted,
        zero_shot=not adapted,
        boundary=True,
        precision=recipe.precision,
        num_workers=recipe.num_workers,
        seed=recipe.seed,
    )
    return {kind: scores[name] for kind, scores in result.test.items()}


def remembered(path: Path, digest: str, compute: Callable[[], Scores]) -> Scores:
    """The scores in `path`, computed and written there if there are none of these images; all processes call it.

    Args:
        digest: of the test images, which may have become others since the scores were written.
    """
    state = start_processes()
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {_IMAGES: None}
    known = stored.pop(_IMAGES, digest) == digest
    # Every process has looked before one of them writes.
    state.wait_for_everyone()
    if known:
        return stored
    scores = compute()
    if state.is_main_process:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**scores, _IMAGES: digest})
    state.wait_for_everyone()
    return scores


class TestImages:
    """The test splits of a run, with `cache_embeddings` encoded once for all tasks: the encoder is theirs all.

    Args:
        data: the data sets by name.
    """

    __test__ = False  # no test case of pytest

    def __init__(self, data: dict[str, SegmentationData], recipe: Recipe) -> None:
        self.data, self.recipe = data, recipe
        self._embedded: dict[tuple[str, bool], EmbeddedSplit] = {}
        self._digests: dict[str, str] = {}

    def digest(self, name: str) -> str:
        """Of the names, masks and sizes of files of data set `name`: another one where any has changed."""
        if name not in self._digests:
            split, summary = self.images(name), hashlib.blake2b(digest_size=16)
            for index, (row, image_id) in enumerate(zip(split.table, split.ids)):
                path = split.reader.path(row)
                size = None if path is None else os.path.getsize(path)
                mask = split.mask(index)
                summary.update(repr((image_id, size, mask.shape)).encode())
                summary.update(np.ascontiguousarray(mask).data)
            self._digests[name] = summary.hexdigest()
        return self._digests[name]

    def images(self, name: str) -> SegmentationSplit:
        return self.data[name].measured[1]

    def for_model(
        self, name: str, model: nn.Module, processor: SamAdaptProcessor
    ) -> SegmentationSplit | EmbeddedSplit:
        """The test images of data set `name`, or their embeddings by `model`."""
        if not self.recipe.cache_embeddings:
            return self.images(name)
        # Plain SAM has its windows, which `global_attention` takes from the models that are trained.
        place = name, windows_removed(vision_encoder(model))
        if place not in self._embedded:
            cache = embedding_cache(self.recipe, model, processor)
            (self._embedded[place],) = cache.embed(self.images(name))
        return self._embedded[place]
