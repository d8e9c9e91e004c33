"""Model cards: README.md and `.eval_results/` of a run folder or a pool, out of what the run has measured."""

from .page import INSTALL
from .public import public_recipe
from .write import write_card


__all__ = ["INSTALL", "public_recipe", "write_card"]
