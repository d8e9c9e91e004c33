"""The ways to learn domain after domain, one a module."""

from .er import Er
from .ewc import Ewc
from .joint import Joint
from .lwf import Lwf
from .moda import Moda
from .naive import Naive


PROTOCOLS: dict[str, type[Naive]] = {
    "moda": Moda,
    "naive": Naive,
    "joint": Joint,
    "er": Er,
    "lwf": Lwf,
    "ewc": Ewc,
}

__all__ = ["PROTOCOLS"]
