"""Batches on every core: results by job, one core a thread, and torch's settings as they were."""

from collections.abc import Iterator, Sequence
from threading import Barrier, Event, Thread

import pytest
import torch

from ctrlgen.generation.jobs import Job
from ctrlgen.generation.request import Request
from ctrlgen.generation.workers import Workers

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def jobs(*lengths: int) -> list[Job]:
    return [Job(Request(), 0, index, 0, 0, length) for index, length in enumerate(lengths)]


def in_a_new_thread() -> int:
    """How many of torch's threads a new thread has."""
    seen: list[int] = []
    thread = Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return seen[0]


def test_each_job_has_its_result() -> None:
    asked = jobs(3, 40, 5, 3)
    found = Workers(CPU).map(lambda batch, stopped: [job.length * 10 for job in batch], asked)
    assert {job.index: result for job, result in found.items()} == {0: 30, 1: 400, 2: 50, 3: 30}


def test_a_worker_has_one_core_and_nobody_else_is_changed() -> None:
    workers, together = Workers(CPU), Barrier(2, timeout=30)
    seen: list[tuple[int, int]] = []

    def work(batch: Sequence[Job], stopped: Event) -> list[None]:
        together.wait()  # two workers are at work
        torch.randn(64, 4096).exp_()  # large enough for torch to share among its threads
        seen.append((torch.get_num_threads(), in_a_new_thread()))
        return [None] * len(batch)

    workers.map(work, jobs(3, 60))
    assert seen == [(1, 3), (1, 3)]
    assert torch.get_num_threads() == in_a_new_thread() == 3


def test_all_stop_where_one_fails() -> None:
    both = Barrier(2, timeout=30)
    stopped_in_time = []

    def work(batch: Sequence[Job], stopped: Event) -> list[None]:
        both.wait()
        if batch[0].length == 3:
            raise ValueError("no")
        stopped_in_time.append(stopped.wait(30))
        return [None] * len(batch)

    with pytest.raises(ValueError, match="no"):
        Workers(CPU).map(work, jobs(3, 60))
    assert stopped_in_time == [True]
