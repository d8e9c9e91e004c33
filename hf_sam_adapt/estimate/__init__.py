"""What a training will need, before it runs: parameters, peak memory, time."""

from .estimate import Estimate, estimate


__all__ = ["Estimate", "estimate"]
