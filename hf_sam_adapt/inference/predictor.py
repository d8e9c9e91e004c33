"""One predictor: from an adapter's name to masks at the size of the images."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..data.channels import load_image
from ..data.scenes import ImageWindows
from ..data.tiles import Tiles, resolve_tiles
from ..errors import UserError, first_line
from ..names import check_route
from ..prompts import Prompt
from ..sam.attention import Kind
from ..sam.image_embeddings import ImageEmbeddings
from ..sam.processing import SamAdaptProcessor
from .checks import check_options, check_prompt
from .forward import segment, segment_scored
from .instances import POINTS_PER_SIDE, Instance, InstanceSource, find_instances
from .loading import Loaded, load_named
from .precision import check_precision
from .prediction import Prediction, classes_of, logit_of
from .tiled import Route, TiledRun, assembled, choose_domain, opened_any
from .variants import (
    check_domain,
    domains_of,
    embeddings_of,
    inference,
    largest_class,
    merge_objects,
    place_prompts,
    routed,
    router_scores_of,
    sizes_of,
)


ImageInput = str | Path | Image.Image | np.ndarray | torch.Tensor


@dataclass(frozen=True)
class EncodedImages:
    """Images that the encoder has seen: what `SamAdaptPredictor.decode` needs of them, prompts apart.

    Attributes:
        embeddings: of B images, on the model's device.
        sizes: `original_sizes` and `reshaped_input_sizes` of the processor's output, int64 (B, 2) each.
    """

    embeddings: ImageEmbeddings
    sizes: Mapping[str, torch.Tensor]

    def __len__(self) -> int:
        return len(self.embeddings)

    def to(self, device: str | torch.device) -> EncodedImages:
        """The same on another device."""
        return EncodedImages(
            self.embeddings.to(device), {name: values.to(device) for name, values in self.sizes.items()}
        )

    def __getitem__(self, rows: Sequence[int]) -> EncodedImages:
        """The images `rows`, which may repeat."""
        return EncodedImages(self.embeddings[rows], {name: values[rows] for name, values in self.sizes.items()})


class SamAdaptPredictor:
    """Segments images with an adapter, a pool of domains, a fully trained model, or a plain SAM.

    One object may serve many threads. A lock holds one forward at a time, images are read and prepared outside it, and
    each thread has its own `set_image`. Faster than many threads are many images in one call: they go through the
    encoder `batch_size` at a time, and all prompts of a kind through the decoder together. An image's result does not
    depend on the others beside it (equal within 1e-6 in full precision).

    Args:
        model: `PeftModel`, `ModaModel` or `SamModel`, on its device.
        processor: the one that it was trained with.
        has_estimate: whether the model's estimate of a mask's IoU means anything.
        classes: names of the classes in the order of their labels; None = as the adapter's config says.
        precision: "no", "bf16" or "fp16" autocast.

    Attributes:
        lock: held during each forward; hold it to use the model otherwise while other threads predict.
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
        check_precision(precision)
        self.model, self.processor, self.precision = model, processor, precision
        self.has_estimate = has_estimate
        self.classes = classes_of(_config_of(model)) if classes is None else list(classes)
        self.lock = threading.RLock()
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
        return cls.from_loaded(load_named(str(name), model, attention), device=device, precision=precision)

    @classmethod
    def from_loaded(
        cls, loaded: Loaded, *, device: str | torch.device | None = None, precision: str = "no"
    ) -> SamAdaptPredictor:
        """The predictor of what `load_adapted` or `load_for_inference` returned; `device` as in `from_pretrained`."""
        usual = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model = loaded.model.to(usual if device is None else device).eval()
        except (AssertionError, RuntimeError, ValueError, TypeError) as error:  # none of that name here, or no device
            raise UserError(f"{device!r} cannot be used: {first_line(error)}", key="device") from error
        return cls(
            model, loaded.processor, has_estimate=loaded.has_estimate, classes=loaded.classes, precision=precision
        )

    def predict(
        self,
        images: ImageInput | Iterable[ImageInput] | None = None,
        prompts: Prompt | Iterable[Prompt] | None = None,
        domain: str | None = None,
        instances: InstanceSource | None = None,
        *,
        batch_size: int = 4,
        points_per_side: int = POINTS_PER_SIDE,
        min_score: float = 0.0,
        tile: int | Literal["auto"] | None = None,
        overlap: int | Literal["auto"] | None = None,
        route: Route = "image",
        threshold: float = 0.5,
    ) -> list[Prediction]:
        """Segment images, each once through the encoder, or with `tile` as many overlapping tiles.

        Args:
            images: files, PIL images, or what else the processor takes, one or several; None = that of `set_image`.
            prompts: in pixels of the image, one for all images or one for each; with `set_image` any number. None = no
                prompt: the model shows what it was trained to find. The objects of one `Prompt` share one mask.
            domain: of a pool, or `base`; None = its router chooses for each image.
            instances: also find the objects, see `find_instances`.
            batch_size: images encoded together.
            points_per_side: of the grid of `instances="grid"`.
            min_score: instances of a lower score are left out.
            tile: side of the tiles in pixels; "auto" = that of the network's input, for images that are more than
                twice as large; None = images are not cut.
            overlap: pixels that neighbouring tiles share; "auto" and None = an eighth of the tile.
            route: of a pool, whether its router chooses for each image as a whole or for each tile.
            threshold: probability above which a pixel is foreground; not for a model with classes.

        Returns:
            One `Prediction` an image; with `set_image`, one a prompt.

        Raises:
            UserError: an image that cannot be read, a prompt outside its image, a prompt for a model with classes, a
                domain that is not there. Nothing is returned then, also of the other images.
        """
        check_options(instances, batch_size=batch_size, points_per_side=points_per_side, min_score=min_score)
        options: dict[str, Any] = {"instances": instances, "points_per_side": points_per_side, "min_score": min_score}
        options["threshold"] = threshold
        check_route(route, tile)
        tiles, _ = self.tiles(tile, overlap)
        if images is None:
            if tiles is not None:
                raise UserError("an image that is set is encoded as a whole", key="tile", fix="pass it as images")
            encoded = getattr(self._current, "image", None)
            if encoded is None:
                raise UserError("none given, and this thread has not called set_image", key="images")
            if domain is not None:
                raise UserError("name it in set_image, where the image is encoded", key="domain")
            asked = self._one_each(prompts, 1) if prompts is None or isinstance(prompts, Prompt) else list(prompts)
            return self.decode(encoded[[0] * len(asked)], asked, **options)
        single = isinstance(images, ImageInput) and getattr(images, "ndim", 3) < 4
        if isinstance(images, bytes) or not isinstance(images, (ImageInput, Iterable)):
            raise _no_image(images)
        listed: list[ImageInput] = [images] if single else list(images)  # type: ignore[list-item, arg-type]
        if tiles is None and self.processor.tiling is not None:
            cut = ", ".join(f"{key}={value!r}" for key, value in self.processor.tiling.items())
            warnings.warn(f"the model was trained on tiles, and these images are not cut: give {cut}", stacklevel=2)
        asked = self._one_each(prompts, len(listed))
        self.check(asked, domain, instances, threshold)
        results: list[Prediction] = []
        if tiles is not None:
            for image, prompt in zip(listed, asked):
                with opened_any(image, self.processor.channels) as opened:
                    how: dict[str, Any] = {key: value for key, value in options.items() if key != "min_score"}
                    run = self.run_tiles(opened, tiles, prompt, domain, route, batch_size=batch_size, **how)
                    results.append(
                        assembled(run, self.classes, self.has_estimate, cut=logit_of(threshold), min_score=min_score)
                    )
            return results
        for start in range(0, len(listed), batch_size):
            rows = slice(start, start + batch_size)
            results += self.decode(self.encode(listed[rows], domain), asked[rows], **options)
        return results

    def tiles(
        self, tile: int | Literal["auto"] | None, overlap: int | Literal["auto"] | None = None
    ) -> tuple[Tiles | None, list[str]]:
        """How images are cut by these arguments of `predict`, and sentences about what was rounded."""
        return resolve_tiles(tile, overlap, self.processor.image_size, self.processor.patch_size)

    def run_tiles(
        self,
        image: ImageWindows,
        tiles: Tiles,
        prompt: Prompt | None = None,
        domain: str | None = None,
        route: Route = "image",
        *,
        batch_size: int = 4,
        instances: InstanceSource | None = None,
        points_per_side: int = POINTS_PER_SIDE,
        threshold: float = 0.5,
    ) -> TiledRun:
        """Windows of the logits of one image, in memory that does not grow with its height: see `TiledRun`.

        Raises:
            UserError: as `predict`.
        """
        prompt = prompt or Prompt("none")
        self.check([prompt], domain, instances, threshold)
        check_route(route, tiles)
        check_prompt(prompt, image.size)
        grid = tiles.grid(image.size)
        options: dict[str, Any] = {"has_estimate": self.has_estimate, "points_per_side": points_per_side}
        chances: list[dict[str, float]] = []
        if domain is None and route == "image" and len(grid) > 1:
            with self.lock:
                domain, chances = choose_domain(self.model, self.processor, image, self.precision)
        return TiledRun(
            self.model,
            self.processor,
            image,
            grid,
            prompt,
            labels=None if self.classes is None else len(self.classes),
            domain=domain,
            batch_size=batch_size,
            precision=self.precision,
            instances=instances,
            instance_options=options | {"cut": logit_of(threshold)},
            lock=self.lock,
            routed=chances,
        )

    def set_image(self, image: ImageInput, domain: str | None = None) -> None:
        """Encode an image for this thread's next calls of `predict` without `images`."""
        self._current.image = self.encode([image], domain)

    def encode(self, images: Sequence[ImageInput], domain: str | None = None) -> EncodedImages:
        """Run the encoder once over `images`, to be given to `decode` any number of times."""
        check_domain(self.model, domain)
        inputs = self.processor([self._read(image) for image in images])
        with self.lock, inference([self.model], self.precision), routed(self.model, domain):
            embeddings = embeddings_of(self.model, inputs)
        return EncodedImages(embeddings, {name: inputs[name] for name in ("original_sizes", "reshaped_input_sizes")})

    def decode(
        self,
        encoded: EncodedImages,
        prompts: Prompt | Iterable[Prompt] | None = None,
        instances: InstanceSource | None = None,
        *,
        points_per_side: int = POINTS_PER_SIDE,
        min_score: float = 0.0,
        threshold: float = 0.5,
    ) -> list[Prediction]:
        """As `predict`, of images that are encoded: a `Prediction` for each."""
        check_options(instances, points_per_side=points_per_side, min_score=min_score)
        asked = self._one_each(prompts, len(encoded))
        self.check(asked, None, instances, threshold)
        cut = logit_of(threshold)
        for prompt, (size, _) in zip(asked, sizes_of(encoded.sizes)):
            check_prompt(prompt, size)
        placed, objects = place_prompts(self.processor, encoded.sizes, asked), None
        with self.lock, inference([self.model], self.precision):
            masks: Sequence[tuple[torch.Tensor, torch.Tensor | None]]
            if self.classes is None:
                masks = segment_scored(self.model, None, placed, image_embeddings=encoded.embeddings)
            else:
                labelled = segment(self.model, None, placed, image_embeddings=encoded.embeddings)
                masks = [(logits, None) for logits in labelled]
            if instances is not None:
                how: Any = {"has_estimate": self.has_estimate, "points_per_side": points_per_side, "cut": cut}
                objects = find_instances(
                    self.model, self.processor, encoded.sizes, encoded.embeddings, instances, **how
                )
            results = []
            for row, (logits, scores) in enumerate(masks):
                kept = None if objects is None else [each for each in objects[row] if each.score >= min_score]
                results.append(self._prediction(encoded[[row]], logits, scores, kept, cut))
        return results

    def check(
        self,
        prompts: Sequence[Prompt],
        domain: str | None = None,
        instances: InstanceSource | None = None,
        threshold: float = 0.5,
    ) -> None:
        """Raise `UserError` for what this model cannot do, before an image is read."""
        check_domain(self.model, domain)
        for prompt in prompts:
            if not isinstance(prompt, Prompt):
                raise UserError(
                    f"{prompt!r} is no Prompt", key="prompts", fix="make it by Prompt.box, point or clicks"
                )
        kinds = {prompt.kind for prompt in prompts} - {"none"}
        check_options(instances, kinds)
        if self.classes is not None and threshold != 0.5:
            raise UserError("the most probable class wins", key="threshold", fix="leave it out")
        logit_of(threshold)
        if self.classes is not None and (kinds or instances is not None):
            raise UserError(
                f"the model segments {len(self.classes)} classes without prompts",
                where="instances" if instances is not None else min(kinds),
                fix="leave it out",
            )

    def _prediction(
        self,
        encoded: EncodedImages,
        masks: torch.Tensor,
        scores: torch.Tensor | None,
        instances: list[Instance] | None,
        cut: float,
    ) -> Prediction:
        """Of one image: logits (n, h, w) of its objects and their scores (n,); of classes (K, h, w) and None."""
        sizes = encoded.sizes
        domains = domains_of(self.model, encoded.embeddings)
        chances = router_scores_of(self.model, encoded.embeddings)
        domain, routing = None if domains is None else domains[0], None if chances is None else chances[0]
        kept = (domain, routing, instances, masks, sizes, self.processor)
        if self.classes is None:
            mask = (merge_objects(self.processor, sizes, [masks])[0] > cut).cpu().numpy()
            score = float(scores.max()) if self.has_estimate and scores is not None and len(scores) else None
            return Prediction(mask, score, None, *kept)
        labels = largest_class(self.processor, sizes, [masks])[0]
        shares = np.bincount(labels.ravel(), minlength=len(self.classes)) / labels.size
        return Prediction(labels, None, dict(zip(self.classes, shares.tolist())), *kept)

    def _read(self, image: ImageInput) -> Any:
        if not isinstance(image, ImageInput):
            raise _no_image(image)
        return load_image(Path(image), self.processor.channels) if isinstance(image, (str, Path)) else image

    @staticmethod
    def _one_each(prompts: Prompt | Iterable[Prompt] | None, count: int) -> list[Prompt]:
        if prompts is None or isinstance(prompts, Prompt):
            return [prompts or Prompt("none")] * count
        listed = list(prompts)
        if len(listed) != count:
            raise UserError(
                f"{len(listed)} prompts for {count} images", key="prompts", fix="give one Prompt, or one an image"
            )
        return listed


def _config_of(model: nn.Module) -> Any:
    """The config of a pool, or of the active adapter; None without any."""
    active = getattr(model, "active_adapter", None)
    config = model.peft_config[active] if isinstance(active, str) else None  # type: ignore[index]
    return getattr(model, "moda_config", config)


def _no_image(value: Any) -> UserError:
    return UserError(f"{type(value).__name__} is no image", key="images", fix="give files, PIL images or arrays")
