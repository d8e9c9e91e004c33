# /// script
# requires-python = ">=3.10"
# dependencies = ["hf-sam-adapt[train]"]
# ///
"""Adapt SAM to a folder of images and masks.

    accelerate launch recipes/train.py --config recipes/quickstart.yaml
    accelerate launch recipes/train.py --config recipes/polyp_sam_adapter.yaml --dataset data/polyp --method lora

Every key of the YAML file is a flag too, and flags win; `--help` lists them with their defaults.
"""

import sys

from hf_sam_adapt.cli import main


if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
