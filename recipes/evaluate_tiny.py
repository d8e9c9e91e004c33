# /// script
# requires-python = ">=3.10"
# dependencies = ["hf-sam-adapt[train]"]
# ///
"""Measure a small SAM as `tiny`'s card reports it: drawn scenes that it has not seen, and real domains by box.

python recipes/evaluate_tiny.py --data DOMAINS
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tiny_images.scenes import draw_scene
from torch.utils.data import Dataset
from transformers import HfArgumentParser, SamModel

from hf_sam_adapt.data import load_segmentation_dataset
from hf_sam_adapt.data.dataset import Sample
from hf_sam_adapt.evaluation import evaluate
from hf_sam_adapt.inference.forward import encode
from hf_sam_adapt.metrics import OverlapMetric
from hf_sam_adapt.prompts import PROMPT_KINDS, derive_prompts
from hf_sam_adapt.sam.processing import SamAdaptProcessor


# Domains with several classes are measured on one of them.
ONE_CLASS = {"em_neuron": 1, "camvid": 4}
CLASSES = {"em_neuron": 5, "camvid": 12}


@dataclass
class Arguments:
    """Command line."""

    model: str = field(default="hf_sam_adapt/sam/tiny_sam", metadata={"help": "Model folder."})
    data: str | None = field(default=None, metadata={"help": "Folder of real domains, each with test/."})
    scenes: int = field(default=200, metadata={"help": "Drawn scenes."})
    seed: int = field(default=2, metadata={"help": "Series of the scenes; the training's is 1."})


class DrawnScenes(Dataset):
    """The first `count` scenes of a series that have a salient class, as an evaluation split."""

    def __init__(self, seed: int, count: int, size: tuple[int, int] = (256, 256)):
        self.scenes, index = [], 0
        while len(self.scenes) < count:
            scene = draw_scene(seed, index, size)
            if len(derive_prompts(scene.salient, "box")):
                self.scenes.append((index, scene))
            index += 1

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, number: int) -> Sample:
        index, scene = self.scenes[number]
        return Sample(scene.image, scene.salient, f"scene_{index}", number)


def embedding_deviation(model: SamModel, processor: SamAdaptProcessor, split: Dataset, count: int = 32) -> float:
    """Standard deviation of the image embedding over images, mean over its entries: near 0 for a blind encoder."""
    with torch.no_grad():
        pixels = processor([split[i].image for i in range(min(count, len(split)))])["pixel_values"]
        return encode(model, pixels).maps.std(0).mean().item()


def filled_boxes(split: Dataset) -> float:
    """IoU of the prompt boxes themselves, filled in: what a model must beat to have looked inside them."""
    scores = OverlapMetric()
    for number in range(len(split)):
        mask = split[number].mask
        filled = np.zeros(mask.shape, bool)
        for x1, y1, x2, y2 in derive_prompts(mask, "box").boxes.astype(int):
            filled[y1 : y2 + 1, x1 : x2 + 1] = True
        scores.update(filled, mask)
    return scores.compute()["iou"]


class OneClass(Dataset):
    """A split with one of its classes as foreground."""

    def __init__(self, split: Dataset, label: int):
        self.split, self.label = split, label

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, number: int) -> Sample:
        sample = self.split[number]
        sample.mask = (sample.mask == self.label).astype(np.uint8)
        return sample


def real_domain(folder: Path) -> Dataset:
    """The test images of one domain, by one class."""
    data = load_segmentation_dataset(folder, num_labels=CLASSES.get(folder.name))
    return OneClass(data.test, ONE_CLASS.get(folder.name, 1))


def main() -> None:
    (arguments,) = HfArgumentParser(Arguments).parse_args_into_dataclasses()
    model = SamModel.from_pretrained(arguments.model, dtype=torch.float32).eval()
    processor = SamAdaptProcessor.from_pretrained(arguments.model)
    drawn = DrawnScenes(arguments.seed, arguments.scenes)
    found = evaluate(model, processor, drawn, list(PROMPT_KINDS), adapted=False, zero_shot_model=model, progress=False)
    print(f"drawn scenes: {len(drawn)}, series {arguments.seed}; IoU")
    for kind, scores in found.test.items():
        print(f"| {kind} | {scores['zero_shot']['iou']:.3f} |")
    print(f"deviation of the embedding over images: {embedding_deviation(model, processor, drawn):.3f}")
    for folder in sorted(Path(arguments.data).iterdir()) if arguments.data else []:
        if (folder / "test").is_dir():
            split = real_domain(folder)
            scores = evaluate(
                model, processor, split, ["box"], adapted=False, zero_shot_model=model, progress=False
            ).test["box"]["zero_shot"]
            print(f"| {folder.name} | {scores['iou']:.3f} | {filled_boxes(split):.3f} |", flush=True)


if __name__ == "__main__":
    main()
