"""Adapt SAM to a folder of images and masks.

    accelerate launch recipes/train.py --config recipes/quickstart.yaml
    accelerate launch recipes/train.py --config recipes/polyp_sam_adapter.yaml --dataset data/polyp --method lora

Every key of the YAML file is a flag too, and flags win; `--help` lists them with their defaults.
"""

import sys

from hf_sam_adapt.config.recipe import parse_recipe
from hf_sam_adapt.errors import exit_status
from hf_sam_adapt.training import train


def main() -> None:
    """Parse the recipe, train by it."""
    recipe = parse_recipe()
    train(recipe)


if __name__ == "__main__":
    sys.exit(exit_status(main))
