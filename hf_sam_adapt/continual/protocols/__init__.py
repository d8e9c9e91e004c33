"""The ways to learn domain after domain, one a module."""

from .er import Er
from .ewc import Ewc
from .grown_pool import Grown
from .joint import Joint
from .l2p import L2p
from .lwf import Lwf
from .moda import Moda
from .naive import Naive
from .olora import Olora


PROTOCOLS: dict[str, type[Naive]] = {
    "moda": Moda,
    "naive": Naive,
    "joint": Joint,
    "er": Er,
    "lwf": Lwf,
    "ewc": Ewc,
    "l2p": L2p,
    "olora": Olora,
}

__all__ = ["PROTOCOLS", "Grown"]
