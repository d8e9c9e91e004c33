"""The ways to learn domain after domain, one a module."""

from .er import Er
from .joint import Joint
from .naive import Naive


PROTOCOLS: dict[str, type[Naive]] = {
    "naive": Naive,
    "joint": Joint,
    "er": Er,
}

__all__ = ["PROTOCOLS"]
