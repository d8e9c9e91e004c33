"""A few real steps of a recipe, in a process of its own, whose memory nothing else has touched.

python -m hf_sam_adapt.estimate.calibrate IN.json OUT.json

OUT.json holds what `calibrate` returns, or under "refused" the fields of a `UserError`.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import torch
from accelerate.utils import set_seed

from ..config.recipe import Recipe
from ..data import SegmentationData, SegmentationSplit
from ..data.random_tiles import RandomTiles
from ..errors import UserError
from ..training.loop import TrainingLoop
from ..training.resolve import load_model
from ..training.run import build_accelerator, embed, load_data
from ..training.run_folder import RunFolder
from ..training.task import task_of, tiles_of
from .shapes import step_bytes


STEPS = 10
# Of the free memory, what the tensors of a step may take without a doubt that it fits.
USED_SHARE = 0.5


def calibrate(recipe: Recipe) -> dict:
    """Run `STEPS` optimizer steps and a validation, at the recipe's batch size or, if that may not fit, at two images.

    Args:
        recipe: its `output_dir` is an empty folder for this alone.

    Returns:
        Parameters, bytes and seconds, as `estimate` reads them.
    """
    set_seed(recipe.seed)
    data = load_data(recipe)
    wanted = recipe.batch_size
    recipe, model, processor = load_model(recipe, data)
    folder = RunFolder(recipe)
    accelerator = build_accelerator(recipe, model, folder)
    if step_bytes(model, recipe, wanted, 1) > free_bytes(accelerator.device) * USED_SHARE:
        recipe = dataclasses.replace(recipe, batch_size=min(2, wanted))
    recipe = dataclasses.replace(recipe, max_steps=STEPS)  # also where the training has fewer
    few = first_images(data, STEPS * recipe.batch_size * recipe.gradient_accumulation_steps)
    loop = TrainingLoop(
        recipe, accelerator, model, processor, few, folder.checkpoints, task_of(recipe, few).loss_weights()
    )
    if recipe.cache_embeddings:
        embed(loop)
    objects = [1]
    with loop.cost as cost:
        batches = counted(loop._loader(), objects)
        for step in range(STEPS):
            loop._optimizer_step(step, batches).tolist()  # waits for a GPU
            cost.step()
        if few.val is not None and few.val_chooses:
            try:
                loop._validate()
            except UserError as error:
                if error.code != "no-foreground":  # as of the first images alone; they have been segmented by then
                    raise
    tiles = tiles_of(recipe, processor)
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    whole = step_bytes(model, recipe, wanted, max(objects))
    fits = recipe.batch_size == wanted
    return {
        "device": accelerator.device.type,
        "images": len(data.train) if tiles is None else len(RandomTiles(data.train, tiles, 0, recipe.seed)),
        "tiled": tiles is not None,
        "trained": sum(map(torch.numel, trained)),
        "total": sum(map(torch.numel, parameters)),
        "trained_bytes": sum(p.numel() * p.element_size() for p in trained),
        "weight_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "peak": cost.peak_memory_bytes,
        "batch_size": recipe.batch_size,
        "seconds": statistics.median(cost.seconds[1:]),
        "shapes": [whole if fits else step_bytes(model, recipe, recipe.batch_size, max(objects)), whole],
    }


def counted(batches: Iterable[dict], objects: list[int]) -> Iterator[dict]:
    """The batches, with the number of each image's prompts added to `objects`."""
    for batch in batches:
        objects += [len(prompt) for prompt in batch["prompts"] if prompt.kind != "none"]
        yield batch


def free_bytes(device: torch.device) -> int:
    """Memory of the device, or of the machine, that nobody uses."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def first_images(data: SegmentationData, count: int) -> SegmentationData:
    """The first training and validation images of a data set, and nothing to test on."""

    def first(split: SegmentationSplit) -> SegmentationSplit:
        table = split.table.select(range(min(count, len(split))))
        return type(split)(table, split.reader, split.encoding)

    return dataclasses.replace(data, train=first(data.train), val=first(data.val) if data.val else None, test=None)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    try:
        found = calibrate(Recipe(**json.loads(source.read_text(encoding="utf-8"))))
    except UserError as error:
        found = {"refused": error.fields}
    target.write_text(json.dumps(found), encoding="utf-8")
