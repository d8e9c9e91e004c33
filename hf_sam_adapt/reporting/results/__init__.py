"""Results of `predict` in the formats of other tools: a writer for each, in one table."""

from .formats import WRITERS, make_writers
from .result import ImageResult, WriteOptions, Writer


__all__ = ["WRITERS", "ImageResult", "WriteOptions", "Writer", "make_writers"]
