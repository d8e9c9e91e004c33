"""A few real steps of a recipe, in a process of its own, whose memory nothing else has touched.

python -m hf_sam_adapt.estimate.calibrate IN.json OUT.json
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from pathlib import Path

import torch
from accelerate.utils import set_seed

from ..data import SegmentationData
from ..recipe import Recipe
from ..training.cost import CostMeter
from ..training.loop import TrainingLoop
from ..training.run import build_accelerator, embed, load_data, load_model
from ..training.run_folder import RunFolder
from ..training.settle import loss_weights
from .shapes import step_bytes


STEPS = 4


def calibrate(recipe: Recipe, batch_size: int) -> dict:
    """Run `STEPS` optimizer steps at the recipe's batch size, and count what tensors take there and at `batch_size`.

    Args:
        recipe: at a small batch size; its `output_dir` is an empty folder for this alone.
        batch_size: that of the training to come.

    Returns:
        Parameters, bytes and seconds, as `estimate` reads them.
    """
    set_seed(recipe.seed)
    data = load_data(recipe)
    few = first_images(data, STEPS * recipe.batch_size)
    recipe, model, processor = load_model(recipe, few)
    folder = RunFolder(recipe)
    accelerator = build_accelerator(recipe, model, folder)
    loop = TrainingLoop(recipe, accelerator, model, processor, few, folder.checkpoints, loss_weights(recipe, few))
    if recipe.cache_embeddings:
        embed(loop)
    objects, batches = 1, iter(loop._loader())
    with CostMeter(accelerator.device, recipe.batch_size) as cost:
        for step in range(STEPS):
            batch = next(batches)
            objects = max(objects, *(len(prompt) for prompt in batch["prompts"] if prompt.kind != "none"), 0)
            loop._optimizer_step(step, iter([batch]))
            cost.step()
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return {
        "device": accelerator.device.type,
        "images": len(data.train),
        "trained": sum(map(torch.numel, trained)),
        "total": sum(map(torch.numel, parameters)),
        "trained_bytes": sum(p.numel() * p.element_size() for p in trained),
        "weight_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "peak": cost.peak_memory_bytes,
        "seconds": statistics.median(cost.seconds[1:]),
        "shapes": [step_bytes(model, recipe, size, objects) for size in (recipe.batch_size, batch_size)],
    }


def first_images(data: SegmentationData, count: int) -> SegmentationData:
    """The first training images of a data set, and nothing to validate or test on."""
    train = data.train
    return dataclasses.replace(
        data,
        train=type(train)(train.table.select(range(min(count, len(train)))), train.reader, train.encoding),
        val=None,
        test=None,
    )


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    wanted = json.loads(source.read_text(encoding="utf-8"))
    found = calibrate(Recipe(**wanted["recipe"]), wanted["batch_size"])
    target.write_text(json.dumps(found), encoding="utf-8")
