"""What each step of the pre-training sees, drawn from (seed, step) alone, and the held-back photographs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tiny_images.drawn import DrawnScenes
from tiny_images.example import Example
from tiny_images.photographs import Photographs
from torch.utils.data import Dataset

from hf_sam_adapt.errors import UserError

from .model import MASK, SIDE
from .prompts import draw_prompts


KINDS = {"box": 0.5, "point": 0.4, "mask": 0.1}
MOST_ROUNDS = 2  # of corrections


def cover(masks: torch.Tensor) -> torch.Tensor:
    """The covered share of each mask pixel, (..., 64, 64), of masks bool (..., 256, 256)."""
    stride = SIDE // MASK
    blocks = masks.to(torch.uint8).unflatten(-1, (MASK, stride)).unflatten(-3, (MASK, stride))
    return blocks.sum((-3, -1), dtype=torch.float32) / stride**2


def collate(examples: list[Example]) -> dict:
    """The tensors of a step: `images` (B, 3, 256, 256), `cover` (B, P, 64, 64), `partial` bool (B,), and of the images
    `with_whole` (W,) that have one, the class to find without a prompt, `whole` (W, 1, 64, 64), and its `task` (W,).
    """
    found = [number for number, example in enumerate(examples) if example.whole is not None]
    wholes = [examples[number].whole for number in found]
    return {
        "images": torch.stack([example.image for example in examples]),
        "cover": cover(torch.stack([example.objects for example in examples])),
        "partial": torch.tensor([example.partial for example in examples]),
        "with_whole": torch.tensor(found, dtype=torch.int64),
        "whole": cover(torch.stack(wholes))[:, None] if wholes else torch.zeros(0, 1, MASK, MASK),
        "task": torch.tensor([examples[number].task for number in found], dtype=torch.int64),
    }


@dataclass
class Mixture:
    """Where the images come from: drawn scenes, photographs, or both with `drawn_share` of the first."""

    drawn: DrawnScenes | None
    photographs: Photographs | None
    drawn_share: float = 1.0

    def draw(self, rng: np.random.Generator, count: int) -> Example:
        """One example with `count` objects."""
        from_pool = self.photographs is None or (self.drawn is not None and rng.random() < self.drawn_share)
        return (self.drawn if from_pool else self.photographs).draw(rng, count)


class Steps(Dataset):
    """What step s trains on, drawn from (seed, s) alone: so a resumed run sees what the straight one would.

    Each item is what `collate` makes, and `kind`; `prompts` of the first `prompts_per_image` objects of each image;
    `rounds` of corrections, should the step have them, and their `draws` (B, rounds).
    """

    def __init__(self, mixture: Mixture, arguments):
        self.mixture, self.arguments = mixture, arguments

    def __len__(self) -> int:
        return self.arguments.max_steps

    def __getitem__(self, step: int) -> dict:
        arguments = self.arguments
        rng = np.random.default_rng([arguments.seed, step])
        examples = [self.mixture.draw(rng, arguments.dense_per_image) for _ in range(arguments.batch_size)]
        kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
        objects = torch.stack([example.objects[: arguments.prompts_per_image] for example in examples])
        rounds = 0 if kind == "mask" else int(rng.integers(MOST_ROUNDS + 1))
        draws = torch.from_numpy(rng.random((arguments.batch_size, MOST_ROUNDS)))
        prompts = draw_prompts(objects, kind, rng)
        return collate(examples) | {"kind": kind, "prompts": prompts, "rounds": rounds, "draws": draws}


@dataclass
class HeldBack:
    """Photographs of sources that are not trained on, the same at each look.

    `items` of `collate`, a source each, without tasks; `prompts`: for each of them the prompts by kind.
    """

    names: list[str]
    items: list[dict]
    prompts: list[dict[str, dict]]

    @staticmethod
    def draw(photographs: Photographs, seed: int, images: int, objects: int) -> HeldBack:
        """Up to `images` photographs of each source, evenly spaced, with `objects` regions each."""
        items, prompts = [], []
        for source, records in enumerate(photographs.records):
            rng = np.random.default_rng([seed, source])
            numbers = np.unique(np.linspace(0, len(records) - 1, images).round().astype(int))
            found = [photographs.plain(source, int(number), rng, objects) for number in numbers]
            examples = [example for example in found if example is not None]
            if not examples:
                raise UserError(f"{photographs.sources[source]}: held back, but no region of it is large enough")
            items.append(collate(examples))
            masks = torch.stack([example.objects for example in examples])
            prompts.append({kind: draw_prompts(masks, kind, rng) for kind in ("box", "point")})
        return HeldBack(list(photographs.sources), items, prompts)
