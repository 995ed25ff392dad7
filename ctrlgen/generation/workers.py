"""Batches shared among the cores of a CPU.

Sentences are too small for several cores to share one well, so each core has a batch of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, repeat
from threading import Event, Lock, Thread
from typing import TypeVar

import torch

from ctrlgen.generation.jobs import J, make_batches

T = TypeVar("T")
_setting_threads = Lock()


class Workers:
    """So many threads, each of which runs torch on one core. Torch's own settings stay as they were found."""

    def __init__(self, device: torch.device):
        # Asked now: a later call may come from a thread that was given one core.
        self.count = torch.get_num_threads() if device.type == "cpu" else 1

    def map(self, work: Callable[[Sequence[J], Event], Sequence[T]], jobs: Sequence[J]) -> dict[J, T]:
        """What `work` makes of each job. It is given batches, and an event that is set when it should stop."""
        batches = make_batches(jobs, self.count)
        stopped = Event()
        with ThreadPoolExecutor(self.count, initializer=use_one_core) as pool:
            try:
                results = list(pool.map(work, batches, repeat(stopped)))
            finally:
                stopped.set()
        pairs = (zip(batch, result, strict=True) for batch, result in zip(batches, results, strict=True))
        return dict(chain.from_iterable(pairs))


def use_one_core() -> None:
    """Give this thread one of torch's threads.

    Torch gives a new thread as many as any thread has set last, so a passing one sets again what was found.
    """
    with _setting_threads:
        found = torch.get_num_threads()  # after this call torch does not set this thread's number again
        torch.set_num_threads(1)
        passing = Thread(target=torch.set_num_threads, args=(found,))
        passing.start()
        passing.join()
