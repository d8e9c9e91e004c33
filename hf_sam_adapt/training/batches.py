"""Which image goes into which micro-step, and what is drawn for it: functions of seed and position, without state."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch.utils.data import Dataset

from ..data.augment import augment
from ..data.dataset import mask_of
from ..data.images import IGNORE
from ..data.random_tiles import RandomTiles
from ..distributed import SampleLoader
from ..inference.embeddings.split import EmbeddedSample
from ..inference.forward import collate
from ..prompts import Prompt, training_prompt
from ..prompts.derive import MIN_AREA
from ..prompts.training import BOX_JITTER
from ..sam.processing import SamAdaptProcessor


if TYPE_CHECKING:
    from ..data import Sample, SegmentationSplit
    from ..inference.embeddings.split import EmbeddedSplit

MAX_OBJECTS = 8  # per image in training; the decoder's activations grow with them
LOOKED_AT = 64  # images, for one that has an object to prompt

Key = tuple[int, int]  # (epoch, index of the image)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, num_images: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_images)


@dataclass(frozen=True)
class BatchStream:
    """Keys of the micro-batches of one process, an endless shuffled stream cut into equal pieces.

    Position p of the stream is image `permutation(seed, p // n)[p % n]` of epoch `p // n`. Optimizer step s,
    micro-step a, on rank r takes `batch_size` positions from `((s * accumulation + a) * world + r) * batch_size`.
    So an optimizer step takes the same images however they are divided among processes and micro-steps, and a resumed
    run needs only its step.

    Attributes:
        num_images: n, images in the training split, or tiles of an epoch.
        first_step, last_step: optimizer steps first_step..last_step-1 are yielded.
    """

    num_images: int
    seed: int
    batch_size: int
    accumulation: int
    rank: int
    world: int
    first_step: int
    last_step: int

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        for micro_step in range(self.first_step * self.accumulation, self.last_step * self.accumulation):
            start = (micro_step * self.world + self.rank) * self.batch_size
            yield [self.key(position) for position in range(start, start + self.batch_size)]

    def key(self, position: int) -> Key:
        epoch, place = divmod(position, self.num_images)
        return epoch, int(_permutation(self.seed, epoch, self.num_images)[place])


class TrainingSamples(Dataset):
    """Augmented, prompted, processed images, addressed by `(epoch, index)`.

    Everything drawn for a sample comes from (seed, epoch, index), so neither workers nor processes matter.

    Args:
        split: the training images, tiles of them, or their embeddings, which take no augmentation.
        kinds: prompt kinds; one is drawn per sample.
        augmentations: names for `augment`.
        weights: how often a kind is drawn, relative to the others; 1 for a kind that is not named.
        jitter, points, rounds: of boxes, of point prompts, and corrections per prompt; see `training_prompt`.
    """

    def __init__(
        self,
        split: SegmentationSplit | RandomTiles | EmbeddedSplit,
        processor: SamAdaptProcessor,
        kinds: Sequence[str],
        augmentations: Sequence[str],
        seed: int,
        *,
        weights: Mapping[str, float] | None = None,
        jitter: float = BOX_JITTER,
        points: int = 1,
        rounds: int = 0,
    ) -> None:
        self.split, self.processor, self.seed = split, processor, seed
        self.kinds, self.augmentations = list(kinds), list(augmentations)
        self.shares = prompt_shares(kinds, weights)
        self.jitter, self.points, self.rounds = jitter, points, rounds

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """What the processor packs of one image, and `weight` float32 (1,): 0 for an image with nothing to learn.

        An embedding comes as `image_embeddings`, `ImageEmbeddings` of one image, in place of `pixel_values`.
        """
        epoch, index = key
        rng = np.random.default_rng([self.seed, epoch, index])
        if isinstance(self.split, RandomTiles):
            tile, instances = self.split.draw(epoch, index, set(self.kinds) != {"none"})
            sample: Sample | EmbeddedSample = tile
        else:
            sample, instances = self.split[index], self._instances(index)
        if isinstance(sample, EmbeddedSample):
            return self._embedded(sample, instances, rng)
        if instances is not None:
            # Moved as the image will be, by the same draws; colours come after all that is drawn for the place.
            places = [name for name in self.augmentations if name != "colour"]
            _, instances = augment(instances[..., None], instances, copy.deepcopy(rng), places)
        image, mask = augment(sample.image, sample.mask, rng, self.augmentations)
        prompt, weight = self._draw_prompt(mask, instances, rng)
        inputs = self.processor.pack([image], masks=[mask], prompts=[prompt], mask_values="index")
        wanted = ("pixel_values", "reshaped_input_sizes", "labels", "prompts")
        return {**{name: inputs[name] for name in wanted}, "weight": torch.tensor([weight])}

    def lack_objects(self) -> str | None:
        """What to say where no image has an object that is large enough to be prompted; else None.

        Images with foreground are looked at, drawn by the seed, until one has such an object, at most `LOOKED_AT`.
        """
        if set(self.kinds) == {"none"}:
            return None
        seen = 0
        for index in np.random.default_rng(self.seed).permutation(len(self.split)).tolist():
            if isinstance(self.split, RandomTiles):
                tile, instances = self.split.draw(0, index, True)
                mask = tile.mask
            else:
                mask, instances = mask_of(self.split, index), self._instances(index)
            foreground = (mask > 0) & (mask != IGNORE)
            if not foreground.any():
                continue
            if len(training_prompt(mask, "point", np.random.default_rng(0), instances=instances)):
                return None
            seen += 1
            if seen == LOOKED_AT:
                break
        what = "tile" if isinstance(self.split, RandomTiles) else "image"
        return (
            f"none of {seen} training {what}s with foreground has an object of {MIN_AREA:.2%} of the {what}, "
            "the smallest that is prompted"
            if seen
            else None
        )

    def _instances(self, index: int) -> np.ndarray | None:
        """The image's instance map where prompts may need it and the data has one."""
        read = getattr(self.split, "instances", None)
        return None if read is None or set(self.kinds) == {"none"} else read(index)

    def _embedded(
        self, sample: EmbeddedSample, instances: np.ndarray | None, rng: np.random.Generator
    ) -> dict[str, Any]:
        prompt, weight = self._draw_prompt(sample.mask, instances, rng)
        size = [sample.mask.shape]
        # The whole mask as an object: the processor resizes it without asking for an image.
        (whole,) = self.processor.transform_prompts([Prompt("none", targets=sample.mask[None])], size)
        labels = torch.as_tensor(whole.targets)  # (1, S, S)
        return {
            "image_embeddings": sample.embedding[None],
            "labels": labels,
            "prompts": self.processor.transform_prompts([prompt], size, labels=labels),
            "weight": torch.tensor([weight]),
        }

    def _draw_prompt(
        self, mask: np.ndarray, instances: np.ndarray | None, rng: np.random.Generator
    ) -> tuple[Prompt, float]:
        kind = self.kinds[rng.choice(len(self.kinds), p=self.shares)]
        if kind == "none":
            return Prompt("none"), 1.0
        prompt = training_prompt(
            mask,
            kind,
            rng,
            jitter=self.jitter,
            points=self.points,
            rounds=self.rounds,
            max_objects=MAX_OBJECTS,
            instances=instances,
        )
        if len(prompt) == 0:
            # Still decoded, without weight: every trained parameter gets a gradient in every process, as DDP demands.
            return Prompt("none"), float("none" in self.kinds)
        return prompt, 1.0


def prompt_shares(kinds: Sequence[str], weights: Mapping[str, float] | None) -> list[float]:
    """The fraction of the samples that is trained with each of `kinds`."""
    wanted = [float((weights or {}).get(kind, 1)) for kind in kinds]
    return [one / sum(wanted) for one in wanted]


def training_loader(
    samples: TrainingSamples, stream: BatchStream, num_workers: int | None, pin_memory: bool
) -> SampleLoader:
    """Loader of the stream's micro-batches, packed: `to_device` makes inputs of them.

    With embeddings for images, `image_embeddings`, `ImageEmbeddings` of B, stand for `pixel_values`.
    """
    return SampleLoader(
        samples,
        batch_sampler=stream,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        # The loader's own draw must not touch the training's generator.
        generator=torch.Generator().manual_seed(stream.seed),
    )


def to_device(batch: dict[str, Any], processor: SamAdaptProcessor, device: torch.device) -> dict[str, Any]:
    """A packed batch on `device`, with `pixel_values` (B,C,S,S) as the network takes them."""
    batch = send_to_device(batch, device, non_blocking=True)
    if "pixel_values" in batch:
        batch["pixel_values"] = processor.unpack(batch["pixel_values"], batch["reshaped_input_sizes"])
    return batch


def seed_micro_step(seed: int, step: int, micro_step: int, rank: int) -> None:
    """Seed torch (dropout) from the place in the training, so that a resumed run draws what the straight one drew."""
    state = np.random.SeedSequence([seed, step, micro_step, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))
