"""The losses of a training."""
