"""Writes the gradients of recipes' first optimizer steps; a process of its own, or several under torchrun.

python gradient_worker.py JOBS.json, where each job is a file to write and the flags of a recipe
"""

import json
import sys
from pathlib import Path

from accelerate.utils import set_seed
from safetensors.torch import save_file

from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.training.loop import TrainingLoop
from hf_sam_adapt.training.resolve import load_model
from hf_sam_adapt.training.run import build_accelerator, leave_processes, load_data
from hf_sam_adapt.training.run_folder import RunFolder


def write_gradients(out, flags):
    recipe = parse_recipe(flags)
    set_seed(recipe.seed)
    folder = RunFolder(recipe)
    data = load_data(recipe)
    recipe, model, processor = load_model(recipe, data)
    loop = TrainingLoop(recipe, build_accelerator(recipe, model, folder), model, processor, data, folder.checkpoints)
    gradients = {}
    zero_grad = loop.optimizer.zero_grad

    def keep_gradients():
        if loop.accelerator.sync_gradients:
            gradients.update({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
        zero_grad()

    loop.optimizer.zero_grad = keep_gradients
    loss, _ = loop._optimizer_step(0, iter(loop._loader())).tolist()
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    if loop.accelerator.is_main_process:
        save_file(gradients, out, metadata={"loss": repr(loss), "world": str(loop.accelerator.num_processes)})


for out, flags in json.loads(Path(sys.argv[1]).read_text()):
    write_gradients(out, flags)
leave_processes()
