"""Adapt SAM to one domain after the other, and score all of them after each.

    accelerate launch recipes/continual.py --config recipes/continual_quickstart.yaml

Every key of the YAML file is a flag too, and flags win; `--help` lists them with their defaults. The same command
again goes on where it stopped, and learns the domains that were added at the end of the list.
"""

import sys

from hf_sam_adapt.config.continual_recipe import parse_continual_recipe
from hf_sam_adapt.continual.run import continual
from hf_sam_adapt.errors import exit_status


def main() -> None:
    """Parse the recipe, run it."""
    recipe = parse_continual_recipe()
    continual(recipe)


if __name__ == "__main__":
    sys.exit(exit_status(main))
