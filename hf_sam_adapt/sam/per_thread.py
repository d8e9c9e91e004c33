"""What each thread has for itself while it runs a model, and what one thread at a time may do."""

import threading
from typing import Any


class PerThread(threading.local):
    """Base of holders whose attributes each thread has for itself; a subclass gives their values at first.

    Many threads may use a model at once, and so may the replicas that `nn.DataParallel` makes of it, which share such
    a holder. A copy or a pickle starts afresh: a tensor inside a graph can be neither copied nor pickled. Unlike
    context variables `torch.compile` follows it.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()


class CallLock:
    """`with` it one thread at a time goes on; the same thread may enter again. A copy or a pickle has its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exception: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), ()
