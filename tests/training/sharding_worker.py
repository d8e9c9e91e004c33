"""Writes the gradients of one step of a model that FSDP2 shards over the processes of torchrun; one: not sharded.

python sharding_worker.py OUT.safetensors METHOD
"""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_sam_adapt.inference.loading import build_model
from hf_sam_adapt.training.run import leave_processes


sys.path.insert(0, str(Path(__file__).parents[1]))
from sams import random_sam


out, method = sys.argv[1:]
state = PartialState(cpu=True)
torch.manual_seed(0)
model = build_model(method, {}, random_sam(), image_size=None).eval()
sharded = state.num_processes > 1
if sharded:
    for layer in model.get_base_model().vision_encoder.layers:
        fully_shard(layer)
    fully_shard(model)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    blocks = {name for name, p in model.named_parameters() if ".layers." in name and p.to_local().numel() < p.numel()}
    assert blocks, "no parameter of a block is split"
side = model.config.vision_config.image_size
torch.manual_seed(1)
pixels = torch.randn(2, 3, side, side)
mine = pixels[[state.process_index]] if sharded else pixels
masks = model(pixel_values=mine, multimask_output=False).pred_masks
masks.square().mean().backward()
gradients = {}
for name, parameter in model.named_parameters():
    if parameter.requires_grad:
        assert parameter.grad is not None, name
        gradient = parameter.grad
        gradients[name] = (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).contiguous()
if state.is_main_process:
    save_file(gradients, out)
state.wait_for_everyone()  # one that ended earlier would take the connection from under the other
leave_processes()
