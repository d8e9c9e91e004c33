"""`recipes/train.py` with FSDP2 on CPUs, which Accelerate knows on GPUs alone; started by torchrun."""

import os
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType


os.environ |= {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "SamVisionLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
if int(os.environ["WORLD_SIZE"]) > 1:
    PartialState(cpu=True)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

from hf_sam_adapt.cli import main


sys.exit(main(["train", *sys.argv[1:]]))
