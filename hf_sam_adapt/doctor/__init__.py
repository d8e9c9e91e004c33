"""What is wrong with a data set, before the hours of training: read as a training reads it, all of it."""

from .examine import Diagnosis, examine_dataset
from .findings import Finding


__all__ = ["Diagnosis", "Finding", "examine_dataset"]
