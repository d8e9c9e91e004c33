"""Writes the gradients of a recipe's first optimizer step; a process of its own, or several under torchrun.

python gradient_worker.py OUT.safetensors --model ... --dataset ...
"""

import sys

from accelerate.utils import set_seed
from safetensors.torch import save_file

from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.training.loop import TrainingLoop
from hf_sam_adapt.training.resolve import load_model
from hf_sam_adapt.training.run import build_accelerator, leave_processes, load_data
from hf_sam_adapt.training.run_folder import RunFolder


out, recipe = sys.argv[1], parse_recipe(sys.argv[2:])
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
leave_processes()
