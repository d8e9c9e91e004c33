"""What a training costs: images per second and peak memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import threading
import time
from typing import ClassVar

import torch


_SAMPLE_SECONDS = 0.02


class CostMeter:
    """Measures the steps of a training between `with` and its end.

    `peak_memory_bytes` is CUDA's `max_memory_allocated` less what others held when the meter was made; on a CPU the
    highest resident memory seen while training less that before it. A later training in the same process costs what it
    would in one of its own: what was freed is given back to the system first, and pages of libraries that an earlier
    training has read in count as new. `images_per_second` comes from the median time of a step, the first tenth and at
    least the first step left out, if there are more.

    Make it before the model is on its device.

    Args:
        device: where the model is.
        images_per_step: images of one optimizer step, all processes together.
    """

    _first_pages: ClassVar[int | None] = None  # bytes before the first training of this process

    def __init__(self, device: torch.device, images_per_step: int) -> None:
        self.device, self.images_per_step = device, images_per_step
        self.seconds: list[float] = []
        self._last = 0.0
        self._done = threading.Event()
        release_free_memory()
        self._before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        self._highest = self._before

    def __enter__(self) -> CostMeter:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            import psutil

            release_free_memory()
            self._process = psutil.Process()
            memory = self._process.memory_info()
            pages = getattr(memory, "shared", 0)  # of files, above all libraries; Linux alone counts them
            CostMeter._first_pages = pages if CostMeter._first_pages is None else CostMeter._first_pages
            self._before, self._highest = memory.rss - max(0, pages - CostMeter._first_pages), memory.rss
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        self.restart()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        if self.device.type != "cuda":
            self._thread.join()

    def restart(self) -> None:
        """Start the clock of the next step; what happened since the last step is not counted."""
        self._last = time.perf_counter()

    def step(self) -> None:
        """An optimizer step has ended."""
        now = time.perf_counter()
        self.seconds.append(now - self._last)
        self._last = now

    @property
    def images_per_second(self) -> float | None:
        """None before the first step."""
        if not self.seconds:
            return None
        steady = self.seconds[max(1, len(self.seconds) // 10) :] or self.seconds
        return self.images_per_step / statistics.median(steady)

    @property
    def peak_memory_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self._before
        return self._highest - self._before

    def _watch(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self._highest = max(self._highest, self._process.memory_info().rss)


def release_free_memory() -> None:
    """Free what is no longer referenced, and give the C library's free memory back to the system (glibc only)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
