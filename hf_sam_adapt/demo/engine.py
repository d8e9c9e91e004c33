"""Segmenting and routing for the page: what `predict` does, with the image's embedding kept between calls."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature

from ..errors import UserError
from ..files import BASE
from ..inference.forward import encode, segment, segment_scored
from ..inference.variants import device_of, inference, largest_class, merge_objects, routed
from ..prompts import Prompt
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor
from ..tuners.moda.encode import first_adapted_block
from ..tuners.moda.pool import Routing
from .images import Picture
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
        encoded: whether the encoder ran; False = the image's embedding was there already.
    """

    mask: np.ndarray
    classes: list[str] | None
    estimate: float | None
    domain: str | None
    seconds: float
    encoded: bool


def segment_image(image: ImageState, entry: Entry, prompt: Prompt, domain: str | None = None) -> Segmentation:
    """Segment an image, with the embedding that it has or is given now.

    Args:
        image: embeddings that are missing are added.
        prompt: in pixels of the image; a model with classes takes none and labels the whole image.
        domain: of a pool, or "base"; None: its router chooses.

    Raises:
        UserError: a domain that the adapter does not have.
    """
    start = time.perf_counter()
    with entry.lock:
        routed(entry.model, domain)  # raises for a wrong one
        if entry.pool is not None and domain is None:
            domain = route_image(image, entry).domains[0]
        embedding, encoded = _embedding(image, entry, domain)
        with inference([entry.model]):
            if entry.classes is not None:
                mask, estimate = _labels(image.picture, entry, embedding), None
            else:
                mask, estimate = _mask(image.picture, entry, embedding, prompt)
    seconds = time.perf_counter() - start
    return Segmentation(mask, entry.classes, estimate if entry.has_estimate else None, domain, seconds, encoded)


def route_image(image: ImageState, entry: Entry) -> Routing:
    """What a pool's router says of an image, asked once.

    Raises:
        UserError: the adapter is no pool.
    """
    pool = entry.pool
    if pool is None:
        raise UserError("this adapter is not a pool of domains, so there is nothing to route", fix="choose a pool")
    if entry.name not in image.routings:
        with entry.lock, inference([entry.model]):
            image.routings[entry.name] = pool.route(_pixels(image.picture, entry))
    return image.routings[entry.name]


def _embedding(image: ImageState, entry: Entry, domain: str | None) -> tuple[ImageEmbeddings, bool]:
    """The image's embedding by the encoder of `entry`, under `domain`, and whether it had to be computed.

    Adapters that leave the encoder as it is share that of plain SAM.
    """
    pool = entry.pool
    in_encoder = pool is not None and first_adapted_block(pool.model.vision_encoder) is not None
    key: tuple[str, ...] = (entry.name, str(domain)) if in_encoder else (entry.encoder,)
    if in_encoder and domain == BASE and entry.reads_as_base:
        key = (entry.base.encoder,)
    found, with_early = image.embeddings.get(key), entry.needs_early_map and domain != BASE
    missing = found is None or (with_early and found.early is None)
    if found is None or missing:
        with inference([entry.model]):
            pixels = _pixels(image.picture, entry)
            if pool is None:
                found = encode(entry.model, pixels)
            else:
                found = pool.encode(pixels, domain if in_encoder else pool.domains[0])
        image.embeddings[key] = found
    # What another model of the same encoder has kept beside the maps is not for this one.
    domains = None if pool is None else pool.indices_of([str(domain)])
    return ImageEmbeddings(found.maps, found.early if with_early else None, domains), missing


def _pixels(picture: Picture, entry: Entry) -> torch.Tensor:
    return entry.processor([picture.image])["pixel_values"].to(device_of(entry.model))


def _mask(picture: Picture, entry: Entry, embedding: ImageEmbeddings, prompt: Prompt) -> tuple[np.ndarray, float]:
    """Mask bool (H, W) and estimate of its IoU."""
    prompts = entry.processor.transform_prompts([dataclasses.replace(prompt)], [picture.size])
    scored = segment_scored(entry.model, None, prompts, image_embeddings=embedding)
    logits = merge_objects(entry.processor, _sizes(picture, entry.processor), [masks for masks, _ in scored])[0]
    return (logits > 0).cpu().numpy(), float(scored[0][1].max())


def _labels(picture: Picture, entry: Entry, embedding: ImageEmbeddings) -> np.ndarray:
    """Label map uint8 (H, W)."""
    logits = segment(entry.model, None, [Prompt("none")], image_embeddings=embedding)
    return largest_class(entry.processor, _sizes(picture, entry.processor), logits)[0]


def _sizes(picture: Picture, processor: SamAdaptProcessor) -> BatchFeature:
    """The sizes in the processor's output for the picture."""
    reshaped = torch.tensor([processor.reshaped_size(picture.size)])
    return BatchFeature({"original_sizes": torch.tensor([picture.size]), "reshaped_input_sizes": reshaped})
