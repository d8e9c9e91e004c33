"""Segmenting and routing for the page: what `predict` does, with the encoded image kept between calls."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..files import BASE
from ..inference.predictor import EncodedImages
from ..inference.variants import check_domain, device_of, inference
from ..prompts import Prompt
from ..sam.families import family_of, vision_encoder
from ..tuners.moda.encode import first_adapted_block
from ..tuners.moda.pool import Routing
from .gpu import encode_image
from .loaded_adapters import Entry
from .session import ImageState


@dataclass(frozen=True)
class Segmentation:
    """One model's answer for one image.

    Attributes:
        mask: bool (H, W), of a model with classes uint8 (H, W) of labels; at the image's own size.
        classes: names of the labels, None for one class.
        estimate: the model's estimate of the mask's IoU, None where it means nothing.
        domain: of a pool, the domain that was used, "base" for plain SAM.
        seconds: all of it, the encoder's share included.
        encoded: whether the encoder ran; False = the image had been encoded already.
    """

    mask: np.ndarray
    classes: list[str] | None
    estimate: float | None
    domain: str | None
    seconds: float
    encoded: bool


def segment_image(image: ImageState, entry: Entry, prompt: Prompt, domain: str | None = None) -> Segmentation:
    """Segment an image, encoded once for each encoder.

    Args:
        image: what its encoding lacks is added.
        prompt: in pixels of the image; a model with classes takes none and labels the whole image.
        domain: of a pool, or "base"; None: its router chooses.

    Raises:
        UserError: a domain that the adapter does not have, or a prompt outside the image.
    """
    start, predictor = time.perf_counter(), entry.predictor
    with predictor.lock:
        check_domain(predictor.model, domain)
        if entry.pool is not None and domain is None:
            domain = route_image(image, entry).domains[0]
        encoded, missing = _encoded(image, entry, domain)
        prompts = Prompt("none") if predictor.classes is not None else prompt
        (result,) = predictor.decode(encoded, prompts)
    seconds = time.perf_counter() - start
    return Segmentation(result.mask, predictor.classes, result.score, domain, seconds, missing)


def route_image(image: ImageState, entry: Entry) -> Routing:
    """What a pool's router says of an image, asked once.

    Raises:
        UserError: the adapter is no pool.
    """
    pool = entry.pool
    if pool is None:
        raise UserError("this adapter is not a pool of domains, so there is nothing to route", fix="choose a pool")
    if entry.name not in image.routings:
        predictor = entry.predictor
        with predictor.lock, inference([predictor.model]):
            pixels = predictor.processor([image.picture.image])["pixel_values"]
            image.routings[entry.name] = pool.route(pixels.to(device_of(predictor.model)))
    return image.routings[entry.name]


def _encoded(image: ImageState, entry: Entry, domain: str | None) -> tuple[EncodedImages, bool]:
    """The image as the encoder of `entry` sees it, under `domain`, and whether the encoder had to run.

    Adapters that leave the encoder as it is share what plain SAM's makes of it.
    """
    pool = entry.pool
    in_encoder = pool is not None and first_adapted_block(vision_encoder(pool.model)) is not None
    key: tuple[str, ...] = (entry.name, str(domain)) if in_encoder else (entry.encoder,)
    if in_encoder and domain == BASE and entry.reads_as_base:
        key = (entry.base.encoder,)
    encoded, with_early = image.encoded.get(key), entry.needs_early_map and domain != BASE
    missing = encoded is None or (with_early and encoded.embeddings.early is None)
    if encoded is None or missing:
        # Where a pool's adapters lie in the decoder, any of its domains gives the early map.
        under = domain if pool is None or in_encoder else pool.domains[0]
        encoded = image.encoded[key] = encode_image(entry, image.picture, under)
    # What another model of the same encoder has kept beside the maps is not for this one.
    keeps_early = with_early or family_of(entry.model).keeps_early
    embeddings = dataclasses.replace(
        encoded.embeddings,
        early=encoded.embeddings.early if keeps_early else None,
        domains=None if pool is None else pool.indices_of([str(domain)]),
    )
    return dataclasses.replace(encoded, embeddings=embeddings), missing
