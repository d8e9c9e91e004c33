"""One predictor: from an adapter's name to masks at the size of the images."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers.image_processing_utils import BatchFeature

from ..data.channels import load_image
from ..errors import UserError
from ..prompts import Prompt
from ..repository import find_file
from ..sam.attention import Kind
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor
from ..sam.tiny import TINY
from .forward import encode, pool_of, segment, segment_scored
from .instances import Instance, InstanceSource, find_instances
from .loading import ADAPTER_CONFIG, load_adapted, load_base
from .variants import device_of, inference, largest_class, merge_objects, routed


ImageInput = str | Path | Image.Image | np.ndarray


@dataclass(frozen=True)
class EncodedImages:
    """Images that the encoder has seen: what `SamAdaptPredictor.decode` needs of them, prompts apart.

    Attributes:
        embeddings: of B images, on the model's device.
        sizes: (height, width) of each image.
        reshaped_sizes: (height, width) of each in the network's input, without padding.
    """

    embeddings: ImageEmbeddings
    sizes: list[tuple[int, int]]
    reshaped_sizes: list[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, rows: Sequence[int]) -> EncodedImages:
        """The images `rows`, which may repeat."""
        chosen = [self.sizes[row] for row in rows], [self.reshaped_sizes[row] for row in rows]
        return EncodedImages(self.embeddings[list(rows)], *chosen)

    @property
    def inputs(self) -> BatchFeature:
        """The sizes, as the processor's output holds them."""
        return BatchFeature(
            {"original_sizes": torch.tensor(self.sizes), "reshaped_input_sizes": torch.tensor(self.reshaped_sizes)}
        )


@dataclass(frozen=True)
class Prediction:
    """What the model finds in one image.

    Attributes:
        mask: bool (H, W), the union of the prompted objects; of a model with classes uint8 (H, W) of labels. At the
            image's own size.
        score: the model's estimate of the mask's IoU, 0..1, of several objects the highest; None where the model's
            estimate means nothing (an adapter that did not train it, classes).
        classes: name -> fraction of the pixels, in the order of the labels; None for one class.
        domain: of a pool, the domain that was used, `base` for plain SAM; None without a pool.
        instances: the objects, surest first, if they were asked for.
    """

    mask: np.ndarray
    score: float | None
    classes: dict[str, float] | None
    domain: str | None
    instances: list[Instance] | None
    _low_resolution: torch.Tensor = field(repr=False)
    _sizes: BatchFeature = field(repr=False)
    _processor: SamAdaptProcessor = field(repr=False)

    @cached_property
    def logits(self) -> np.ndarray:
        """float32 (H, W), foreground above 0; of a model with K classes (K, H, W). Computed when it is asked for."""
        if self.classes is None:
            return merge_objects(self._processor, self._sizes, [self._low_resolution])[0].float().cpu().numpy()
        original, reshaped = self._sizes["original_sizes"].tolist(), self._sizes["reshaped_input_sizes"].tolist()
        full = self._processor.post_process_masks([self._low_resolution], original, reshaped)[0]
        return full.float().cpu().numpy()


class SamAdaptPredictor:
    """Segments images with an adapter, a pool of domains, a fully trained model, or a plain SAM.

    One object may serve many threads: a lock holds one forward at a time, and each thread has its own `set_image`.

    Args:
        model: `PeftModel`, `ModaModel` or `SamModel`, on its device.
        processor: the one that it was trained with.
        has_estimate: whether the model's estimate of a mask's IoU means anything.
        classes: names of the classes in the order of their labels; None for one class.
        precision: "no", "bf16" or "fp16" autocast.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: SamAdaptProcessor,
        *,
        has_estimate: bool = False,
        classes: Sequence[str] | None = None,
        precision: str = "no",
    ) -> None:
        self.model, self.processor, self.precision = model, processor, precision
        self.has_estimate, self.classes = has_estimate, None if classes is None else list(classes)
        self._lock = threading.RLock()
        self._current = threading.local()

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        model: str | None = None,
        device: str | torch.device | None = None,
        precision: str = "no",
        attention: Kind = "auto",
    ) -> SamAdaptPredictor:
        """Load what `name` is: an adapter with the base model that it names, a pool, or a SAM.

        Args:
            name: run folder, adapter folder, model folder, Hub id (`owner/name@revision`), or `tiny`.
            model: base model in place of the one that the adapter names.
            device: None = a GPU if there is one.
            precision: "no", "bf16" or "fp16" autocast.
            attention: how the encoder computes its attention, see `use_fast_attention`.

        Raises:
            UserError: nothing that can be loaded there, or an adapter of another base model.
        """
        name = str(name)
        # A fully trained model is a model folder with a recipe; a plain SAM has neither file.
        plain = name == TINY or not any(find_file(name, file) for file in (ADAPTER_CONFIG, "recipe.yaml"))
        if plain and model is not None:
            raise UserError(f"{name} is a SAM, not an adapter", key="model", fix="leave model out")
        if plain:
            (network, processor), config = load_base(name, attention), None
        else:
            loaded = load_adapted(name, model, attention=attention)
            network, processor, config = loaded.model, loaded.processor, loaded.config
        num_labels, id2label = getattr(config, "num_labels", None), getattr(config, "id2label", None) or {}
        network.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        return cls(
            network.eval(),
            processor,
            has_estimate=plain or bool(getattr(config, "train_iou_head", False)),
            classes=None if num_labels is None else [str(id2label.get(label, label)) for label in range(num_labels)],
            precision=precision,
        )

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput] | None = None,
        prompts: Prompt | Sequence[Prompt] | None = None,
        domain: str | None = None,
        instances: InstanceSource | None = None,
        *,
        batch_size: int = 4,
        points_per_side: int = 16,
        min_score: float = 0.0,
    ) -> list[Prediction]:
        """Segment images, each once through the encoder.

        Args:
            images: files, PIL images, or arrays (H, W, 3), one or several; None = the one of `set_image`.
            prompts: in pixels of the image, one for all images or one for each; with `set_image` any number. None = no
                prompt: the model shows what it was trained to find.
            domain: of a pool, or `base`; None = its router chooses for each image.
            instances: also find the objects, see `find_instances`.
            batch_size: images encoded together.
            points_per_side: of the grid of `instances="grid"`.
            min_score: instances of a lower score are left out.

        Returns:
            One `Prediction` an image; with `set_image`, one a prompt.

        Raises:
            UserError: a prompt outside its image, a prompt for a model with classes, a domain that is not there.
        """
        options = {"instances": instances, "points_per_side": points_per_side, "min_score": min_score}
        if images is None:
            encoded = getattr(self._current, "image", None)
            if encoded is None:
                raise UserError("none given, and this thread has not called set_image", key="images")
            if domain is not None:
                raise UserError("name it in set_image, where the image is encoded", key="domain")
            asked = [prompts or Prompt("none")] if prompts is None or isinstance(prompts, Prompt) else list(prompts)
            return self.decode(encoded[[0] * len(asked)], asked, **options)
        several = isinstance(images, Sequence) and not isinstance(images, str)
        listed: list[ImageInput] = list(images) if several else [images]  # type: ignore[arg-type, list-item]
        asked = self._one_each(prompts, len(listed))
        self._check(asked, domain, instances)
        results: list[Prediction] = []
        for start in range(0, len(listed), batch_size):
            rows = slice(start, start + batch_size)
            results += self.decode(self.encode(listed[rows], domain), asked[rows], **options)
        return results

    def set_image(self, image: ImageInput, domain: str | None = None) -> None:
        """Encode an image for this thread's next calls of `predict` without `images`."""
        self._current.image = self.encode([image], domain)

    def encode(self, images: Sequence[ImageInput], domain: str | None = None) -> EncodedImages:
        """Run the encoder once over `images`, to be given to `decode` any number of times."""
        self._check([], domain, None)
        pictures = [self._read(image) for image in images]
        inputs = self.processor(pictures)
        with self._lock, inference([self.model], self.precision), routed(self.model, domain):
            embeddings = encode(self.model, inputs["pixel_values"].to(device_of(self.model)))
        sizes = [(int(h), int(w)) for h, w in inputs["original_sizes"]]
        return EncodedImages(embeddings, sizes, [(int(h), int(w)) for h, w in inputs["reshaped_input_sizes"]])

    def decode(
        self,
        encoded: EncodedImages,
        prompts: Prompt | Sequence[Prompt] | None = None,
        instances: InstanceSource | None = None,
        *,
        points_per_side: int = 16,
        min_score: float = 0.0,
    ) -> list[Prediction]:
        """As `predict`, of images that are encoded: a `Prediction` for each."""
        asked = self._one_each(prompts, len(encoded))
        self._check(asked, None, instances)
        for prompt, size in zip(asked, encoded.sizes):
            check_inside(prompt, size)
        # What only a training needs is not resized.
        bare = [dataclasses.replace(prompt, targets=None) for prompt in asked]
        placed = self.processor.transform_prompts(bare, encoded.sizes)
        found: list[list[Instance]] | None = None
        with self._lock, inference([self.model], self.precision):
            if self.classes is None:
                scored = segment_scored(self.model, None, placed, image_embeddings=encoded.embeddings)
            else:
                labelled = segment(self.model, None, placed, image_embeddings=encoded.embeddings)
                scored = [(logits, None) for logits in labelled]
            if instances is not None:
                how: dict[str, Any] = {"has_estimate": self.has_estimate, "points_per_side": points_per_side}
                found = find_instances(
                    self.model, self.processor, encoded.inputs, encoded.embeddings, instances, **how
                )
            return [
                self._prediction(
                    encoded[[row]],
                    *scored[row],
                    None if found is None else [one for one in found[row] if one.score >= min_score],
                )
                for row in range(len(encoded))
            ]

    def _prediction(
        self,
        encoded: EncodedImages,
        masks: torch.Tensor,
        scores: torch.Tensor | None,
        instances: list[Instance] | None,
    ) -> Prediction:
        """Of one image: logits (n, h, w) of its objects and their scores (n,); of classes (K, h, w) and None."""
        pool, domains, sizes = pool_of(self.model), encoded.embeddings.domains, encoded.inputs
        domain = None if pool is None or domains is None else pool.names_of(domains)[0]
        kept = (sizes, self.processor)
        if self.classes is None:
            assert scores is not None
            mask = (merge_objects(self.processor, sizes, [masks])[0] > 0).cpu().numpy()
            score = float(scores.max()) if self.has_estimate and len(scores) else None
            return Prediction(mask, score, None, domain, instances, masks, *kept)
        labels = largest_class(self.processor, sizes, [masks])[0]
        shares = np.bincount(labels.ravel(), minlength=len(self.classes)) / labels.size
        classes = {name: float(share) for name, share in zip(self.classes, shares)}
        return Prediction(labels, None, classes, domain, instances, masks, *kept)

    def _check(self, prompts: Sequence[Prompt], domain: str | None, instances: InstanceSource | None) -> None:
        """Raise `UserError` for what this model cannot do."""
        routed(self.model, domain)
        kinds = {prompt.kind for prompt in prompts} - {"none"}
        if self.classes is not None and (kinds or instances is not None):
            asked = "instances" if instances is not None else min(kinds)
            raise UserError(
                f"the model segments {len(self.classes)} classes without prompts", where=asked, fix="leave it out"
            )
        if instances is not None and kinds:
            raise UserError(f"instances, {min(kinds)}: instances are found without a prompt", fix="give one of them")

    def _read(self, image: ImageInput) -> Any:
        return load_image(Path(image), self.processor.channels) if isinstance(image, (str, Path)) else image

    @staticmethod
    def _one_each(prompts: Prompt | Sequence[Prompt] | None, count: int) -> list[Prompt]:
        if prompts is None or isinstance(prompts, Prompt):
            return [prompts or Prompt("none")] * count
        if isinstance(prompts, Mapping) or len(prompts) != count:
            raise UserError(
                f"{len(prompts)} prompts for {count} images", key="prompts", fix="give one Prompt, or one an image"
            )
        return list(prompts)


def check_inside(prompt: Prompt, size: tuple[int, int], where: str = "the image") -> None:
    """Raise `UserError` unless boxes and points of `prompt` lie in an image of `size` (height, width)."""
    height, width = size
    for values in (prompt.boxes, prompt.points):
        corners = np.empty((0, 2)) if values is None else np.asarray(values).reshape(-1, 2)  # (x, y) pairs
        if not (np.isfinite(corners).all() and (corners >= 0).all() and (corners < [width, height]).all()):
            raise UserError(f"it reaches outside {where}, which has {width}x{height} pixels", where=prompt.kind)
