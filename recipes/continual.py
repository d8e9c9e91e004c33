# /// script
# requires-python = ">=3.10"
# dependencies = ["hf-sam-adapt[train]"]
# ///
"""Adapt SAM to one domain after the other, and score all of them after each.

    accelerate launch recipes/continual.py --config recipes/continual_quickstart.yaml

Every key of the YAML file is a flag too, and flags win; `--help` lists them with their defaults. The same command
again goes on where it stopped, and learns the domains that were added at the end of the list.
"""

import sys

from hf_sam_adapt.cli import main


if __name__ == "__main__":
    sys.exit(main(["continual", *sys.argv[1:]]))
