"""`recipes/train.py` with FSDP2 on CPUs, which Accelerate knows on GPUs alone; started by torchrun, or as one process.

Adam divides by a gradient's size, so where that is mere rounding, as it is for most of a matrix that starts at 0, its
step is as large as any and of either sign. A larger epsilon makes steps proportional to gradients, which are what the
processes must agree on.
"""

import os
import sys
from functools import partial

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType


if int(os.environ.get("WORLD_SIZE", 1)) > 1:
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "SamVisionLayer",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

from hf_sam_adapt.cli import main


torch.optim.AdamW = partial(torch.optim.AdamW, eps=1e-3)
sys.exit(main(["train", *sys.argv[1:]]))
