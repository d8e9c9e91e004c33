"""Training with Accelerate: one run from a recipe to a run folder."""

from .run import train


__all__ = ["train"]
